"""Two-dimensional pairs: slices of volumes, cut where the body's plane lies in the array."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from data_modules.augment import FIELDS, POINTS
from data_modules.base import FILES, Sample
from data_modules.checking.findings import Findings
from data_modules.layout import Case
from dio_lightning.headers import read_header

Plane = Literal["sagittal", "coronal", "axial"]
ACROSS: dict[str, str] = {"sagittal": "right-left", "coronal": "anterior-posterior", "axial": "superior-inferior"}
"""The direction that a plane is perpendicular to, in the order of the world's axes."""


@dataclass(frozen=True)
class Slicing:
    """Which slices are cut: plane, first and last index along its array axis (None: all), stride outside training.

    Raises:
        ValueError: if a value is not as expected.
    """

    plane: Plane
    slices: tuple[int, int] | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.plane not in ACROSS:
            raise ValueError(f"plane is {self.plane!r}, expected one of {', '.join(ACROSS)}")
        if self.slices is not None and (len(self.slices) != 2 or not 0 <= self.slices[0] <= self.slices[1]):
            raise ValueError(f"slices is {list(self.slices)}, expected the first and the last index, counted from 0")
        if self.every < 1:
            raise ValueError(f"every is {self.every}, expected an integer of at least 1")

    def axis(self, case: Case) -> tuple[int, int]:
        """The array axis that the plane is perpendicular to, and its number of voxels.

        Raises:
            FileNotFoundError, ValueError: if the image cannot be read, is no volume, or is tilted by 45 degrees.
        """
        header = read_header(case.image)
        if header.dimension != 3:
            raise ValueError(f"{case.image} has two axes, expected a volume to cut into {self.plane} slices")
        directions = header.affine[:3, :3]
        along = np.abs(directions[[*ACROSS].index(self.plane)])
        (axes,) = np.nonzero(along > 0.5**0.5 * np.linalg.norm(directions, axis=0))
        if len(axes) != 1:
            raise ValueError(
                f"{case.image} has the affine {np.round(directions, 3).tolist()}, expected one array axis within 45 "
                f"degrees of {ACROSS[self.plane]} to cut {self.plane} slices"
            )
        return int(axes[0]), header.shape[axes[0]]

    def cuts(self, case: Case, training: bool) -> tuple[int, range]:
        """Array axis and indices of a pair's slices: all from first to last in training, else every `every`-th.

        Raises:
            FileNotFoundError, ValueError: as `axis`, or if the last index is outside of the volume.
        """
        axis, size = self.axis(case)
        first, last = self.slices or (0, size - 1)
        if last >= size:
            raise ValueError(
                f"slices is {[first, last]}, expected indices from 0 to {size - 1}: {case.image} has {size} voxels "
                f"along axis {axis}, {ACROSS[self.plane]}"
            )
        return axis, range(first, last + 1, 1 if training else self.every)

    def check(self, cases: Sequence[Case]) -> None:
        """Every case has the first one's axis, and as many voxels along it.

        Raises:
            FileNotFoundError, ValueError: with up to five sentences; or as `cuts`.
        """
        self.cuts(cases[0], training=True)
        axis, size = self.axis(cases[0])
        problems = Findings()
        for case in cases[1:]:
            own = self.axis(case)
            if own != (axis, size):
                problems.error(
                    case.image,
                    f"has {own[1]} {self.plane} slices along axis {own[0]}, expected {size} along "
                    f"axis {axis} as in {cases[0].image}",
                )
        problems.stop()


class SlicePairs(Dataset):
    """Every pair at every index: the slices of the first pair, then those of the second.

    Args:
        pairs: volumes; each is read whenever one of its slices is.
        axis: the array axis that is cut.
        indices: where, along that axis.
    """

    def __init__(self, pairs: Dataset, axis: int, indices: Sequence[int]) -> None:
        self.pairs, self.axis, self.indices = pairs, axis, indices

    def __len__(self) -> int:
        return len(self.pairs) * len(self.indices)  # type: ignore[arg-type]

    def ids(self) -> list[tuple[str, str]]:
        """fixed_id and moving_id of every slice; `pairs` knows those of its own."""
        listed: list[tuple[str, str]] = cast(Any, self.pairs).ids()
        return [(slice_id(fixed, i), slice_id(moving, i)) for fixed, moving in listed for i in self.indices]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        pair, place = divmod(index, len(self.indices))
        return cut(self.pairs[pair], self.axis, self.indices[place])


def cut(sample: Sample, axis: int, index: int) -> Sample:
    """One slice of a pair of volumes, as a pair of images (1, h, w) with spacing (2,) and `_s<index>` behind its ids.

    The affine maps (i, j, 0) to where that voxel of the volume lies; its third column is that of the axis which was
    cut. Landmarks, which lie between slices, a true displacement, which leaves the slice, and the files of the volumes
    are dropped.
    """
    kept = [a for a in range(3) if a != axis]
    affine: Tensor = sample["affine"][:, [*kept, axis, 3]].clone()
    affine[:, 3] += index * affine[:, 2]
    images = {k: sample[k].select(1 + axis, index).contiguous() for k in FIELDS if k in sample and k != "displacement"}
    ids = {k: slice_id(sample[k], index) for k in ("fixed_id", "moving_id")}
    rest = {k: v for k, v in sample.items() if k not in (*FIELDS, *POINTS, *FILES)}
    return rest | images | ids | {"spacing": sample["spacing"][kept], "affine": affine}


def slice_id(name: str, index: int) -> str:
    """The id of a slice of an image."""
    return f"{name}_s{index:03d}"
