"""Feature matching in plain PyTorch: the reference, and the fallback on every device without a kernel of its own."""

import torch
from torch import Tensor

from dio_lightning.ops.sampling_reference import absolute, interpolate_backward, interpolate_double_backward, native


def match(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.match`."""
    points = absolute(u)
    residual = native(moving, points, "bilinear", "border") - fixed
    _, gradient = interpolate_backward(residual * (2 / fixed.shape[1]), moving, points, "border", (False, True))
    return residual.square().mean(1).flatten(1).sum(1), gradient


def match_adjoint(
    fixed: Tensor, moving: Tensor, u: Tensor, of_value: Tensor, of_gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ⟨of_value, E⟩ + ⟨of_gradient, ρ⟩ with respect to fixed, moving and u."""
    factor = 2 / fixed.shape[1]
    points = absolute(u)
    residual = (native(moving, points, "bilinear", "border") - fixed) * factor
    of_residual, of_moving, of_u = interpolate_double_backward(residual, moving, points, None, of_gradient, "border")
    total = of_residual * factor + of_value.view(-1, *[1] * (u.ndim - 1)) * residual
    direct, along = interpolate_backward(total, moving, points, "border")
    return -total, of_moving + direct, of_u + along


def match_blocks(fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `dio_lightning.ops.match.Blocks`; one channel at a time, so that no (c, d) volume is stored."""
    b, c = fixed.shape[:2]
    d = u.shape[1]
    points = absolute(u)
    value, gradient = match(fixed, moving, u)
    block = u.new_zeros(b, d * (d + 1) // 2, *u.shape[2:])
    residual = u.new_zeros(b, 1, *u.shape[2:])
    for channel in range(c):
        image = moving[:, channel : channel + 1].contiguous()
        _, slope = interpolate_backward(torch.ones_like(u[:, :1]), image, points, "border", (False, True))
        for k, (i, j) in enumerate((i, j) for i in range(d) for j in range(i, d)):
            block[:, k] += slope[:, i] * slope[:, j] * (2 / c)
        difference = native(image, points, "bilinear", "border") - fixed[:, channel : channel + 1]
        residual += difference.square() * (2 / c)
    return value, gradient, block, residual
