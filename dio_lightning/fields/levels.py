"""Where the voxels of a pyramid's levels lie, and displacements from one level to another.

A level of factor f averages, or looks at, blocks of f voxels: its voxel i is centred at f i + (f - 1) / 2 of the image.
That is not the grid on which images are resampled, whose ends are those of the image; both are a `Grid`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Grid(NamedTuple):
    """A regular grid over an image: along each axis voxel i lies at start + step i, in voxels of the image."""

    size: tuple[int, ...]
    step: tuple[float, ...]
    start: tuple[float, ...]

    def matrix(self) -> Float[Tensor, "4 4"]:
        """Voxels of this grid to voxels of the image, float64."""
        affine = torch.eye(4, dtype=torch.float64)
        for axis, (step, start) in enumerate(zip(self.step, self.start, strict=True)):
            affine[axis, axis], affine[axis, 3] = step, start
        return affine


def blocks(image: Sequence[int], factor: int) -> Grid:
    """The level of an image of this size whose voxels are blocks of `factor` of the image's; the last may be smaller.

    An axis that is shorter than the factor is one block.
    """
    widths = [min(factor, extent) for extent in image]
    size = tuple(-(-extent // width) for extent, width in zip(image, widths, strict=True))
    return Grid(size, tuple(map(float, widths)), tuple((width - 1) / 2 for width in widths))


def spanning(image: Sequence[int], size: Sequence[int]) -> Grid:
    """The grid of this size whose ends are the image's, as in `resize` and `resample`."""
    pairs = zip(image, size, strict=True)
    step = tuple((old - 1) / max(new - 1, 1) if old > 1 else 1.0 for old, new in pairs)
    return Grid(tuple(size), step, (0.0,) * len(step))


def average_pool(image: Float[Tensor, "b c *s"], factor: int | Sequence[int]) -> Float[Tensor, "b c *t"]:
    """Mean over blocks of `factor` voxels along each axis, or of what is left of a block at the far side.

    An axis that is shorter than the factor is one block.
    """
    factors = [factor] * (image.ndim - 2) if isinstance(factor, int) else factor
    kernel = [min(width, extent) for width, extent in zip(factors, image.shape[2:], strict=True)]
    if max(kernel) == 1:
        return image
    pool = {4: F.avg_pool2d, 5: F.avg_pool3d}[image.ndim]
    return pool(image, kernel, ceil_mode=True, count_include_pad=False)


def regrid(u: Float[Tensor, "b d *s"], old: Grid, new: Grid) -> Float[Tensor, "b d *t"]:
    """The displacement u, in voxels of the old grid, as one of the new grid, in voxels of that.

    Linear between the voxels and beyond the outer ones, so that an affine displacement stays the same map.
    """
    if old == new:
        return u
    scale = u.new_tensor([a / b for a, b in zip(old.step, new.step, strict=True)])
    for axis, extent in enumerate(old.size):
        first, step = (new.start[axis] - old.start[axis]) / old.step[axis], new.step[axis] / old.step[axis]
        u = _interpolated(u, 2 + axis, [first + step * i for i in range(new.size[axis])], extent)
    return u * scale.view(1, -1, *[1] * len(old.size))


def _interpolated(x: Tensor, axis: int, points: list[float], extent: int) -> Tensor:
    """Values of x at points along one axis; the line through the last two values continues beyond them."""
    if extent == 1:
        return x.expand(*x.shape[:axis], len(points), *x.shape[axis + 1 :])
    if points == list(range(extent)):
        return x
    at = torch.tensor(points, dtype=torch.float64)
    low = at.floor().clamp(0, extent - 2)
    weight = (at - low).to(x).view(-1, *[1] * (x.ndim - 1 - axis))
    near, far = (x.index_select(axis, (low.long() + k).to(x.device)) for k in (0, 1))
    return torch.lerp(near, far, weight.expand_as(far))
