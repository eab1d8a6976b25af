"""Penalties on the displacement."""

from abc import abstractmethod
from itertools import combinations
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import jacobian_determinant
from dio_lightning.level import Level
from dio_lightning.losses.term import Energy, Term, slope_of
from dio_lightning.ops import shortfall, squared_differences
from dio_lightning.pair import full_precision

Normalisation = Literal["sum", "mean"]
Field = Float[Tensor, "b d *s"]


class Regulariser(Term):
    """A term of the displacement alone, in voxels of its grid."""

    @abstractmethod
    def energy(self, u: Field) -> Float[Tensor, " b"]:
        """Mean over the voxels of each sample."""

    def on(self, level: Level) -> Energy:
        """The penalty: no level has anything to add to it."""
        return Energy(self.energy)

    def forward(self, u: Field) -> Float[Tensor, ""]:
        """Scalar penalty of a displacement in voxels, the mean over the batch."""
        return self.energy(full_precision(u)).mean()


def diffusion(u: Field, normalisation: Normalisation = "sum") -> Float[Tensor, ""]:
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


def folding(u: Field) -> Float[Tensor, ""]:
    """Mean of max(0, -det ∇ϕ): zero where the map keeps its orientation."""
    return torch.relu(-jacobian_determinant(full_precision(u))).mean()


class Diffusion(Regulariser):
    """The diffusion energy Σ_ij (∂_i u_j)², by forward differences.

    As a term it is the sum over all differences divided by the number of voxels; as a loss it is the function
    `diffusion`, which divides by the number of differences, one fewer along an axis.

    Args:
        normalisation: "sum" over the d × d derivatives, or their "mean".
        weight: see `Term`.

    Raises:
        ValueError: for any other normalisation.
    """

    repeats = True

    def __init__(self, normalisation: Normalisation = "sum", weight: float = 1.0) -> None:
        super().__init__(weight)
        if normalisation not in ("sum", "mean"):
            raise ValueError(f'normalisation must be "sum" or "mean", not {normalisation!r}.')
        self.normalisation: Normalisation = normalisation

    def energy(self, u: Field) -> Float[Tensor, " b"]:
        """Mean over the voxels of each sample."""
        return self._closed(u)[0]

    def on(self, level: Level) -> Energy:
        """The energy, whose slope is -2 Δu with Neumann borders."""
        return Energy(self.energy, slope=self._closed)

    def forward(self, u: Field) -> Float[Tensor, ""]:
        """Scalar penalty of a displacement in voxels."""
        return diffusion(u, self.normalisation)

    def _closed(self, u: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = squared_differences(u)
        share = 1.0 if self.normalisation == "sum" else 1 / u.shape[1] ** 2
        return energy * (share / prod(u.shape[2:])), slope if share == 1 else slope * share


class Bending(Regulariser):
    """The bending energy Σ_c [Σ_i (∂_ii u_c)² + 2 Σ_i<j (∂_ij u_c)²] (Rueckert et al., TMI 1999).

    An affine map costs nothing.
    Second differences inside the grid, their squares summed and divided by the number of voxels.
    """

    repeats = True

    def energy(self, u: Field) -> Float[Tensor, " b"]:
        """Mean over the voxels of each sample, in voxels^-2."""
        axes = range(2, u.ndim)
        pure = [u.diff(n=2, dim=i).square().flatten(1).sum(1) for i in axes if u.shape[i] > 2]
        mixed = [2 * u.diff(dim=i).diff(dim=j).square().flatten(1).sum(1) for i, j in combinations(axes, 2)]
        return torch.stack([*pure, *mixed]).sum(0) / prod(u.shape[2:])


class TotalVariation(Regulariser):
    """√(Σ_ij (∂_i u_j)² + ε²) - ε: a jump costs its height, so that sliding may stay (Vishnevskiy et al., TMI 2017).

    Forward differences, none beyond the last voxel.

    Args:
        epsilon: ε, voxels per voxel; below it the penalty is a parabola.
        weight: see `Term`.

    Raises:
        ValueError: if epsilon is not positive.
    """

    repeats = True

    def __init__(self, epsilon: float = 0.01, weight: float = 1.0) -> None:
        super().__init__(weight)
        if epsilon <= 0:
            raise ValueError(f"epsilon is {epsilon}, expected a positive number")
        self.epsilon = epsilon

    def energy(self, u: Field) -> Float[Tensor, " b"]:
        """Mean over the voxels of each sample."""
        squares = u.new_full((len(u), *u.shape[2:]), self.epsilon**2)
        for axis in range(2, u.ndim):
            beyond = [0, 0] * (u.ndim - 1 - axis) + [0, 1]
            squares = squares + F.pad(u.diff(dim=axis).square().sum(1), beyond)
        return squares.sqrt().flatten(1).mean(1) - self.epsilon


class JacobianPenalty(Regulariser):
    """Folds and changes of volume: a mean_x max(0, m - det ∇ϕ) + b mean_x (log max(det ∇ϕ, 0.01))².

    Args:
        folds: a.
        volume: b; the logarithm treats growth and shrinkage alike.
        margin: m; 0 punishes folds alone, more keeps a distance from them.
        weight: see `Term`.

    Raises:
        ValueError: if folds or volume is negative.
    """

    repeats = True
    least = 0.01

    def __init__(self, folds: float = 1.0, volume: float = 0.0, margin: float = 0.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        if folds < 0 or volume < 0:
            raise ValueError(f"folds is {folds} and volume {volume}, expected numbers of at least 0")
        self.folds, self.volume, self.margin = folds, volume, margin

    def energy(self, u: Field) -> Float[Tensor, " b"]:
        """Mean over the voxels of each sample."""
        determinant = jacobian_determinant(u)
        total = self.folds * torch.relu(self.margin - determinant).flatten(1).mean(1)
        if self.volume > 0:
            total = total + self.volume * determinant.clamp(min=self.least).log().square().flatten(1).mean(1)
        return total

    def on(self, level: Level) -> Energy:
        """The penalty; that of folds alone has a slope in one pass where nothing is recorded."""
        return Energy(self.energy, slope=self._closed if self.volume == 0 else None)

    def _closed(self, u: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and u.requires_grad:
            return slope_of(self.energy, u)
        lacking, slope = shortfall(u, self.margin)
        return lacking * (self.folds / prod(u.shape[2:])), slope * self.folds


class Folding(JacobianPenalty):
    """The function `folding` as a term: `JacobianPenalty` of folds alone."""

    repeats = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight=weight)

    def forward(self, u: Field) -> Float[Tensor, ""]:
        """Scalar penalty of a displacement in voxels."""
        return folding(u)
