"""Random crops and flips of a whole pair: both images, and all that belongs to them, move together."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_modules.base import Sample

FIELDS = ("fixed", "moving", "fixed_label", "moving_label", "fixed_mask", "moving_mask", "displacement")
POINTS = ("fixed_points", "moving_points")


class Augmented(Dataset):
    """Pairs of a data set, cropped at a random place and flipped along random axes, by torch's random state.

    Args:
        pairs: what to augment.
        crop: voxels of the crop; an axis that is shorter stays whole. None: no crop.
        flips: axes that are flipped with probability one half.
    """

    def __init__(self, pairs: Dataset, crop: Sequence[int] | None, flips: Sequence[int]) -> None:
        self.pairs, self.crop, self.flips = pairs, crop, flips

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        sample = self.pairs[index]
        size = sample["fixed"].shape[1:]
        for axis, wanted in enumerate(self.crop or ()):
            kept = min(wanted, size[axis])
            sample = cropped(sample, axis, int(torch.randint(size[axis] - kept + 1, ())), kept)
        for axis in self.flips:
            if torch.rand(()) < 0.5:
                sample = flipped(sample, axis)
        return sample


def cropped(sample: Sample, axis: int, start: int, size: int) -> Sample:
    """The slab start … start + size - 1 of an axis; landmarks are counted from its start."""
    return sample | {
        **{key: sample[key].narrow(1 + axis, start, size).contiguous() for key in FIELDS if key in sample},
        **{key: _along(sample[key], axis, 1.0, -start) for key in POINTS if key in sample},
        "affine": _moved(sample["affine"], axis, 1.0, start),
    }


def flipped(sample: Sample, axis: int) -> Sample:
    """The axis reversed."""
    last = sample["fixed"].shape[1 + axis] - 1
    flipped = {key: sample[key].flip(1 + axis) for key in FIELDS if key in sample}
    if "displacement" in flipped:
        flipped["displacement"] = _along(flipped["displacement"], axis, -1.0, 0.0)
    points = {key: _along(sample[key], axis, -1.0, last) for key in POINTS if key in sample}
    return sample | flipped | points | {"affine": _moved(sample["affine"], axis, -1.0, last)}


def _along(vectors: Tensor, axis: int, sign: float, offset: float) -> Tensor:
    """Component `axis` of (d, ...) as sign x + offset."""
    vectors = vectors.clone()
    vectors[axis] = sign * vectors[axis] + offset
    return vectors


def _moved(affine: Tensor, axis: int, sign: float, offset: float) -> Tensor:
    """The affine of a grid whose voxel x along the axis is voxel sign x + offset of the old one."""
    affine = affine.clone()
    affine[:, 3] += affine[:, axis] * offset
    affine[:, axis] *= sign
    return affine
