"""Local normalised cross-correlation over cubic windows, with its gradient, in float64.

A window's variance is a difference of two sums. In float32 the sums of images that are far from zero beside their
contrast, such as Hounsfield units, leave nothing of it, and where an image in [0, 1] is nearly constant little of its
gradient. The sums are compiled loops or kernels (`ops.choice`), or plain PyTorch, as is the second derivative.
"""

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from dio_lightning.ops.choice import backward_alone, implementation

FLOOR = 1e-5


def local_correlation(a: Tensor, b: Tensor, window: int, signed: bool = False) -> Tensor:
    """Mean of the correlation of images (b, c, *s) over windows of `window`^d voxels, zero outside: a scalar.

    cross = Σab - ΣaΣb / window^d, likewise the variances (at least 1e-5); cross² / (var_a var_b + 1e-5) in [0, 1], or
    signed cross / √(var_a var_b + 1e-5) in [-1, 1]. Twice differentiable.
    """
    backward_alone("local correlation", a, b)
    return _Correlation.apply(a, b, window, signed)


class _Moments(NamedTuple):
    mean_a: Tensor
    mean_b: Tensor
    cross: Tensor
    var_a: Tensor
    var_b: Tensor
    product: Tensor


def _moments(a: Tensor, b: Tensor, window: int) -> _Moments:
    count = window ** (a.ndim - 2)
    x, y = _zero(a), _zero(b)
    a, b = a - x, b - y
    sum_a, sum_b = box_sum(a, window), box_sum(b, window)
    inside = box_sum(torch.ones_like(a[:1, :1]), window).round()
    outside, part = count - inside, inside / count

    def central(total: Tensor, p: Tensor, q: Tensor, sum_p: Tensor, sum_q: Tensor) -> Tensor:
        """Σpq - ΣpΣq / count of images that are 0 outside, from sums that are counted from their zeros x and y."""
        return total - sum_p * sum_q / count + outside * (p * q * part + (p * sum_q + q * sum_p) / count)

    cross = central(box_sum(a * b, window), x, y, sum_a, sum_b)
    var_a = central(box_sum(a * a, window), x, x, sum_a, sum_a).clamp(min=FLOOR)
    var_b = central(box_sum(b * b, window), y, y, sum_b, sum_b).clamp(min=FLOOR)
    means = (sum_a - outside * x) / count, (sum_b - outside * y) / count
    return _Moments(*means, cross, var_a, var_b, var_a * var_b + FLOOR)


def _zero(image: Tensor) -> Tensor:
    """The mean of every image, from which its sums are counted: what is left is its contrast."""
    return image.detach().double().mean(dim=tuple(range(2, image.ndim)), keepdim=True)


def _mean(m: _Moments, signed: bool) -> Tensor:
    # what rounding has left of a window may correlate by more than 1
    correlation = m.cross * m.product.rsqrt() if signed else m.cross * m.cross / m.product
    return correlation.clamp(-1, 1).mean()


class _Correlation(Function):
    """The gradient is written out, and takes three more box sums an image; only a second one is left to autograd."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, window: int, signed: bool) -> Tensor:  # noqa: ANN401
        kernels = implementation("correlation", a)
        ctx.window, ctx.signed, ctx.kernels = window, signed, kernels
        if kernels is not None:
            # where only one image has a gradient, it is the first
            images = (b, a) if ctx.needs_input_grad[:2] == (False, True) else (a, b)
            value, slopes = kernels.mean(*images, window, FLOOR, signed, all(ctx.needs_input_grad[:2]))
            kept = (slopes,)
        else:
            kept = _moments(a.double(), b.double(), window)
            value = _mean(kept, signed)
        ctx.save_for_backward(a, b, *kept)
        return value.to(torch.promote_types(a.dtype, b.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        a, b, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            of_a, of_b = _differentiable(a, b, ctx, gradients[0])
            return of_a, of_b, None, None
        of_each: list[Tensor | None] = [None, None]
        for place in (i for i in (0, 1) if ctx.needs_input_grad[i]):
            if ctx.kernels is not None:
                images = (a, b) if place == 0 or all(ctx.needs_input_grad[:2]) else (b, a)
                at = place if images[0] is a else 0
                of_each[place] = ctx.kernels.gradient(kept[0], images, at, ctx.window, gradients[0])
            else:
                m = _Moments(*kept)
                if place == 1:
                    m = m._replace(mean_a=m.mean_b, mean_b=m.mean_a, var_a=m.var_b, var_b=m.var_a)
                slope = _slope((a, b)[place], (a, b)[1 - place], m, ctx.window, ctx.signed)
                of_each[place] = (slope * (gradients[0] / a.numel())).to((a, b)[place].dtype)
        return of_each[0], of_each[1], None, None


def _differentiable(a: Tensor, b: Tensor, ctx: Any, gradient: Tensor) -> list[Tensor | None]:  # noqa: ANN401
    """Gradients with respect to a and b that autograd can differentiate again."""
    value = _mean(_moments(a.double(), b.double(), ctx.window), ctx.signed)
    needs = ctx.needs_input_grad[:2]
    wanted = [image for image, need in zip((a, b), needs, strict=True) if need]
    each = iter(torch.autograd.grad(value, wanted, gradient.to(value), create_graph=True))
    return [next(each) if need else None for need in needs]


def _slope(a: Tensor, b: Tensor, m: _Moments, window: int, signed: bool) -> Tensor:
    """Derivative of the sum of all correlations with respect to a."""
    root = m.product.rsqrt() if signed else 2 * m.cross / m.product
    of_cross = root
    of_variance = -root * m.cross * m.var_b / m.product  # twice the derivative
    of_variance = torch.where(m.var_a > FLOOR, of_variance, 0)
    shared = box_sum(of_cross * m.mean_b + of_variance * m.mean_a, window)
    return box_sum(of_cross, window) * (b - _zero(b)) + box_sum(of_variance, window) * (a - _zero(a)) - shared


def box_sum(x: Tensor, window: int) -> Tensor:
    """Sum of (b, c, *s) over windows of `window`^d voxels, zeros outside."""
    return _BoxSum.apply(x, window)


class _BoxSum(Function):
    """Sum over a centred window with zeros outside: a symmetric operator, so its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: int) -> Tensor:  # noqa: ANN401
        ctx.window = window
        return reduce(lambda total, axis: _window_sum(total, axis, window), range(2, x.ndim), x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _BoxSum.apply(gradients[0], ctx.window), None


def _window_sum(x: Tensor, axis: int, window: int) -> Tensor:
    """Sums of 1, 2, 4, … neighbours, each from two of the one before, put together to the window's width."""
    size, radius = x.shape[axis], window // 2
    part = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [radius, radius])
    total, start, width = None, 0, 1
    while True:
        if window & width:
            piece = part.narrow(axis, start, size)
            total = piece if total is None else total + piece
            start += width
        if 2 * width > window:
            assert total is not None
            return total
        kept = part.shape[axis] - width
        part = part.narrow(axis, 0, kept) + part.narrow(axis, width, kept)
        width *= 2
