"""Penalties on the displacement."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.fields import jacobian_determinant
from dio_lightning.pair import full_precision

Normalisation = Literal["sum", "mean"]


def diffusion(u: Float[Tensor, "b d *s"], normalisation: Normalisation = "sum") -> Float[Tensor, ""]:
    """Squared forward differences of a displacement in voxels, averaged over batch and grid.

    "sum" adds the d × d derivatives, Σ_ic mean_x (∂_i u_c)² (GraDIRN); "mean" averages them, which is d² times less
    (VoxelMorph). A weight means nothing without this name.

    Raises:
        ValueError: for any other normalisation.
    """
    if normalisation not in ("sum", "mean"):
        raise ValueError(f'normalisation must be "sum" or "mean", not {normalisation!r}.')
    u, d = full_precision(u), u.shape[1]
    per_axis = [u.diff(dim=axis).square().mean() for axis in range(2, u.ndim) if u.shape[axis] > 1]
    return torch.stack(per_axis).sum() * (d if normalisation == "sum" else 1 / d)


def folding(u: Float[Tensor, "b d *s"]) -> Float[Tensor, ""]:
    """Mean of max(0, -det ∇ϕ): zero where the map keeps its orientation."""
    return torch.relu(-jacobian_determinant(full_precision(u))).mean()


class Diffusion(nn.Module):
    """The function diffusion with its normalisation; see there."""

    def __init__(self, normalisation: Normalisation = "sum") -> None:
        super().__init__()
        self.normalisation: Normalisation = normalisation

    def forward(self, u: Float[Tensor, "b d *s"]) -> Float[Tensor, ""]:
        """Scalar penalty of a displacement in voxels."""
        return diffusion(u, self.normalisation)


class Folding(nn.Module):
    """The function folding as a module."""

    def forward(self, u: Float[Tensor, "b d *s"]) -> Float[Tensor, ""]:
        """Scalar penalty of a displacement in voxels."""
        return folding(u)
