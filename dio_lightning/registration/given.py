"""What may be given besides two images: masks, label maps, landmarks, and the terms that use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dio_lightning.level import WHOLE
from dio_lightning.losses import LabelPrompt, LandmarkPrompt, Term
from dio_lightning.pair import Pair
from dio_lightning.registration.grids import placed
from dio_lightning.registration.landmark_start import rigid_fit
from dio_lightning.registration.scan import Image, Scan
from dio_lightning.transforms import ImageGrid, Transform
from dio_lightning.transforms.world import as_columns

LARGEST = torch.iinfo(torch.int16).max
"""Of labels, which are int16 in a pair."""
Scans = tuple[Scan, Scan]
"""Of the fixed and the moving image."""
Landmarks = tuple[Float[Tensor, "3 n"], Float[Tensor, "3 n"]]
"""Of the fixed and the moving image, RAS millimetres in float64."""


@dataclass(frozen=True, eq=False)
class Given:
    """Label maps on the grids of their images, and landmarks in the world; None: there are none."""

    labels: Scans | None = None
    points: Landmarks | None = None

    def checked(self, terms: Sequence[Term]) -> list[Term]:
        """The terms to descend on: those that are asked for, and one for the landmarks if none of them is theirs.

        Raises:
            ValueError: if a term needs labels or landmarks that are not given, or asks for a label that a map lacks.
        """
        for term in terms:
            if isinstance(term, LandmarkPrompt) and self.points is None:
                raise ValueError(
                    "a LandmarkPrompt needs the landmarks of both images, expected fixed_points and moving_points"
                )
            if isinstance(term, LabelPrompt) and self.labels is None:
                raise ValueError(
                    "a LabelPrompt needs the label maps of both images, expected fixed_labels and moving_labels"
                )
        for label in (label for term in terms if isinstance(term, LabelPrompt) for label in term.labels or ()):
            for scan in self.labels or ():
                if not bool((scan.values == label).any()):
                    raise ValueError(f"{scan.name} has no label {label}, which is to be matched")
        prompted = self.points is None or any(isinstance(term, LandmarkPrompt) for term in terms)
        return [*terms] if prompted else [*terms, LandmarkPrompt()]

    def start(self, grid: ImageGrid) -> NDArray[np.float64] | None:
        """The rigid matrix (4, 4) that brings the landmarks closest; None where they do not say it."""
        return None if self.points is None else rigid_fit(*self.points, grid)

    def distance(self, transform: Transform) -> float:
        """Mean distance in mm between where a transform takes the fixed landmarks and the moving ones."""
        assert self.points is not None
        return float((transform.map(self.points[0]) - self.points[1]).norm(dim=0).mean())

    def extras(self, fixed: Scan, moving: Scan, before: Transform) -> Pair:
        """What terms need besides the images, on the fixed grid; `before` has placed the moving image there.

        Raises:
            ValueError: if no voxel is left that counts in both images.
        """
        extras: dict[str, Tensor] = {}
        if self.labels is not None:
            images = self.labels[0].values, placed(self.labels[1].values, moving.grid, before, fixed.grid, "nearest")
            extras |= dict(zip(("fixed_label", "moving_label"), (x.to(torch.int16) for x in images), strict=True))
        if self.points is not None:
            columns = self.points[0], before.origins(self.points[1])
            voxels = [fixed.grid.voxels(x).float()[None] for x in columns]
            extras |= dict(zip(("fixed_points", "moving_points"), voxels, strict=True))
        if fixed.mask is not None:
            extras["fixed_mask"] = fixed.mask.to(torch.uint8)
        if moving.mask is not None:
            # beside the moving image all counts, as zeros, with a mask as without one
            outside = placed((~moving.mask).float(), moving.grid, before, fixed.grid)
            extras["moving_mask"] = (outside <= 1 - WHOLE).to(torch.uint8)
        counted = [extras[key] > 0 for key in ("fixed_mask", "moving_mask") if key in extras]
        if counted and not bool(torch.stack(counted).all(0).any()):
            raise ValueError("no voxel counts in both images where the linear stages have placed them: see their masks")
        return cast(Pair, extras)


def given(
    scans: Scans,
    labels: tuple[Image | None, Image | None] = (None, None),
    points: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
) -> Given:
    """What is given of a pair, read and checked.

    Args:
        scans: the images.
        labels: label maps on their grids.
        points: rows of two or three coordinates, RAS millimetres; row n of one image corresponds to row n of the other.

    Raises:
        FileNotFoundError, ValueError: if one of two is missing, or either cannot be what it is given for.
    """
    return Given(_labels(scans, *labels), _landmarks(scans, *points))


def masked(scans: Scans, *masks: Image | None) -> Scans:
    """The scans with the masks that are given of them; see `Scan.masked`."""
    fixed, moving = (scan if mask is None else scan.masked(mask) for scan, mask in zip(scans, masks, strict=True))
    return fixed, moving


def _labels(scans: Scans, *images: Image | None) -> Scans | None:
    if all(image is None for image in images):
        return None
    if any(image is None for image in images):
        raise ValueError("labels of one image alone are given, expected those of both or of none")
    maps = [scan.companion(cast(Image, image), "a label map") for scan, image in zip(scans, images, strict=True)]
    for label in maps:
        low, high = float(label.values.min()), float(label.values.max())
        if low < 0 or high > LARGEST or bool((label.values != label.values.round()).any()):
            raise ValueError(
                f"{label.name} has values from {low:g} to {high:g}, expected whole numbers up to {LARGEST} as labels"
            )
    return maps[0], maps[1]


def _landmarks(scans: Scans, *points: ArrayLike | None) -> Landmarks | None:
    if all(rows is None for rows in points):
        return None
    if any(rows is None for rows in points):
        raise ValueError("landmarks of one image alone are given, expected those of both or of none")
    columns = [as_columns(cast(ArrayLike, rows))[0] for rows in points]
    if columns[0].shape != columns[1].shape or not columns[0].numel():
        sizes = f"{columns[0].shape[1]} fixed and {columns[1].shape[1]} moving landmarks are given"
        raise ValueError(f"{sizes}, expected as many of both and one at least")
    for scan, these in zip(scans, columns, strict=True):
        outside = (~scan.grid.contains(these)).nonzero()[:, 0].tolist()
        if outside:
            place = ", ".join(f"{x:g}" for x in these[:, outside[0]].tolist())
            raise ValueError(
                f"{len(outside)} landmarks lie beside {scan.name}, the first of them number {outside[0] + 1} at "
                f"({place}) mm, expected RAS millimetres within the image"
            )
    return columns[0], columns[1]
