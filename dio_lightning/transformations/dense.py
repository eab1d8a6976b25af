"""Transformations whose parameters are a field: free-form, diffeomorphic by composition, stationary velocity."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dio_lightning import ops
from dio_lightning.fields import compose, exponential
from dio_lightning.ops import memory
from dio_lightning.transformations.base import Transformation


@dataclass(frozen=True)
class FreeForm(Transformation):
    """The displacement is the parameter, and steps are added: u ← u + δ. Nothing keeps it from folding."""

    repeats = True

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """The displacement u + δ."""
        return memory.add(z, step)


@dataclass(frozen=True)
class Diffeomorphism(Transformation):
    """Steps are composed: ϕ ← ϕ ∘ (id + δ), none longer than `max_step` voxels (Avants' greedy scheme, FireANTs).

    A short smooth step is invertible, and so is a composition of them; after discretisation nearly so.
    """

    repeats = True

    max_step: float = 0.5

    def __post_init__(self) -> None:
        if self.max_step <= 0:
            raise ValueError(f"max_step is {self.max_step}, expected a positive number of voxels")

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """The displacement of (id + u) ∘ (id + δ), with δ scaled so that its longest vector is `max_step`."""
        # clamped before the root, whose slope is infinite at a step of zero
        longest = ops.largest_square(step).clamp(min=self.max_step**2).sqrt()
        return compose(z, step, self.max_step / longest)


@dataclass(frozen=True)
class StationaryVelocity(Transformation):
    """ϕ = exp(v) by scaling and squaring; steps are added to the velocity v."""

    repeats = True

    squarings: int = 7

    def displacement(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """The exponential exp(v)."""
        return exponential(z, self.squarings)

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """The velocity v + δ."""
        return memory.add(z, step)
