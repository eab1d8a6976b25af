"""Scores of a result where something of the truth is given: label maps and landmarks of both images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dio_lightning.headers import read_header
from dio_lightning.metrics import dice_per_label
from dio_lightning.metrics.overlap import ranked
from dio_lightning.registration.result import Registration
from dio_lightning.registration.scan import Scan
from dio_lightning.transforms import ImageGrid
from dio_lightning.transforms.world import to_world


@dataclass(frozen=True, eq=False)
class Truth:
    """What is given of one pair, fixed and moving; None: nothing.

    Attributes:
        labels: label maps, each on the grid of its image.
        points: landmarks (n, d) in voxels of their image, row by row the same point.
    """

    labels: tuple[Path, Path] | None = None
    points: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def scores(self, result: Registration) -> dict[str, float]:
        """`dice`, the mean over the labels that both images have, and `tre`, the mean distance in mm."""
        scores: dict[str, float] = {}
        if self.labels is not None:
            scores["dice"] = dice(result, *self.labels)
        if self.points is not None:
            scores["tre"] = tre(result, *self.points)
        return scores

    def maps(self, result: Registration) -> tuple[Scan, Scan] | None:
        """The label maps as the page of a result draws them, on the voxels of their images."""
        if self.labels is None:
            return None
        maps = ranked(*(_labels(read_header(path).values()) for path in self.labels))
        fixed, moving = (
            Scan(values.float(), scan.grid, None, "a label map")
            for values, scan in zip(maps, (result.fixed, result.moving), strict=True)
        )
        return fixed, moving


def dice(result: Registration, fixed: Path, moving: Path) -> float:
    """Mean Dice over the labels that both maps have, the moving one warped by its nearest voxels; NaN without any."""
    warped = np.asarray(result.warp_labels(moving).dataobj).reshape(result.fixed.grid.size)
    one, two = (_labels(read_header(path).values()) for path in (fixed, moving))
    one, carried, two = ranked(one, _labels(warped), two)
    return dice_per_label(one, carried, two).nanmean().item()


def tre(result: Registration, fixed: ArrayLike, moving: ArrayLike) -> float:
    """Mean distance in mm between where the transform takes fixed landmarks (n, d), in voxels, and the moving ones.

    Raises:
        ValueError: if there are not as many of both.
    """
    fixed, moving = np.asarray(fixed), np.asarray(moving)
    if fixed.shape != moving.shape:
        raise ValueError(f"{len(fixed)} fixed landmarks do not match {len(moving)} moving ones")
    world = [_world(points, scan.grid) for points, scan in ((fixed, result.fixed), (moving, result.moving))]
    return float(np.linalg.norm(result.warp_points(world[0]) - world[1], axis=1).mean())


def _labels(values: NDArray) -> Integer[Tensor, "1 1 *s"]:
    return torch.from_numpy(np.ascontiguousarray(np.rint(values).astype(np.int64)))[None, None]


def _world(points: Float[NDArray, "n d"], grid: ImageGrid) -> NDArray[np.float64]:
    """Voxels of a grid as rows of RAS millimetres (n, 3)."""
    return to_world(torch.from_numpy(np.ascontiguousarray(points.T, dtype=np.float64)), grid.affine).T.numpy()
