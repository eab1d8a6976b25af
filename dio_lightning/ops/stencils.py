"""What looks at the neighbours of a voxel along the axes: symmetric correlation, differences, their determinants.

Compiled loops and kernels write one field and keep no other; what they do not take is plain PyTorch (`ops.choice`).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dio_lightning.ops.choice import backward_alone, implementation

Taps = Sequence[float]
"""Weights at distance 0, 1, …; one number, 1, leaves an axis as it is."""


def correlate(x: Tensor, taps: Sequence[Taps]) -> Tensor:
    """Symmetric correlation of (b, c, *s) along each axis with weights of its own, zeros outside: its own adjoint."""
    backward_alone("smoothing", x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Correlate.apply(x, taps)
    return _correlated(x, taps)


def squared_differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over voxels of (∂_i u_c)², forward differences within the grid, (b,), and its gradient -2 Δu, (b, c, *s).

    Both are differentiable where gradients are enabled.
    """
    backward_alone("the sum of squared differences", u)
    kernels = None if torch.is_grad_enabled() and u.requires_grad else _kernels(u)
    if kernels is not None:
        return kernels.squared_differences(u)
    energy, slope = u.new_zeros(len(u)), torch.zeros_like(u)
    for axis in range(2, u.ndim):
        step = u.diff(dim=axis)
        energy = energy + step.square().flatten(1).sum(1)
        edge = torch.zeros_like(u.narrow(axis, 0, 1))
        slope = slope - 2 * torch.cat((edge, step, edge), axis).diff(dim=axis)
    return energy, slope


def determinants(u: Tensor) -> Tensor:
    """Determinant of the Jacobian of id + u, (b, *s), of a displacement (b, d, *s) in 2-D or 3-D; not differentiable.

    Central differences, one-sided at the border; along an axis of one voxel nothing varies. No matrix is stored.
    """
    backward_alone("the determinant of a displacement", u)
    kernels = _kernels(u)
    return determinant(jacobian(u)) if kernels is None else kernels.determinants(u)


def shortfall(u: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Sum over voxels of max(0, margin - `determinants`), (b,), and its gradient, (b, d, *s); not differentiable.

    The gradient is 0 where no determinant lacks anything, which is nearly everywhere in a map that hardly folds.
    """
    backward_alone("what determinants lack", u)
    kernels = _kernels(u)
    if kernels is not None:
        return kernels.shortfall(u, margin)
    with torch.inference_mode(False), torch.enable_grad():
        at = (u.clone() if u.is_inference() else u.detach()).requires_grad_()
        total = torch.relu(margin - determinant(jacobian(at))).flatten(1).sum(1)
        (slope,) = torch.autograd.grad(total.sum(), at)
    return total.detach(), slope


def jacobian(u: Tensor) -> Tensor:
    """∇(id + u), (b, d, d, *s): entry (i, j) is the derivative of component i along axis j."""
    d = u.shape[1]
    columns = [torch.gradient(u, dim=axis)[0] if u.shape[axis] > 1 else torch.zeros_like(u) for axis in range(2, 2 + d)]
    unit = torch.eye(d, dtype=u.dtype, device=u.device).view(1, d, d, *[1] * d)
    return torch.stack(columns, dim=2) + unit


def determinant(matrix: Tensor) -> Tensor:
    """Of (b, d, d, *s). Laplace expansion along the first row: exact, and no batched LU of a million 3x3 blocks."""
    d = matrix.shape[1]
    if d == 1:
        return matrix[:, 0, 0]
    total = torch.zeros_like(matrix[:, 0, 0])
    for j in range(d):
        minor = matrix[:, 1:, [k for k in range(d) if k != j]]
        total = total + (-1) ** j * matrix[:, 0, j] * determinant(minor)
    return total


class _Correlate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Sequence[Taps]) -> Tensor:  # noqa: ANN401
        ctx.taps = taps
        return _correlated(x, taps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _Correlate.apply(gradients[0], ctx.taps), None


def _correlated(x: Tensor, taps: Sequence[Taps]) -> Tensor:
    kernels = _kernels(x)
    return (reference if kernels is None else kernels.correlate)(x, taps)


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


def _kernels(x: Tensor) -> ModuleType | None:
    """Loops on the CPU have no half precision."""
    if x.device.type == "cpu" and x.dtype not in (torch.float32, torch.float64):
        return None
    return implementation("stencil", x)
