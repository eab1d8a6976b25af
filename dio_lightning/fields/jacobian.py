"""The Jacobian of a deformation and its determinant."""

import torch
from jaxtyping import Float
from torch import Tensor


def jacobian(u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d d *s"]:
    """∇ϕ of ϕ = id + u: entry (i, j) is ∂ϕ_i/∂x_j, by central differences, one-sided at the border.

    Along an axis of one voxel nothing varies: u has no derivative there.
    """
    d = u.shape[1]
    columns = [torch.gradient(u, dim=axis)[0] if u.shape[axis] > 1 else torch.zeros_like(u) for axis in range(2, 2 + d)]
    unit = torch.eye(d, dtype=u.dtype, device=u.device).view(1, d, d, *[1] * d)
    return torch.stack(columns, dim=2) + unit


def jacobian_determinant(u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b *s"]:
    """The determinant of ∇(id + u): volume change; 0 or less where the map folds."""
    return _determinant(jacobian(u))


def _determinant(matrix: Tensor) -> Tensor:
    """Laplace expansion along the first row: exact, and no batched LU of a million 3x3 blocks."""
    d = matrix.shape[1]
    if d == 1:
        return matrix[:, 0, 0]
    total = torch.zeros_like(matrix[:, 0, 0])
    for j in range(d):
        minor = matrix[:, 1:, [k for k in range(d) if k != j]]
        total = total + (-1) ** j * matrix[:, 0, j] * _determinant(minor)
    return total
