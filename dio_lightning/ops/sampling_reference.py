"""Linear interpolation in plain PyTorch, with first and second derivatives that are right on every device and torch.

PyTorch differentiates `grid_sample` twice only from 2.12 on, and there with sixty times the memory of the image. Here
the first two orders are its native kernels and the third is written out: for weights w_k of the 2^d corners k of a
cell, out = Σ_k w_k I_k, and every derivative is a sum over the same corners.
"""

from collections.abc import Iterator
from functools import reduce
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

_PADDING = {"zeros": 0, "border": 1}


def native(image: Tensor, points: Tensor, mode: str, padding: str) -> Tensor:
    """The same without the second derivative: `grid_sample` in our coordinates; NaN where a point is not finite.

    Left to itself, `grid_sample` takes NaN for a corner of the image, and its backward reads beyond the memory.
    """
    values = F.grid_sample(image, _normalise(points, image), mode=mode, padding_mode=padding, align_corners=True)
    return values if mode == "nearest" else values + 0 * points.sum(1, keepdim=True)


def interpolate_backward(
    gradient: Tensor, image: Tensor, points: Tensor, padding: str, needs: tuple[bool, bool] = (True, True)
) -> tuple[Tensor, Tensor]:
    """Gradients of `interpolate` with respect to image and points, for a gradient (b, c, *t) at its output."""
    d = points.shape[1]
    kernel = {2: torch.ops.aten.grid_sampler_2d_backward, 3: torch.ops.aten.grid_sampler_3d_backward}[d]
    grid = _normalise(_from_above(points, image), image).nan_to_num(0.0)
    of_image, of_grid = kernel(gradient, image, grid, 0, _PADDING[padding], True, list(needs))
    if needs[1]:
        of_grid = of_grid.flip(-1).movedim(-1, 1) * per_axis(image, points)
    return of_image, of_grid


def interpolate_double_backward(
    gradient: Tensor, image: Tensor, points: Tensor, of_image: Tensor | None, of_points: Tensor, padding: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ⟨of_image, ∂image⟩ + ⟨of_points, ∂points⟩ with respect to (gradient, image, points).

    ∂image and ∂points are what `interpolate_backward` returns for `gradient`; shapes as there.
    """
    b, c = image.shape[:2]
    d = points.shape[1]
    g, h = gradient.reshape(b, c, -1), of_points.reshape(b, d, -1)
    of_gradient, new_image = torch.zeros_like(g), image.new_zeros(b, c, prod(image.shape[2:]))
    new_points = torch.zeros_like(h)
    for index, slope, weight in _corners(points.reshape(b, d, -1), image.shape[2:], padding):
        where = index[:, None].expand(-1, c, -1)
        value = image.flatten(2).gather(2, where)
        along = [slope[i] * _others(weight, i) for i in range(d)]
        towards = reduce(torch.add, (h[:, i] * along[i] for i in range(d)))[:, None]
        of_gradient += towards * value
        new_image.scatter_add_(2, where, towards * g)
        mass = (g * value).sum(1)
        for i in range(d):
            mixed = sum(h[:, j] * slope[i] * slope[j] * _others(weight, i, j) for j in range(d) if j != i)
            new_points[:, i] += mixed * mass
        if of_image is not None:
            value = of_image.flatten(2).gather(2, where)
            of_gradient += _others(weight)[:, None] * value
            mass = (g * value).sum(1)
            for i in range(d):
                new_points[:, i] += along[i] * mass
    return of_gradient.view_as(gradient), new_image.view(image.shape), new_points.view_as(points)


def absolute(points: Tensor) -> Tensor:
    """Displacements of the voxels of their own grid, (b, d, *t), as points."""
    axes = [torch.arange(extent, dtype=points.dtype, device=points.device) for extent in points.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")) + points


def _from_above(points: Tensor, image: Tensor) -> Tensor:
    """The points, a little further where `grid_sample` would round a whole voxel down.

    At a whole voxel the slope is that of the cell above, as in the compiled kernels, and none at the border: a solver
    starts with every point there, and rounding would choose the side of each.
    """
    last = points.new_tensor([max(extent - 1, 1) for extent in image.shape[2:]]).view(1, -1, *[1] * (points.ndim - 2))
    # there and back, as `_normalise` and `grid_sample` compute it
    read = ((points * per_axis(image, points) - 1) + 1) / 2 * last
    return torch.where(read < points.floor(), points + 2 * torch.finfo(points.dtype).eps * last, points)


def per_axis(image: Tensor, points: Tensor) -> Tensor:
    """2 / (S_i - 1), which turns voxels along axis i into the [-1, 1] of `grid_sample`."""
    scale = points.new_tensor([2 / max(size - 1, 1) for size in image.shape[2:]])
    return scale.view(1, -1, *[1] * (points.ndim - 2))


def _normalise(points: Tensor, image: Tensor) -> Tensor:
    return (points * per_axis(image, points) - 1).movedim(1, -1).flip(-1)


def _corners(points: Tensor, size: torch.Size, padding: str) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """For each corner of each point's cell: flat index (b, n), slope and weight of each axis (b, n)."""
    axes = []
    for i, extent in enumerate(size):
        p = points[:, i].nan_to_num(0.0)
        moves = torch.ones_like(p)
        if padding == "border":
            moves = ((p > 0) & (p < extent - 1)).to(p.dtype)
            p = p.clamp(0, extent - 1)
        low = p.floor()
        fraction = p - low
        sides = []
        for position, weight, sign in ((low, 1 - fraction, -1.0), (low + 1, fraction, 1.0)):
            inside = ((position >= 0) & (position <= extent - 1)).to(p.dtype)
            sides.append((position.clamp(0, extent - 1).long(), sign * moves * inside, weight * inside))
        axes.append(sides)
    for corner in product(*axes):
        index = torch.zeros_like(corner[0][0])
        for extent, (position, _, _) in zip(size, corner, strict=True):
            index = index * extent + position
        yield index, [slope for _, slope, _ in corner], [weight for _, _, weight in corner]


def _others(weight: list[Tensor], *axes: int) -> Tensor:
    """The product of the weights of all axes but these."""
    rest = [w for i, w in enumerate(weight) if i not in axes]
    return prod(rest[1:], start=rest[0]) if rest else torch.ones_like(weight[0])
