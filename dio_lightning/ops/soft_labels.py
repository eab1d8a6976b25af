"""How much of each label lies where after a linear warp, at a cost that does not depend on the number of labels.

Instead of one mask per label, each corner of the cell of x + u(x) adds its linear weight to the sums of its own label.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from dio_lightning.ops.choice import backward_alone, implementation
from dio_lightning.ops.labels import check_count

MOST = 256
"""Labels up to which kernels look for each of them in each voxel."""


def label_sums(fixed: Tensor, moving: Tensor, u: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Σ_x f m and Σ_x m of each label 1..count, float64 (b, count); f a mask of the label, m a linearly warped one.

    Differentiable once, in u. NaN where a displacement of the sample is not finite.

    Args:
        fixed: labels 0..count, (b, 1, *t).
        moving: labels 0..count, (b, 1, *s), warped with border padding.
        u: displacement (b, d, *t) in voxels of float32 or float64.
        count: the largest label.

    Raises:
        ValueError: as `label_counts`.
    """
    check_count(count)
    backward_alone("soft Dice", u)
    kernels = implementation("soft_labels", u) if 0 < count <= MOST else None
    if kernels is not None:
        both, either = _KernelSums.apply(u, fixed, moving, count, kernels)
    else:
        parts = [
            _Sums.apply(v, f, m, count + 1) for f, m, v in zip(fixed[:, 0], moving[:, 0].contiguous(), u, strict=True)
        ]
        both, either = (torch.stack(x)[:, 1:] for x in zip(*parts, strict=True))
    finite = u.detach().isfinite().flatten(1).all(1)[:, None]
    return torch.where(finite, both, torch.nan), torch.where(finite, either, torch.nan)


class _KernelSums(Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        u: Tensor,
        fixed: Tensor,
        moving: Tensor,
        count: int,
        kernels: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(fixed, moving, u)
        ctx.kernels = kernels
        return kernels.label_sums(fixed, moving, u, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401  # pyright: ignore
        return ctx.kernels.slope(*ctx.saved_tensors, *gradients), None, None, None, None


class _Sums(Function):
    """`label_sums` of one sample in plain PyTorch, label 0 too: u (d, *t), fixed (*t), moving (*s).

    A cell of one label gives weight 1 to it and no gradient, so only mixed cells are visited corner by corner.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        u: Tensor,
        fixed: Tensor,
        moving: Tensor,
        count: int,
    ) -> tuple[Tensor, Tensor]:
        flat_moving, flat_fixed = moving.flatten(), fixed.flatten()
        points, base = _cells(u, moving.shape)
        low, high = (x.flatten().index_select(0, base) for x in _extremes(moving))
        alike = low == high
        bins = low[alike] + count * (low[alike] == flat_fixed[alike])
        sums = torch.bincount(bins, minlength=2 * count).double()
        mixed = torch.nonzero(~alike)[:, 0]
        base, target = base[mixed], flat_fixed[mixed]
        fractions, inside = _places([p[mixed] for p in points], moving.shape)
        strides = [moving.stride(i) if n > 1 else 0 for i, n in enumerate(moving.shape)]
        saved = []
        for corner in itertools.product((0, 1), repeat=len(strides)):
            offset = sum(far * stride for far, stride in zip(corner, strides, strict=True))
            label = flat_moving.index_select(0, base + offset)
            bins = label.int() + (label == target).int() * count
            sums += torch.bincount(bins, _weight(fractions, corner).double(), minlength=2 * count)
            saved.append(bins)
        ctx.save_for_backward(mixed, fractions, inside, torch.stack(saved))
        ctx.shape = u.shape
        both = sums[count:]
        return both, sums[:count] + both

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401  # pyright: ignore
        both, either = gradients
        mixed, fractions, inside, bins = ctx.saved_tensors
        table = torch.cat([either, either + both]).to(fractions.dtype)
        slopes = _slopes(table[bins], fractions) * inside
        gradient = slopes.new_zeros(ctx.shape[0], ctx.shape[1:].numel())
        gradient[:, mixed] = slopes
        return gradient.view(ctx.shape), None, None, None


def _cells(u: Tensor, size: torch.Size) -> tuple[list[Tensor], Tensor]:
    """The points x + u(x), one tensor per axis, and the flat index of the near corner of the cell of each."""
    points, index = [], torch.zeros(u[0].numel(), dtype=torch.int32, device=u.device)
    for axis, n in enumerate(size):
        line = torch.arange(u.shape[axis + 1], dtype=u.dtype, device=u.device)
        points.append((u[axis] + line.view(-1, *[1] * (len(size) - 1 - axis))).flatten())
        index.mul_(n).add_(points[-1].clamp(0, n - 1).int().clamp_(0, max(n - 2, 0)))
    return points, index


def _places(points: list[Tensor], size: torch.Size) -> tuple[Tensor, Tensor]:
    """Of points (d of (n,)): where in their cell, 0 to 1, and whether inside the image, both (d, n)."""
    last = points[0].new_tensor([n - 1 for n in size])[:, None]
    stacked = torch.stack(points)
    clamped = torch.minimum(stacked.clamp(min=0), last)
    corner = torch.minimum(clamped.floor(), (last - 1).clamp(min=0))
    return clamped - corner, (stacked > 0) & (stacked < last)


def _extremes(label: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest label of the cell whose near corner is each voxel."""
    low = high = label
    for axis, n in enumerate(label.shape):
        below, above = low.clone(), high.clone()
        near, far = slice(0, n - 1), slice(1, n)
        at = (slice(None),) * axis
        below[(*at, near)] = torch.minimum(low[(*at, near)], low[(*at, far)])
        above[(*at, near)] = torch.maximum(high[(*at, near)], high[(*at, far)])
        low, high = below, above
    return low, high


def _weight(fractions: Tensor, corner: tuple[int, ...]) -> Tensor:
    weight = torch.ones_like(fractions[0])
    for fraction, far in zip(fractions, corner, strict=True):
        weight = weight * (fraction if far else 1 - fraction)
    return weight


def _slopes(values: Tensor, fractions: Tensor) -> Tensor:
    """Derivatives along each axis (d, n) of the linear interpolant of corner values (2^d, n)."""
    slopes = []
    for along in range(len(fractions)):
        v = values.unflatten(0, (2,) * len(fractions))
        for axis, fraction in enumerate(fractions):
            step = v[1] - v[0]
            v = step if axis == along else v[0] + fraction * step
        slopes.append(v)
    return torch.stack(slopes)
