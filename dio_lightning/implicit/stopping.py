"""When a sample has been iterated enough: rules that look at one evaluation of the update at a time."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Evaluation(NamedTuple):
    """What one call of the update showed, per sample (b,)."""

    residual: Tensor
    """||f(z) - z||"""
    norm: Tensor
    """||f(z)||"""
    energy: Tensor | None
    """The update's energy at z, where it has one."""


class StopRule(ABC):
    """Says after each evaluation, and before the step is applied, which samples stop."""

    def init(self, like: Tensor) -> tuple[Any, ...]:
        """State of the rule before the first evaluation; `like` (b,) gives batch size, dtype and device."""
        return ()

    @abstractmethod
    def __call__(self, evaluation: Evaluation, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Samples that stop, (b,) bool, and the next state of the rule."""


@dataclass(frozen=True)
class Residual(StopRule):
    """Stop when ||f(z) - z|| <= atol + rtol ||f(z)||."""

    rtol: float = 1e-3
    atol: float = 0.0

    def __post_init__(self) -> None:
        if self.rtol < 0 or self.atol < 0:
            raise ValueError(f"Residual expects rtol >= 0 and atol >= 0, got {self.rtol} and {self.atol}.")

    def __call__(self, evaluation: Evaluation, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Samples that reached the tolerance, (b,) bool."""
        return evaluation.residual <= self.atol + self.rtol * evaluation.norm, state


@dataclass(frozen=True)
class Stagnation(StopRule):
    """Stop when the energy L improved by less than the fraction `eps` in `patience` consecutive steps.

    DIO's rule, for each sample of its own: L_t / L_{t-1} - 1 < -eps resets the counter, anything else counts.
    Written as L_{t-1} - L_t > eps |L_{t-1}|, so that it also holds for negative energies.
    """

    eps: float = 1e-3
    patience: int = 4

    def __post_init__(self) -> None:
        if self.eps < 0 or self.patience < 1:
            raise ValueError(f"Stagnation expects eps >= 0 and patience >= 1, got {self.eps} and {self.patience}.")

    def init(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Last energy (infinite) and number of idle steps, each (b,)."""
        return torch.full_like(like, torch.inf), torch.zeros_like(like, dtype=torch.int64)

    def __call__(self, evaluation: Evaluation, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Samples idle for `patience` steps, (b,) bool; ValueError if the update has no energy."""
        if evaluation.energy is None:
            raise ValueError("Stagnation needs an update that leaves its energy, a (b,) tensor, in `.energy`.")
        last, idle = state
        size = last.abs()
        improved = (size == torch.inf) | (last - evaluation.energy > self.eps * size)
        idle = (idle + 1).masked_fill_(improved, 0)
        return idle >= self.patience, (evaluation.energy, idle)


@dataclass(frozen=True)
class Never(StopRule):
    """Take every step."""

    def __call__(self, evaluation: Evaluation, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """No sample, (b,) bool."""
        return torch.zeros_like(evaluation.residual, dtype=torch.bool), state
