"""Descent methods: they read -r = z - f(z) as the gradient of an energy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dio_lightning import ops
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

    With a constant rate the steps do not become small where a minimum lies in a kink, as those of linearly interpolated
    images do: an image that differs in its last digit then ends a tenth of a voxel elsewhere. With `decay` 0.5 the rate
    falls with the root of the steps taken, as subgradient methods ask for, and such images end a tenth as far apart.
    """

    rate: float = 0.3
    beta1: float = 0.5
    beta2: float = 0.99
    eps: float = 1e-8
    decay: float = 0.0
    """The rate of step t is rate / t^decay."""

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.eps < 0:
            raise ValueError(f"Adam expects rate > 0 and eps >= 0, got {self.rate} and {self.eps}.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"Adam expects 0 <= beta1, beta2 < 1, got {self.beta1} and {self.beta2}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"Adam expects 0 <= decay < 1, with which it gets anywhere, got {self.decay}.")

    def init(self, z: Tensor) -> State:
        """Averages m and s (b, ...), zero, and the steps taken by each sample (b,)."""
        return torch.zeros_like(z), torch.zeros_like(z), z.new_zeros(len(z), dtype=torch.float64)

    def step(self, z: Tensor, r: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Increment along the averaged residual, each element divided by its own root mean square."""
        m, s, count = state
        count = count + (1 if active is None else active)
        factor = self.factor(count).to(z.dtype)
        if not torch.is_grad_enabled():
            ops.adam_step(r, m, s, factor, active, self.beta1, self.beta2, self.eps)
            return r, (m, s, count)
        new1: float | Tensor = 1 - self.beta1
        new2: float | Tensor = 1 - self.beta2
        if active is not None:
            on = spread(active, z).to(z.dtype)
            new1, new2 = on * new1, on * new2
        m, s = torch.lerp(m, r, new1), torch.lerp(s, r.square(), new2)
        # sqrt(s) has no derivative where s = 0; the smallest number there makes it finite
        tiny = torch.finfo(z.dtype).tiny
        return spread(factor, z) * m / ((s + tiny).sqrt() + self.eps * _rms(s + tiny)), (m, s, count)

    def frozen(self, state: State) -> Callable[[Tensor], Tensor]:
        """The map r -> rate r / ((1 - beta1^t) (sqrt(s) + eps rms)) with s of the last step (bias-corrected).

        As in DIO's phantom step, r is not averaged into m. Elements that never had a residual stay where they
        are, and a sample that took no step moves by rate r.
        """
        return _Frozen(self, state[1].detach(), state[2])

    def scale(self, s: Tensor, count: Tensor) -> Tensor:
        """What `frozen` multiplies by, of the shape of s (b, ...)."""
        rms = _rms(s)
        factor = spread(self.factor(count), s).to(s.dtype)
        scale = torch.where(s > 0, factor / (s.sqrt() + self.eps * rms), 0)
        return torch.where(rms > 0, scale, self.rate)

    def factor(self, count: Tensor) -> Tensor:
        """Rate corrected for the bias of both averages, rate t^-decay sqrt(1 - beta2^t) / (1 - beta1^t), shape (b,)."""
        rate = self.rate * count.clamp(min=1) ** -self.decay if self.decay else self.rate
        return rate * (1 - self.beta2**count).sqrt() / (1 - self.beta1**count)


class _Frozen:
    """r to scale r; the scale is computed when it is first asked for, which a solve without an adjoint never does."""

    def __init__(self, solver: Adam, s: Tensor, count: Tensor) -> None:
        self._solver, self._s, self._count = solver, s, count
        self._scale: Tensor | None = None

    def __call__(self, r: Tensor) -> Tensor:
        if self._scale is None:
            self._scale, self._s = self._solver.scale(self._s, self._count), self._count
        return self._scale * r


def _rms(s: Tensor) -> Tensor:
    """Root of the mean of s over each sample, shape (b, 1, ..., 1)."""
    return spread(s.flatten(1).mean(1).sqrt(), s)
