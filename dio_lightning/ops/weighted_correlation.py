"""Local correlation of the voxels that count, in float64: plain PyTorch, differentiated by autograd."""

from typing import NamedTuple

import torch
from torch import Tensor

from dio_lightning.ops.correlation import FLOOR, box_sum

LEAST = 0.25
"""The share of a window that has to count; a correlation of fewer voxels is chance."""


class WeightedCorrelation(NamedTuple):
    """What the windows of two images say, each by the share of it that counts."""

    correlation: Tensor
    """Scalar: mean over the windows of share × correlation."""
    share: Tensor
    """Scalar: mean over the windows of the share."""


def weighted_correlation(
    a: Tensor, b: Tensor, weights: Tensor, window: int, signed: bool = False
) -> WeightedCorrelation:
    """`local_correlation` of images (b, c, *s) whose voxels count by weights (b, 1, *s) between 0 and 1.

    Sums over a window of w, wa, wb, waa, wbb and wab, where the outside of the image counts as zeros do:
    cross = Σwab - ΣwaΣwb / Σw, likewise the variances (at least 1e-5); cc = cross² / (var_a var_b + 1e-5), or signed
    cross / √(var_a var_b + 1e-5). A window's share is Σw / window^d, and 0 below a quarter. Weights of one change
    nothing: the correlation is that of `local_correlation`, the share 1. Twice differentiable in a and b; weights are
    constants.
    """
    count = window ** (a.ndim - 2)
    w = weights.detach().double()
    outside = count - box_sum(torch.ones_like(w[:1]), window).round()
    total = box_sum(w, window) + outside
    share = torch.where(total >= LEAST * count, total / count, 0)
    of = total.clamp(min=1e-3)
    x, y = _zero(a, w), _zero(b, w)
    a, b = a.double() - x, b.double() - y
    # beside the image there is 0, which is -x when counted from x
    sum_a, sum_b = box_sum(w * a, window) - outside * x, box_sum(w * b, window) - outside * y
    cross = box_sum(w * a * b, window) + outside * x * y - sum_a * sum_b / of
    var_a = (box_sum(w * a * a, window) + outside * x * x - sum_a * sum_a / of).clamp(min=FLOOR)
    var_b = (box_sum(w * b * b, window) + outside * y * y - sum_b * sum_b / of).clamp(min=FLOOR)
    product = var_a * var_b + FLOOR
    correlation = cross * product.rsqrt() if signed else cross * cross / product
    return WeightedCorrelation((share * correlation.clamp(-1, 1)).mean(), share.mean())


def _zero(image: Tensor, weights: Tensor) -> Tensor:
    """The mean of what counts of every image, from which its sums are counted: what is left is its contrast."""
    axes = tuple(range(2, image.ndim))
    total = weights.sum(axes, keepdim=True).clamp(min=1e-3)
    return (image.detach().double() * weights).sum(axes, keepdim=True) / total
