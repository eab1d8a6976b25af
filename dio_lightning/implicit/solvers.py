"""Fixed-point methods: one step each; the loop, the stop rule and the bookkeeping belong to `iterate`."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dio_lightning.implicit.batch import accumulate, dot, spread

State = tuple[Any, ...]


def identity(r: Tensor) -> Tensor:
    """The residual itself: the increment of the plain update."""
    return r


class Solver(ABC):
    """One step of a fixed-point method, as an increment; every sample of the batch is solved on its own."""

    def init(self, z: Tensor) -> State:
        """State before the first step at z (b, ...)."""
        return ()

    @abstractmethod
    def step(self, z: Tensor, r: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Increment (b, ...) proposed at z (b, ...) for the residual r = f(z) - z, and the next state.

        The solver may keep z and r and overwrite r and its own state, unless gradients are enabled.
        `active` (b,) bool marks the samples still iterated (None: all); r is 0 for the others, whose
        increment is ignored and whose part of what `frozen` reads must not change.
        """

    def frozen(self, state: State) -> Callable[[Tensor], Tensor]:
        """The linear map from residual to increment with the (detached) state held fixed; default: identity."""
        return identity


@dataclass(frozen=True)
class Picard(Solver):
    """z <- (1 - damping) f(z) + damping z."""

    damping: float = 0.0

    def __post_init__(self) -> None:
        _check_damping("Picard", self.damping)

    def step(self, z: Tensor, r: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Increment (1 - damping) r."""
        return (r if self.damping == 0 else (1 - self.damping) * r), state


@dataclass(frozen=True)
class Anderson(Solver):
    """Mixes the last `window` pairs (z_i, r_i) with weights a_i that sum to 1 and minimise ||sum a_i r_i||.

    z <- sum a_i (z_i + (1 - damping) r_i), a ~ (R R^T + ridge mean(diag R R^T) I)^-1 1 for each sample
    (Walker and Ni 2011). Keeps references to 2 `window` fields.
    """

    window: int = 6
    damping: float = 0.0
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        _check_damping("Anderson", self.damping)
        if self.window < 1 or self.ridge <= 0:
            raise ValueError(f"Anderson expects window >= 1 and ridge > 0, got {self.window} and {self.ridge}.")

    def init(self, z: Tensor) -> State:
        """No pairs yet: states, residuals, and the products of the residuals (b, k, k)."""
        return (), (), z.new_zeros(len(z), 0, 0, dtype=torch.float64)

    def step(self, z: Tensor, r: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Increment from z to the mixture of the pairs kept."""
        zs, rs, gram = state
        first = max(len(zs) + 1 - self.window, 0)
        zs, rs = (*zs[first:], z), (*rs[first:], r)
        gram = _extend(gram[:, first:, first:], rs)
        weights = self._weights(gram).unbind(1)
        delta = spread(weights[-1], r).to(r.dtype) * r
        for weight, ri in zip(weights[:-1], rs[:-1], strict=True):
            delta = accumulate(delta, weight, ri)
        if self.damping != 0:
            delta = (1 - self.damping) * delta
        for weight, zi in zip(weights[:-1], zs[:-1], strict=True):
            delta = accumulate(delta, weight, zi - z)
        return delta, (zs, rs, gram)

    def _weights(self, gram: Tensor) -> Tensor:
        """Mixing weights (b, k); the newest pair alone where they cannot be computed."""
        size = gram.shape[1]
        scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(gram.dtype).tiny)
        eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
        matrix = gram / scale[:, None, None] + self.ridge * eye
        solved, _ = torch.linalg.solve_ex(matrix, gram.new_ones(len(gram), size))
        weights = solved / solved.sum(1, keepdim=True)
        return torch.where(weights.isfinite().all(1, keepdim=True), weights, eye[-1])


def _extend(gram: Tensor, rs: tuple[Tensor, ...]) -> Tensor:
    """The products of all residuals (b, k, k), given those of all but the newest."""
    row = torch.stack([dot(ri, rs[-1]) for ri in rs], dim=1).to(gram.dtype)
    top = torch.cat([gram, row[:, :-1, None]], dim=2)
    return torch.cat([top, row[:, None]], dim=1)


def _check_damping(name: str, damping: float) -> None:
    if not 0 <= damping < 1:
        raise ValueError(f"{name} expects 0 <= damping < 1, got {damping}.")
