"""Transformation models: how parameters become a displacement, how a solver's step is applied, how the grid changes.

Nothing else distinguishes them. Parameters z are (b, d, ...) in voxels of their grid and zero is the identity; those of
`Affine` are a few numbers per axis, all others are fields (b, d, *s).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import Grid, compose, exponential, gaussian_smooth, regrid, spanning


class Transformation(ABC):
    """Parameters z → displacement u, and the retraction by which a step δ moves z."""

    @property
    def direct(self) -> bool:
        """Whether the parameters are the displacement itself."""
        return type(self).displacement is Transformation.displacement

    def initial(self, features: Float[Tensor, "b c *s"]) -> Float[Tensor, "b d ..."]:
        """Parameters of the identity on the grid of these features."""
        return features.new_zeros(len(features), features.ndim - 2, *features.shape[2:])

    def displacement(self, z: Float[Tensor, "b d ..."], size: Sequence[int]) -> Float[Tensor, "b d *s"]:
        """The displacement u of ϕ = id + u on a grid of this size; z itself unless the model says otherwise."""
        return z

    def parameters(self, u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d ..."]:
        """Parameters of a displacement: u itself where they are the displacement.

        Raises:
            ValueError: if the model has no parameters for every displacement.
        """
        if not self.direct:
            raise ValueError(f"{type(self).__name__} cannot start from a displacement, FreeForm and Diffeomorphism can")
        return u

    def gradient(
        self, z: Float[Tensor, "b d ..."], size: Sequence[int], slope: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "b d ..."]:
        """Gradient of an energy with respect to z, given its gradient `slope(u)` with respect to the displacement.

        A model may measure it in its own metric, so long as it is zero where the plain gradient is.
        """
        if self.direct:
            return slope(z)
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            u = self.displacement(z, size)
        graph = torch.is_grad_enabled()
        (pulled,) = torch.autograd.grad(u, z, slope(u if graph else u.detach()), create_graph=graph)
        return pulled

    @abstractmethod
    def retract(self, z: Float[Tensor, "b d ..."], step: Float[Tensor, "b d ..."]) -> Float[Tensor, "b d ..."]:
        """The parameters after a step δ in voxels."""

    def smooth(self, x: Float[Tensor, "b d ..."], sigma: float) -> Float[Tensor, "b d ..."]:
        """Parameters or a step, smoothed by a Gaussian of sigma voxels."""
        return gaussian_smooth(x, sigma)

    def resize(self, z: Float[Tensor, "b d ..."], old: Sequence[int], size: Sequence[int]) -> Float[Tensor, "b d ..."]:
        """The same transformation on a grid of another size than the old one."""
        return self.regrid(z, spanning(size, old), spanning(size, size))

    def regrid(self, z: Float[Tensor, "b d ..."], old: Grid, new: Grid) -> Float[Tensor, "b d ..."]:
        """The same transformation on another grid of the same image, such as the next level of a pyramid."""
        return regrid(z, old, new)


@dataclass(frozen=True)
class FreeForm(Transformation):
    """The displacement is the parameter, and steps are added: u ← u + δ. Nothing keeps it from folding."""

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """U + δ."""
        return z + step


@dataclass(frozen=True)
class Diffeomorphism(Transformation):
    """Steps are composed: ϕ ← ϕ ∘ (id + δ), none longer than `max_step` voxels (Avants' greedy scheme, FireANTs).

    A short smooth step is invertible, and so is a composition of them; after discretisation nearly so.
    """

    max_step: float = 0.5

    def __post_init__(self) -> None:
        if self.max_step <= 0:
            raise ValueError(f"max_step is {self.max_step}, expected a positive number of voxels")

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """The displacement of (id + u) ∘ (id + δ), with δ scaled so that its longest vector is `max_step`."""
        # clamped before the root, whose slope is infinite at a step of zero
        longest = step.square().sum(1).flatten(1).amax(1).clamp(min=self.max_step**2).sqrt()
        scale = (self.max_step / longest).view(-1, *[1] * (step.ndim - 1))
        return compose(z, step * scale)


@dataclass(frozen=True)
class StationaryVelocity(Transformation):
    """ϕ = exp(v) by scaling and squaring; steps are added to the velocity v."""

    squarings: int = 7

    def displacement(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """Exp(v)."""
        return exponential(z, self.squarings)

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """V + δ."""
        return z + step


@dataclass(frozen=True)
class Affine(Transformation):
    """u_i(x) = z_id + Σ_j z_ij n_j(x), n_j = 2 x_j / (S_j - 1) - 1 the coordinates of the grid, from -1 to 1.

    Parameters (b, d, d + 1): a unit of any of them moves the borders of the grid by one voxel, so that a solver's rate
    means what it means for a field. Steps are added. There is no field to smooth.
    """

    def initial(self, features: Tensor) -> Tensor:
        """Zeros (b, d, d + 1)."""
        d = features.ndim - 2
        return features.new_zeros(len(features), d, d + 1)

    def displacement(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """The affine displacement with parameters z (b, d, d + 1)."""
        *columns, offset = (column.view(*column.shape, *[1] * len(size)) for column in z.unbind(2))
        u = offset
        for column, coordinates in zip(columns, _coordinates(size, z), strict=True):
            u = u + column * coordinates  # only the last sum is as large as the grid
        return u

    def gradient(self, z: Tensor, size: Sequence[int], slope: Callable[[Tensor], Tensor]) -> Tensor:
        """Parameters (b, d, d + 1) of the affine field closest to slope(u), in the sense of least squares.

        That is ∂E/∂z, a sum over N voxels, times 1 / N for z_id and 3 (S_j - 1) / ((S_j + 1) N) for z_ij: the gradient
        in the metric of displacements, so that steps are as long as those of a field.
        """
        rest, columns = slope(self.displacement(z, size)), []
        for axis, coordinates in reversed(list(enumerate(_coordinates(size, z)))):
            weights = coordinates.flatten() / coordinates.square().mean().clamp(min=1 / 3) / size[axis]
            columns.append((rest * weights).sum(-1).reshape(*z.shape[:2], -1).mean(2))
            rest = rest.mean(-1)  # the other coordinates do not vary along this axis
        return torch.stack([*reversed(columns), rest], 2)

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """Z + δ."""
        return z + step

    def smooth(self, x: Tensor, sigma: float) -> Tensor:
        """X: there is no field to smooth."""
        return x

    def regrid(self, z: Tensor, old: Grid, new: Grid) -> Tensor:
        """Voxels of the old grid to voxels of the new one: n_j of the one grid is α_j n_j + β_j of the other."""
        *columns, offset = z.unbind(2)
        for j, (n, m) in enumerate(zip(old.size, new.size, strict=True)):
            if n > 1 and m > 1:
                reach = old.step[j] * (n - 1)
                alpha = new.step[j] * (m - 1) / reach
                offset = offset + (2 * (new.start[j] - old.start[j]) / reach + alpha - 1) * columns[j]
                columns[j] = alpha * columns[j]
        ratio = z.new_tensor([a / b for a, b in zip(old.step, new.step, strict=True)])
        return torch.stack([*columns, offset], 2) * ratio[:, None]


def _coordinates(size: Sequence[int], like: Tensor) -> list[Tensor]:
    """Coordinates from -1 to 1 along each axis, shaped to broadcast over the grid; 0 where an axis has one voxel."""
    axes = []
    for axis, extent in enumerate(size):
        line = torch.linspace(-1, 1, extent, dtype=like.dtype, device=like.device) if extent > 1 else like.new_zeros(1)
        axes.append(line.view(-1, *[1] * (len(size) - 1 - axis)))
    return axes
