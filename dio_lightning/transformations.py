"""Transformation models: how parameters become a displacement, how a solver's step is applied, how the grid changes.

Nothing else distinguishes them. All parameters are fields (b, d, *s) in voxels of their grid; zero is the identity.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import compose, exponential, resize


class Transformation(ABC):
    """Parameters z → displacement u, and the retraction by which a step δ moves z."""

    def displacement(self, z: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
        """The displacement u of ϕ = id + u; the parameters themselves unless the model says otherwise."""
        return z

    @abstractmethod
    def retract(self, z: Float[Tensor, "b d *s"], step: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
        """The parameters after a step δ in voxels."""

    def resize(self, z: Float[Tensor, "b d *s"], size: Sequence[int]) -> Float[Tensor, "b d *t"]:
        """The same transformation on another grid."""
        return resize(z, size)


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
        longest = step.square().sum(1).flatten(1).amax(1).sqrt()
        scale = (self.max_step / longest.clamp(min=self.max_step)).view(-1, *[1] * (step.ndim - 1))
        return compose(z, step * scale)


@dataclass(frozen=True)
class StationaryVelocity(Transformation):
    """ϕ = exp(v) by scaling and squaring; steps are added to the velocity v."""

    squarings: int = 7

    def displacement(self, z: Tensor) -> Tensor:
        """Exp(v)."""
        return exponential(z, self.squarings)

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """V + δ."""
        return z + step
