"""A test pair brought to rest, and what a gradient of its loss is taken with respect to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dio_lightning.implicit import (
    Adjoint,
    AdjointReport,
    Anderson,
    Never,
    Residual,
    Solution,
    UnrolledAdjoint,
    Update,
    iterate,
)
from dio_lightning.implicit.adjoints import Solve
from dio_lightning.layers.optimizer import pyramid
from dio_lightning.losses import at_size
from dio_lightning.modules import DIO, DEQReg
from dio_lightning.pair import Pair

TIGHT = Residual(1e-5)


@dataclass(frozen=True)
class Equilibrium:
    """A solution and the maps around it; adjoints differ in nothing but how they join them."""

    update: Update
    start: Tensor
    """z0 (b, ...) of the solve as it is trained."""
    solution: Solution
    """Without a graph."""
    solve: Solve
    """The solve as it is trained, from z0."""
    steps: int
    """How many steps that one takes, at most."""
    loss: Callable[[Tensor], Tensor]
    """The training loss of a state (b, ...)."""
    leaves: Sequence[Tensor]
    """What the update holds: weights, or features."""
    to_weights: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    """Gradients of the leaves to gradients of the weights."""
    again: "Callable[[], Equilibrium] | None" = None
    """The same once more, where the update holds a graph, which a gradient uses up."""

    def fresh(self) -> "Equilibrium":
        """An equilibrium of which no gradient has been taken."""
        return self if self.again is None else self.again()

    def gradient(self, adjoint: Adjoint | None) -> tuple[Tensor, Solution]:
        """dL/dθ of all weights, flat, and the solution that it passed; None unrolls the solve as it is trained."""
        if adjoint is None:
            found = UnrolledAdjoint()(self.solve, self.update, self.start)
        else:
            solution = replace(self.solution, backward=AdjointReport())
            found = adjoint(lambda _: solution, self.update, self.start)
        loss = self.loss(found.value)
        of_leaves = torch.autograd.grad(loss, list(self.leaves), allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in self.to_weights(of_leaves)]), found


def of_deqreg(module: DEQReg, pair: Pair, max_steps: int) -> Equilibrium:
    """The fixed point, by Anderson's steps until the relative residual is 1e-5 or `max_steps` are taken."""
    (problem, start), work, objective = module.problem(pair), module.work(pair), module.objective
    assert objective is not None

    def solve(z: Tensor) -> Solution:
        return iterate(
            problem.update, z, module.layer.solver, max_steps=module.steps, stop=Never(), advance=problem.advance
        )

    with torch.no_grad():
        solution = iterate(problem.update, start, Anderson(), max_steps=max_steps, stop=TIGHT, advance=problem.advance)
    return Equilibrium(
        problem.update,
        start,
        solution,
        solve,
        module.steps,
        lambda z: objective(work, problem.displacement(z))["loss"],
        [p for p in module.parameters() if p.requires_grad],
        lambda gradients: gradients,
    )


def of_dio(module: DIO, pair: Pair) -> Equilibrium:
    """The finest level as it is trained, its start by the coarser ones; gradients pass its features alone."""
    work, objective, layer, steps = module.work(pair), module.objective, module.layer, module.steps
    assert objective is not None
    fixed, moving, grids = module.pyramids(work, pair)
    size = work["fixed"].shape[2:]
    levels, weights = pyramid(fixed, moving, grids, size, work), [p for p in module.parameters() if p.requires_grad]
    start, small = layer.finest(levels, size)[1].detach(), at_size(work, fixed[-1].shape[2:])

    def to_weights(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        finest = [fixed[-1], moving[-1]]
        return torch.autograd.grad(
            finest, weights, list(gradients), retain_graph=True, allow_unused=True, materialize_grads=True
        )

    def solved() -> Equilibrium:
        f, m = (features[-1].detach().requires_grad_() for features in (fixed, moving))
        problem = layer.problem(replace(levels[-1], fixed=f, moving=m), size)

        def solve(z: Tensor) -> Solution:
            return iterate(problem.update, z, layer.solver, max_steps=steps, stop=layer.stop, advance=problem.advance)

        with torch.no_grad():
            solution = solve(start)

        def loss(z: Tensor) -> Tensor:
            return objective(small, problem.displacement(z))["loss"]

        return Equilibrium(problem.update, start, solution, solve, steps, loss, [f, m], to_weights, solved)

    return solved()
