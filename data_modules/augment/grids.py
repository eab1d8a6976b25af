"""Crops and flips: the grid changes, and every voxel that is left stays where it was in the world."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from data_modules.augment.base import (
    FIELDS,
    POINTS,
    Augmentation,
    check_probability,
    fixed_to_moving,
    happens,
)
from data_modules.base import Sample

_SIDE = re.compile(r"(?<![a-z])(left|right|lh|rh)(?![a-z])")
_OTHER = {"left": "right", "right": "left", "lh": "rh", "rh": "lh"}


@dataclass(frozen=True)
class Crop(Augmentation):
    """A crop at a random place; a moving image on a grid of its own stays whole.

    Args:
        size: Voxels along each axis; an axis that is shorter stays whole.
    """

    size: Sequence[int]

    def __post_init__(self) -> None:
        if not self.size or min(self.size) < 1:
            raise ValueError(f"size of a crop is {list(self.size)}, expected extents of at least 1 voxel")

    def __call__(self, sample: Sample) -> Sample:
        """The pair inside the crop."""
        size = sample["fixed"].shape[1:]
        for axis, (wanted, extent) in enumerate(zip(self.size, size, strict=False)):
            kept = min(wanted, extent)
            sample = cropped(sample, axis, int(torch.randint(extent - kept + 1, ())), kept)
        return sample


@dataclass(frozen=True)
class Flip(Augmentation):
    """Flips the whole pair along array axes, each with the same probability.

    With `swap_labels` a flip from left to right exchanges the labels of the two sides, so that a left structure keeps
    a left label. Which axis that is, the affine says.

    Args:
        axes: The array axes.
        probability: Of flipping along each.
        swap_labels: Label on one side to label on the other, such as {1: 20}; `names` pairs the labels whose names
            differ in left and right (or lh and rh) alone.
    """

    axes: Sequence[int] = (0,)
    probability: float = 0.5
    swap_labels: Literal["names"] | dict[int, int] | None = None

    def __post_init__(self) -> None:
        check_probability(self.probability)
        if not {*self.axes} <= {0, 1, 2}:
            raise ValueError(f"axes of a flip are {list(self.axes)}, expected axes among 0, 1, 2")
        if isinstance(self.swap_labels, dict):
            sides = [*self.swap_labels, *self.swap_labels.values()]
            if len({*sides}) < len(sides) or min(sides, default=1) < 1:
                raise ValueError(f"swap_labels is {self.swap_labels}, expected pairs of labels above 0, each once")

    def named(self, names: Mapping[int, str]) -> "Flip":
        """With pairs of labels instead of `names`.

        Raises:
            ValueError: if no label has a side in its name, or one has no partner on the other side.
        """
        return replace(self, swap_labels=mirrored_labels(names)) if self.swap_labels == "names" else self

    def __call__(self, sample: Sample) -> Sample:
        """The pair, flipped or not.

        Raises:
            ValueError: if the image has no such axis, or `names` were never given.
        """
        if self.swap_labels == "names":
            raise ValueError("swap_labels is 'names', expected a data set that names its labels")
        d = sample["fixed"].ndim - 1
        for axis in self.axes:
            if axis >= d:
                raise ValueError(f"axes of a flip are {list(self.axes)}, expected axes below {d} for this image")
            if not happens(self.probability):
                continue
            if self.swap_labels and axis == left_right(sample):
                labels = {k: _exchanged(sample[k], self.swap_labels) for k in FIELDS if "label" in k and k in sample}
                sample = sample | labels
            sample = flipped(sample, axis)
        return sample


def mirrored_labels(names: Mapping[int, str]) -> dict[int, int]:
    """Label to label of the other side, by names that differ in left and right (or lh and rh) alone.

    Raises:
        ValueError: if no label has a side in its name, or one has no partner on the other side.
    """
    by_name = {name.lower(): label for label, name in names.items()}
    pairs: dict[int, int] = {}
    for name, label in by_name.items():
        other = _SIDE.sub(lambda match: _OTHER[match[0]], name)
        if other == name:
            continue
        if other not in by_name:
            raise ValueError(f"label {label} is {names[label]!r} and no label is {other!r}, expected both or none")
        if by_name[other] not in pairs:
            pairs[label] = by_name[other]
    if not pairs:
        raise ValueError("swap_labels is 'names' but no label has left or right in its name, expected pairs of labels")
    return pairs


def left_right(sample: Sample) -> int:
    """The array axis closest to the world's first; at least d if that is across a slice, 0 without an affine."""
    if "affine" not in sample:
        return 0
    directions = sample["affine"][:3, :3]
    return int((directions[0].abs() / directions.norm(dim=0).clamp(min=1e-12)).argmax())


def cropped(sample: Sample, axis: int, start: int, size: int) -> Sample:
    """The slab start … start + size - 1 of an axis; landmarks are counted from its start."""
    own = ("moving",) if "moving_affine" in sample else ()
    fields, points = ([k for k in keys if k in sample and not k.startswith(own)] for keys in (FIELDS, POINTS))
    return sample | {
        **{key: sample[key].narrow(1 + axis, start, size).contiguous() for key in fields},
        **{key: _along(sample[key], axis, 1.0, -start) for key in points},
        **_moved(sample, "affine", axis, 1.0, start),
    }


def flipped(sample: Sample, axis: int) -> Sample:
    """The axis reversed; on a moving grid of its own, the axis that runs alongside."""
    matrix = fixed_to_moving(sample)
    beside = axis if matrix is None else int(matrix[:3, axis].abs().argmax())
    changed: Sample = {}
    for side, along in (("fixed", axis), ("moving", beside)):
        last = sample[side].shape[1 + along] - 1
        changed |= {k: sample[k].flip(1 + along) for k in FIELDS if k.startswith(side) and k in sample}
        changed |= {k: _along(sample[k], along, -1.0, last) for k in POINTS if k.startswith(side) and k in sample}
        changed |= _moved(sample, "affine" if side == "fixed" else "moving_affine", along, -1.0, last)
    if "displacement" in sample:
        changed["displacement"] = _along(sample["displacement"].flip(1 + axis), axis, -1.0, 0.0)
    return sample | changed


def _exchanged(label: Tensor, pairs: Mapping[int, int]) -> Tensor:
    """Labels (…) with those of each pair exchanged."""
    table = torch.arange(max(int(label.max()), *pairs, *pairs.values()) + 1, dtype=label.dtype)
    for one, other in pairs.items():
        table[one], table[other] = other, one
    return table[label.long()]


def _along(vectors: Tensor, axis: int, sign: float, offset: float) -> Tensor:
    """Component `axis` of (d, ...) as sign x + offset."""
    vectors = vectors.clone()
    vectors[axis] = sign * vectors[axis] + offset
    return vectors


def _moved(sample: Sample, key: str, axis: int, sign: float, offset: float) -> Sample:
    """The affine of a grid whose voxel x along the axis is voxel sign x + offset of the old one; nothing without."""
    if key not in sample:
        return {}
    affine = sample[key].clone()
    affine[:, 3] += affine[:, axis] * offset
    affine[:, axis] *= sign
    return {key: affine}
