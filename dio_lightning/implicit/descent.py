"""Descent methods: they read -r = z - f(z) as the gradient of an energy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dio_lightning.implicit.batch import spread
from dio_lightning.implicit.solvers import Solver, State


@dataclass(frozen=True)
class GradientDescent(Solver):
    """z <- z + rate (f(z) - z)."""

    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"GradientDescent expects rate > 0, got {self.rate}.")

    def step(self, z: Tensor, r: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Increment rate r."""
        return self.rate * r, state

    def frozen(self, state: State) -> Callable[[Tensor], Tensor]:
        """The step itself: it is linear."""
        return lambda r: self.rate * r


@dataclass(frozen=True)
class Adam(Solver):
    """z <- z + rate m / (sqrt(s) + eps rms(sqrt(s))), m and s the bias-corrected averages of r and r^2.

    Kingma and Ba 2015, but `eps` is relative: it multiplies the root mean square of sqrt(s) over the sample,
    so r and any constant times r give the same increments. `rate` is therefore in the unit of z (voxels), about
    the length of the first step. A large `eps` (1e-2) holds back elements whose residuals are small.
    """

    rate: float = 0.3
    beta1: float = 0.5
    beta2: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.eps < 0:
            raise ValueError(f"Adam expects rate > 0 and eps >= 0, got {self.rate} and {self.eps}.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"Adam expects 0 <= beta1, beta2 < 1, got {self.beta1} and {self.beta2}.")

    def init(self, z: Tensor) -> State:
        """Averages m and s (b, ...), zero, and the steps taken by each sample (b,)."""
        return torch.zeros_like(z), torch.zeros_like(z), z.new_zeros(len(z), dtype=torch.float64)

    def step(self, z: Tensor, r: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Increment along the averaged residual, each element divided by its own root mean square."""
        m, s, count = state
        new1: float | Tensor = 1 - self.beta1
        new2: float | Tensor = 1 - self.beta2
        if active is not None:
            on = spread(active, z).to(z.dtype)
            new1, new2 = on * new1, on * new2
        count = count + (1 if active is None else active)
        factor = spread(self._factor(count), z).to(z.dtype)
        tiny = torch.finfo(z.dtype).tiny
        if torch.is_grad_enabled():
            m, s = torch.lerp(m, r, new1), torch.lerp(s, r.square(), new2)
            # sqrt(s) has no derivative where s = 0; the smallest number there makes it finite
            return factor * m / ((s + tiny).sqrt() + self.eps * _rms(s + tiny)), (m, s, count)
        m, s = m.lerp_(r, new1), s.lerp_(r.square_(), new2)
        delta = torch.sqrt(s, out=r).add_(self.eps * _rms(s) + tiny)
        return torch.div(m, delta, out=delta).mul_(factor), (m, s, count)

    def frozen(self, state: State) -> Callable[[Tensor], Tensor]:
        """The map r -> rate r / ((1 - beta1^t) (sqrt(s) + eps rms)) with s of the last step (bias-corrected).

        As in DIO's phantom step, r is not averaged into m. Elements that never had a residual stay where they
        are, and a sample that took no step moves by rate r.
        """
        s, count = state[1].detach(), state[2]
        rms = _rms(s)
        factor = spread(self._factor(count), s).to(s.dtype)
        scale = torch.where(s > 0, factor / (s.sqrt() + self.eps * rms), 0)
        scale = torch.where(rms > 0, scale, self.rate)
        return lambda r: scale * r

    def _factor(self, count: Tensor) -> Tensor:
        """Rate corrected for the bias of both averages, rate sqrt(1 - beta2^t) / (1 - beta1^t), shape (b,)."""
        return self.rate * (1 - self.beta2**count).sqrt() / (1 - self.beta1**count)


def _rms(s: Tensor) -> Tensor:
    """Root of the mean of s over each sample, shape (b, 1, ..., 1)."""
    return spread(s.flatten(1).mean(1).sqrt(), s)
