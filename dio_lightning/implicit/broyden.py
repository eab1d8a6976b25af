"""Broyden's good method with limited memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dio_lightning.implicit.batch import accumulate, dot, norm, spread
from dio_lightning.implicit.solvers import Solver, State

Terms = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Broyden(Solver):
    """Root of g(z) = f(z) - z by z <- z - (1 - damping) H g(z), H = -I + sum_i u_i v_i^T for each sample.

    After each step H meets the secant condition H dg = dz (Broyden 1965, the "good" update by Sherman-Morrison):
    v = H^T dz, u = (dz - H dg) / v^T dg. After `window` terms H starts again from -I, because dropping only the
    oldest term diverges on stiff problems. Keeps at most 2 (`window` + 1) fields.
    """

    window: int = 8
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.window < 1 or not 0 <= self.damping < 1:
            raise ValueError(f"Broyden expects window >= 1, 0 <= damping < 1, got {self.window}, {self.damping}.")

    def init(self, z: Tensor) -> State:
        """No terms u, v and no last pair (z, r)."""
        return (), (), None

    def step(self, z: Tensor, r: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
        """Increment -(1 - damping) H r."""
        us, vs, last = state
        if last is not None:
            us, vs = self._learn(z - last[0], r - last[1], (us, vs))
        delta = -_product(r, us, vs)
        if self.damping != 0:
            delta = (1 - self.damping) * delta
        return delta, (us, vs, (z, r))

    def _learn(self, dz: Tensor, dr: Tensor, terms: Terms) -> Terms:
        """The terms with that of the last step; no term (u = 0) where v and dg are orthogonal up to rounding."""
        us, vs = ((), ()) if len(terms[0]) == self.window else terms
        v = _product(dz, vs, us)
        u = dz - _product(dr, us, vs)
        pivot = dot(v, dr)
        usable = pivot.abs() > torch.finfo(dz.dtype).eps * norm(v) * norm(dr)
        u = u * spread(torch.where(usable, 1 / torch.where(usable, pivot, 1), 0), u)
        return (*us, u), (*vs, v)


def _product(x: Tensor, us: tuple[Tensor, ...], vs: tuple[Tensor, ...]) -> Tensor:
    """(-I + sum u v^T) x."""
    total = -x
    for u, v in zip(us, vs, strict=True):
        total = accumulate(total, dot(v, x), u)
    return total
