"""The Jacobian of a deformation and its determinant."""

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.ops import determinants, stencils


def jacobian(u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d d *s"]:
    """∇ϕ of ϕ = id + u: entry (i, j) is ∂ϕ_i/∂x_j, by central differences, one-sided at the border.

    Along an axis of one voxel nothing varies: u has no derivative there.
    """
    return stencils.jacobian(u)


def jacobian_determinant(u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b *s"]:
    """The determinant of ∇(id + u): volume change; 0 or less where the map folds. Differentiable."""
    if u.requires_grad and torch.is_grad_enabled():
        return stencils.determinant(stencils.jacobian(u))
    return determinants(u)
