"""Transformations whose parameters are a field: free-form, diffeomorphic by composition, stationary velocity."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from dio_lightning.fields import compose, exponential
from dio_lightning.transformations.base import Transformation


@dataclass(frozen=True)
class FreeForm(Transformation):
    """The displacement is the parameter, and steps are added: u ← u + δ. Nothing keeps it from folding."""

    repeats = True

    def retract(self, z: Tensor, step: Tensor) -> Tensor:
        """The displacement u + δ."""
        return z + step


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
        squares = reduce(lambda total, x: torch.addcmul(total, x, x), step[:, 1:].unbind(1), step[:, 0].square())
        longest = squares.flatten(1).amax(1).clamp(min=self.max_step**2).sqrt()
        scale = (self.max_step / longest).view(-1, *[1] * (step.ndim - 1))
        return compose(z, step * scale)


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
        return z + step
