"""What an augmentation is, and a data set that is augmented."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_modules.base import Sample
from dio_lightning import fields
from dio_lightning.pair import Pair

FIELDS = ("fixed", "moving", "fixed_label", "moving_label", "fixed_mask", "moving_mask", "displacement")
POINTS = ("fixed_points", "moving_points")


class Augmentation(ABC):
    """A random change of a pair, drawn from torch's random state: with the same state it is the same change.

    It returns a new sample and leaves the tensors of the old one as they are.
    """

    @abstractmethod
    def __call__(self, sample: Sample) -> Sample:
        """The changed pair."""

    def named(self, names: Mapping[int, str]) -> "Augmentation":
        """The same, knowing the names of the labels.

        Raises:
            ValueError: if it needs other names.
        """
        return self


class Augmented(Dataset):
    """Pairs of a data set, changed by augmentations in order.

    Args:
        pairs: what to augment.
        steps: the augmentations.
    """

    def __init__(self, pairs: Dataset, steps: Sequence[Augmentation]) -> None:
        self.pairs, self.steps = pairs, list(steps)

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        sample = self.pairs[index]
        for step in self.steps:
            sample = step(sample)
        return sample


def happens(probability: float) -> bool:
    """True with this probability."""
    return bool(torch.rand(()) < probability)


def draw_seed() -> int:
    """A seed for another library's random state."""
    return int(torch.randint(2**31, ()))


def check_probability(probability: float) -> None:
    """A share from 0 to 1.

    Raises:
        ValueError: if it is none.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}, expected a number from 0 to 1")


def fixed_to_moving(sample: Sample) -> Tensor | None:
    """The (4, 4) matrix from voxels of the fixed grid to those of the moving one; None where they are one grid."""
    batch = {key: sample[key][None] for key in ("affine", "moving_affine") if key in sample}
    maps = fields.fixed_to_moving(cast(Pair, batch))
    return None if maps is None else maps[0]


def spacing_of(sample: Sample, side: str) -> list[float]:
    """Millimetres per voxel of an image's grid; 1 where a pair does not say."""
    d = sample[side].ndim - 1
    affine = sample.get("moving_affine" if side == "moving" and "moving_affine" in sample else "affine")
    if affine is not None:
        return affine[:3, :d].norm(dim=0).tolist()
    return sample["spacing"].tolist() if "spacing" in sample else [1.0] * d
