"""A test pair brought to rest, and gradients of its loss by any adjoint."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dio_lightning.footprint import MIB, LiveTensors, SavedTensors
from dio_lightning.implicit import (
    Adjoint,
    AdjointReport,
    Anderson,
    ImplicitAdjoint,
    Never,
    PhantomAdjoint,
    Residual,
    Solution,
    Solver,
    StopRule,
    UnrolledAdjoint,
    iterate,
    spectral_radius,
)
from dio_lightning.layers import Problem
from dio_lightning.layers.optimizer import pyramid
from dio_lightning.losses import at_size
from dio_lightning.modules import DIO, DEQReg
from dio_lightning.pair import Pair

TIGHT = Residual(1e-5)


@dataclass(frozen=True)
class Equilibrium:
    """A solution and the problem that it solves; adjoints differ in nothing but how they join them."""

    problem: Problem
    start: Tensor
    """z0 (b, ...) of the solve as it is trained."""
    solution: Solution
    """Without a graph."""
    solve: Callable[[Tensor], Solution]
    """The solve as it is trained, from z0."""
    steps: int
    """How many steps that one takes, at most."""
    loss: Callable[[Tensor], Tensor]
    """The training loss of a state (b, ...)."""
    leaves: Sequence[Tensor]
    """What the update holds: features, and weights of its own."""
    to_weights: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    """Gradients of the leaves to gradients of the weights."""
    again: "Callable[[], Equilibrium] | None" = None
    """The same once more, where the update holds a graph, which a gradient uses up."""

    def fresh(self) -> "Equilibrium":
        """An equilibrium of which no gradient has been taken."""
        return self if self.again is None else self.again()

    def gradient(self, adjoint: Adjoint | None) -> tuple[Tensor, AdjointReport]:
        """dL/dθ of all weights, flat, and how it was found; None unrolls the solve as it is trained."""
        if adjoint is None:
            end = UnrolledAdjoint()(self.solve, self.problem.update, self.start)
        else:
            solution = replace(self.solution, backward=AdjointReport())
            end = adjoint(lambda _: solution, self.problem.update, self.start)
        loss = self.loss(end.value)
        of_leaves = torch.autograd.grad(loss, list(self.leaves), allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in self.to_weights(of_leaves)]), end.backward


def equilibrium(module: DIO | DEQReg, pair: Pair, max_steps: int) -> Equilibrium:
    """The finest level at rest; it starts where the coarser ones have ended.

    A DEQReg takes Anderson's steps until the relative residual is 1e-5 or `max_steps` are taken; DIO is solved as it is
    trained. Gradients pass the features of this level and the weights of the layer.
    """
    work, layer, objective, steps = module.work(pair), module.layer, module.objective, module.steps
    assert objective is not None
    fixed, moving, grids = module.pyramids(work, pair)
    size = work["fixed"].shape[2:]
    levels, small = pyramid(fixed, moving, grids, size, work), at_size(work, fixed[-1].shape[2:])
    start = layer.finest(levels, size)[1].detach()
    features = [x for x in (fixed[-1], moving[-1]) if x.requires_grad]
    weights = [p for p in module.parameters() if p.requires_grad]
    own = [p for p in layer.parameters() if p.requires_grad]
    deqreg = isinstance(module, DEQReg)

    def to_weights(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        direct = dict(zip(own, gradients[len(features) :], strict=True))
        if not features:
            return [direct[p] for p in weights]
        through = torch.autograd.grad(
            features,
            weights,
            list(gradients[: len(features)]),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return [g + direct[p] if p in direct else g for p, g in zip(weights, through, strict=True)]

    def solved() -> Equilibrium:
        f, m = (x.detach().requires_grad_(x.requires_grad) for x in (fixed[-1], moving[-1]))
        problem = layer.problem(replace(levels[-1], fixed=f, moving=m), size)

        def solve(
            z: Tensor, solver: Solver = layer.solver, most: int = steps, stop: StopRule | None = None
        ) -> Solution:
            stop = stop or (Never() if deqreg else layer.stop)
            return iterate(problem.update, z, solver, max_steps=most, stop=stop, advance=problem.advance)

        with torch.no_grad():
            solution = solve(start, Anderson(), max_steps, TIGHT) if deqreg else solve(start)
        return Equilibrium(
            problem,
            start,
            solution,
            solve,
            steps,
            lambda z: objective(small, problem.displacement(z))["loss"],
            [*(x for x in (f, m) if x.requires_grad), *own],
            to_weights,
            solved if features else None,
        )

    return solved()


@dataclass(frozen=True)
class Differentiated:
    """dL/dθ of all weights, flat, how the adjoint found it, and the seconds that it took."""

    gradient: Tensor
    report: AdjointReport
    seconds: float

    @property
    def residual(self) -> float:
        """GMRES's worst, NaN for other adjoints."""
        return math.nan if self.report.residual is None else float(self.report.residual.max())


def differentiate(problem: Equilibrium, adjoint: Adjoint | None) -> Differentiated:
    """The gradient by an adjoint; None unrolls the solve as it is trained."""
    problem = problem.fresh()
    start = time.perf_counter()
    with _quiet():
        gradient, report = problem.gradient(adjoint)
    if gradient.device.type == "cuda":
        torch.cuda.synchronize(gradient.device)
    return Differentiated(gradient, report, time.perf_counter() - start)


def reference_of(problem: Equilibrium, exact: ImplicitAdjoint, unrolled: int) -> tuple[Tensor, dict[str, float]]:
    """The gradient that others are compared with, and how it and the solution were found, the worst of the batch.

    "reference" is the number of unrolled steps, 0 for the exact gradient; "reference_change" how much the second half
    of them changes it: near 1, it grows and is no reference.
    """
    found = differentiate(problem, exact)
    gradient, converged, change = found.gradient, found.report.converged, math.nan
    implicit = converged is not None and bool(converged.all())
    if not implicit:
        # one step at a time: hundreds of graphs would not fit
        half, gradient = (
            differentiate(problem, PhantomAdjoint(steps, checkpointed=True)).gradient
            for steps in ((unrolled + 1) // 2, unrolled)
        )
        change = float((half - gradient).norm() / gradient.norm())
    solution = problem.solution
    radius = spectral_radius(problem.problem.update, solution.value, generator=torch.Generator().manual_seed(0))
    about = {"reference": 0 if implicit else unrolled, "reference_change": change}
    about |= {"residual": float(solution.residual.max()), "solve_steps": int(solution.steps.max())}
    return gradient, about | {"spectral_radius": float(radius.max())}


def memory_of(problem: Equilibrium, adjoint: Adjoint | None) -> tuple[float, float]:
    """MiB: most tensors saved, and most alive, at once, beyond weights, features and the solution."""
    problem = problem.fresh()
    held = [*problem.leaves, problem.start, problem.solution.value]
    with SavedTensors(held) as saved, LiveTensors(held) as tensors, _quiet():
        problem.gradient(adjoint)
    return saved.peak / MIB, tensors.peak / MIB


def compare(gradient: Tensor, reference: Tensor) -> tuple[float, float]:
    """Cosine and ratio of norms; NaN where one is zero or not finite."""
    a, b = gradient.double(), reference.double()
    return float((a / a.norm()) @ (b / b.norm())), float(a.norm() / b.norm())


@runtime_checkable
class _Rounded(Protocol):
    """A network that may compute in bfloat16."""

    precision: str


def compute_in_float32(module: nn.Module) -> None:
    """Switch bfloat16 off in every network of a method."""
    for part in module.modules():
        if isinstance(part, _Rounded):
            part.precision = "float32"


@contextmanager
def _quiet() -> Iterator[None]:
    """Where GMRES does not converge, the table says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ImplicitAdjoint reached")
        yield
