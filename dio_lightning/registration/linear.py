"""Rigid and affine stages: many starts, coarse to fine, on the layer and the terms of every other method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.implicit import Adam, Stagnation
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses import MutualInformation
from dio_lightning.pair import Pair
from dio_lightning.registration.grids import blurred, counted, isotropic, seen_at
from dio_lightning.registration.scan import Scan
from dio_lightning.registration.starts import Matrices, best_starts, information, starts
from dio_lightning.transformations import Affine, Rigid
from dio_lightning.transforms import ImageGrid
from dio_lightning.updates import Descent

Kind = Literal["rigid", "affine"]
VOXELS = 28
"""Coarse voxels along the longest axis of the fixed image."""


@dataclass(frozen=True, eq=False)
class _Work:
    """One level: the fixed image on a grid of equal voxels, and the moving image as blurred."""

    grid: ImageGrid
    fixed: Float[Tensor, "1 1 *s"]
    blurred: Float[Tensor, "1 1 *t"]
    moving: Scan
    counts: Float[Tensor, "1 1 *s"] | None

    @classmethod
    def at(cls, fixed: Scan, moving: Scan, edge: float, margin: float) -> "_Work":
        grid = isotropic(fixed.grid, edge, margin)
        image = seen_at(blurred(fixed, edge), fixed.grid, np.eye(4)[None], grid)
        return cls(grid, image, blurred(moving, edge), moving, counted(fixed, np.eye(4)[None], grid))

    def information(self, matrices: Matrices) -> NDArray[np.float64]:
        """How alike the images are under each matrix."""
        return information(self.fixed, self.grid, self.blurred, self.moving, matrices, self.counts)

    def solve(self, matrices: Matrices, kind: Kind, steps: int, rate: float) -> Matrices:
        """Matrices that are no worse: what is solved for is what each leaves, so that images are resampled anew."""
        moving = seen_at(self.blurred, self.moving.grid, matrices, self.grid)
        fixed = self.fixed.expand(len(moving), *self.fixed.shape[1:]).contiguous()
        model = Rigid() if kind == "rigid" else Affine()
        masks = self._masks(matrices, fixed, moving)
        update = Descent(0.0, distance=MutualInformation(), masked=masks is not None)
        layer = OptimizerLayer([steps], update, Adam(rate), model, stop=Stagnation(1e-5, 6), field_sigma=0.0)
        with torch.no_grad():
            z = layer.solve(layer.problem(Level(fixed, moving, pair=masks)), model.initial(fixed), steps).value
        better = matrices @ _in_world(z, kind, self.grid)
        worse = self.information(better) < self.information(matrices)
        return np.where(worse[:, None, None], matrices, better)

    def _masks(self, matrices: Matrices, fixed: Tensor, moving: Tensor) -> Pair | None:
        """The pair of images with their masks, if one of them has one."""
        masks = {"fixed_mask": self.counts, "moving_mask": counted(self.moving, matrices, self.grid)}
        given = {side: mask.expand_as(fixed) for side, mask in masks.items() if mask is not None}
        return Pair(fixed=fixed, moving=moving, **given) if given else None  # pyright: ignore[reportArgumentType]


def align(
    fixed: Scan,
    moving: Scan,
    kinds: Sequence[Kind],
    start: NDArray[np.float64] | None = None,
    also: NDArray[np.float64] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> NDArray[np.float64]:
    """The matrix (4, 4) from the fixed world to the moving one, RAS millimetres, after the stages in their order.

    Args:
        fixed: the image that stays.
        moving: the image that is brought to it.
        kinds: `rigid`, `affine`, or both.
        start: a matrix to go on from; None: the best of many starts.
        also: one more start, whatever its information.
        tell: is told what is going on.
    """
    edge = max(float(((np.array(fixed.grid.size) - 1) * fixed.grid.spacing).max()) / VOXELS, fixed.grid.spacing.min())
    work = _Work.at(fixed, moving, edge, 0.1)
    if start is None:
        tell("search")
        images = work.fixed, work.grid, work.blurred, moving
        matrices = best_starts(*images, starts(fixed, moving), 6, 3 * edge, work.counts)
        matrices = matrices if also is None else np.concatenate([also[None], matrices])
    else:
        matrices = start[None].astype(np.float64)
    for index, kind in enumerate(kinds):
        tell(f"{kind}, {edge:.3g} mm")
        for rate in (0.3, 0.1):
            matrices = work.solve(matrices, kind, 30, rate)
        matrices = matrices[np.argsort(-work.information(matrices))[: 3 if index < len(kinds) - 1 else 2]]
    finer = _Work.at(fixed, moving, edge / 2, 0.0)
    tell(f"{kinds[-1]}, {edge / 2:.3g} mm")
    matrices = finer.solve(matrices, kinds[-1], 15, 0.2)
    for rate, shift in ((0.1, 0.5), (0.05, -0.3), (0.02, 0.2)):
        best = matrices[np.argsort(-finer.information(matrices))[:1]]
        matrices = np.concatenate([best, finer.solve(_beside(best[0], finer.grid, shift), kinds[-1], 12, rate)])
    return matrices[int(np.argmax(finer.information(matrices)))]


def _beside(matrix: NDArray[np.float64], grid: ImageGrid, shift: float) -> Matrices:
    """A matrix with the grid moved by a share of a voxel along all axes, either way.

    A solve starts from an image that is resampled, and whatever moves it from there blurs it: where it starts is the
    best for that reason alone, so that no solve may start where the last one has ended.
    """
    steps = np.stack([np.eye(4), np.eye(4)])
    steps[:, :3, 3] = np.outer([shift, -shift], grid.affine[:3, : len(grid.size)].sum(1))
    return matrix @ steps


def _in_world(z: Float[Tensor, "b d k"], kind: Kind, grid: ImageGrid) -> Matrices:
    """Parameters on a grid as matrices (b, 4, 4) of the world: G V G⁻¹, V the map of voxels about the grid's centre."""
    d = len(grid.size)
    half = torch.tensor([max(extent - 1, 1) / 2 for extent in grid.size], dtype=torch.float64)
    if kind == "rigid":
        linear = Rigid().linear(z, grid.size).numpy()
    else:
        linear = (torch.eye(d, dtype=torch.float64) + z[:, :, :d].double() / half).numpy()
    centre = (np.array(grid.size) - 1) / 2
    voxels = np.tile(np.eye(4), (len(z), 1, 1))
    voxels[:, :d, :d] = linear
    voxels[:, :d, 3] = centre + z[:, :, d].double().numpy() - linear @ centre
    return grid.affine @ voxels @ np.linalg.inv(grid.affine)
