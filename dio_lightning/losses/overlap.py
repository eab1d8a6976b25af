"""Soft Dice of linearly warped labels, at a cost that does not depend on the number of labels."""

import itertools
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from dio_lightning import ops
from dio_lightning.pair import full_precision

Label = Integer[Tensor, "b 1 *s"]
_EPS = 1e-6


def soft_dice(
    fixed_label: Label, moving_label: Label, u: Float[Tensor, "b d *s"], num_labels: int | None = None
) -> Float[Tensor, "b k"]:
    """Dice of each label 1..k between the fixed mask f and the linearly warped moving mask m, shape (b, k).

    (2 Σfm + 1e-6) / (Σf + Σm + 1e-6), equal to warping each binary mask with border padding (a label in neither map
    gives 1 and no gradient). Instead of one mask per label, each corner of the cell of x + u(x) adds its linear weight
    to the sums of its own label. Differentiable once, in u.

    Raises:
        ValueError: if a label exceeds num_labels (default: the largest in either map).
    """
    largest = int(max(fixed_label.max(), moving_label.max()))
    count = largest if num_labels is None else num_labels
    if largest > count:
        raise ValueError(f"Labels must be at most num_labels = {count}, found {largest}.")
    u = full_precision(u)
    scores = []
    for f, m, field in zip(fixed_label[:, 0], moving_label[:, 0].contiguous(), u, strict=True):
        both, either = _LabelSums.apply(field, f, m, count + 1)
        total = torch.bincount(f.flatten(), minlength=count + 1) + either
        scores.append((2 * both + _EPS) / (total + _EPS))
    return torch.stack(scores)[:, 1:].to(u.dtype)


class Dice(nn.Module):
    """1 - soft Dice, averaged over the labels present in the fixed or the moving map of each pair, in [0, 1].

    Labels absent from both maps give no term (their Dice would be the constant 1).
    """

    def __init__(self, num_labels: int | None = None) -> None:
        super().__init__()
        self.num_labels = num_labels

    def forward(self, fixed_label: Label, moving_label: Label, u: Float[Tensor, "b d *s"]) -> Float[Tensor, ""]:
        """Scalar loss; 0 if there is no label at all."""
        scores = soft_dice(fixed_label, moving_label, u, self.num_labels)
        fixed, moving = (ops.label_counts(x, scores.shape[1]) for x in (fixed_label, moving_label))
        present = fixed + moving > 0
        return torch.where(present, 1 - scores, 0).sum() / present.sum().clamp(min=1)


class _LabelSums(Function):
    """Per label k: Σ_x w [m = k and f(x) = k] and Σ_x w [m = k] over the corners m of each sampled cell, float64.

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
