"""What looks at the neighbours of a voxel along the axes: symmetric correlation, and squared differences with slope.

On the CPU compiled loops write one field and keep no other; elsewhere, and for half precision, it is plain PyTorch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Taps = Sequence[float]
"""Weights at distance 0, 1, …; one number, 1, leaves an axis as it is."""


def correlate(x: Tensor, taps: Sequence[Taps]) -> Tensor:
    """Symmetric correlation of (b, c, *s) along each axis with weights of its own, zeros outside: its own adjoint."""
    return _Correlate.apply(x, [list(weights) for weights in taps])


def squared_differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over voxels of (∂_i u_c)², forward differences within the grid, (b,), and its gradient -2 Δu, (b, c, *s).

    Both are differentiable where gradients are enabled.
    """
    if _compiled(u) and not (torch.is_grad_enabled() and u.requires_grad):
        from dio_lightning.ops import stencil_numba  # compiled on first use, as feature matching is

        return stencil_numba.squared_differences(u)
    energy, slope = u.new_zeros(len(u)), torch.zeros_like(u)
    for axis in range(2, u.ndim):
        step = u.diff(dim=axis)
        energy = energy + step.square().flatten(1).sum(1)
        edge = torch.zeros_like(u.narrow(axis, 0, 1))
        slope = slope - 2 * torch.cat((edge, step, edge), axis).diff(dim=axis)
    return energy, slope


class _Correlate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: list[Taps]) -> Tensor:  # noqa: ANN401
        ctx.taps = taps
        if _compiled(x):
            from dio_lightning.ops import stencil_numba

            return stencil_numba.correlate(x, taps)
        return reference(x, taps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _Correlate.apply(gradients[0], ctx.taps), None


def reference(x: Tensor, taps: Sequence[Taps]) -> Tensor:
    """`correlate` in plain PyTorch: x is added to itself, shifted."""
    for axis, weights in enumerate(taps, start=2):
        size, total = x.shape[axis], x * weights[0]
        for shift, weight in enumerate(weights[1:size], start=1):
            kept = size - shift
            total.narrow(axis, shift, kept).add_(x.narrow(axis, 0, kept), alpha=weight)
            total.narrow(axis, 0, kept).add_(x.narrow(axis, shift, kept), alpha=weight)
        x = total
    return x


def _compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
