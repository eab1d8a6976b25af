"""The one entry: update, solver and adjoint meet here."""

import torch
from torch import Tensor

from dio_lightning.implicit.adjoints import Adjoint, PhantomAdjoint
from dio_lightning.implicit.iterate import Advance, Observe, iterate
from dio_lightning.implicit.solution import Solution, Update
from dio_lightning.implicit.solvers import Picard, Solver
from dio_lightning.implicit.stopping import Residual, StopRule


def fixed_point(
    update: Update,
    z0: Tensor,
    solver: Solver = Picard(),
    adjoint: Adjoint = PhantomAdjoint(),
    *,
    max_steps: int = 50,
    stop: StopRule = Residual(1e-3),
    advance: Advance = torch.add,
    observe: Observe | None = None,
    graphs: bool = False,
) -> Solution:
    """Find z (b, ...) with update(z) = z from z0; its gradient is the adjoint's. Options and errors as in `iterate`."""

    def solve(z: Tensor) -> Solution:
        return iterate(
            update, z, solver, max_steps=max_steps, stop=stop, advance=advance, observe=observe, graphs=graphs
        )

    return adjoint(solve, update, z0)
