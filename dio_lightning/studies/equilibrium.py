"""A test pair brought to rest, and gradients of its loss by any adjoint."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dio_lightning.fields import Grid, regrid, spanning
from dio_lightning.implicit import (
    Adjoint,
    AdjointReport,
    Anderson,
    ImplicitAdjoint,
    Never,
    PhantomAdjoint,
    Residual,
    Solution,
    UnrolledAdjoint,
    Update,
    iterate,
    spectral_radius,
)
from dio_lightning.implicit.adjoints import Solve
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import at_size
from dio_lightning.modules import DIO, DEQReg, RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.studies.live import MIB, LiveTensors, SavedTensors

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
        gradient, solution = problem.gradient(adjoint)
    if gradient.device.type == "cuda":
        torch.cuda.synchronize(gradient.device)
    return Differentiated(gradient, solution.backward, time.perf_counter() - start)


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
    radius = spectral_radius(problem.update, solution.value, generator=torch.Generator().manual_seed(0))
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


def compute_in_float32(module: RegistrationModule) -> None:
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


def of(module: RegistrationModule, pair: Pair, max_steps: int) -> Equilibrium:
    """A DEQReg at its fixed point, after `max_steps` at most, or a DIO solved as it is configured."""
    if isinstance(module, DEQReg):
        return of_deqreg(module, pair, max_steps)
    assert isinstance(module, DIO)
    return of_dio(module, pair)


def of_deqreg(module: DEQReg, pair: Pair, max_steps: int) -> Equilibrium:
    """The fixed point, by Anderson's steps until the relative residual is 1e-5 or `max_steps` are taken."""
    work, objective, model = module._work(pair), module.objective, module.transformation
    assert objective is not None
    update = module.update.on(work["fixed"], work["moving"], model)
    start, size = model.initial(work["fixed"]), work["fixed"].shape[2:]

    def solve(z: Tensor) -> Solution:
        steps, retract = module.max_steps, model.retract
        return iterate(update, z, module.solver, max_steps=steps, stop=Never(), advance=retract)

    with torch.no_grad():
        solution = iterate(update, start, Anderson(), max_steps=max_steps, stop=TIGHT, advance=model.retract)
    return Equilibrium(
        update,
        start,
        solution,
        solve,
        module.max_steps,
        lambda z: objective(work, model.displacement(z, size))["loss"],
        [p for p in module.parameters() if p.requires_grad],
        lambda gradients: gradients,
    )


def of_dio(module: DIO, pair: Pair) -> Equilibrium:
    """The finest level as it is trained, its start by the coarser ones; gradients pass its features alone."""
    work, objective, layer = module._work(pair), module.objective, copy.copy(module.layer)
    assert objective is not None
    levels = module.features.levels[: int(module.open_levels)]
    steps, model = layer.iterations[len(levels) - 1], layer.transformation
    fixed, moving = module.features(work["fixed"], levels), module.features(work["moving"], levels)
    weights = [p for p in module.features.parameters() if p.requires_grad]

    def to_weights(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        finest = [fixed[-1], moving[-1]]
        return torch.autograd.grad(
            finest, weights, list(gradients), retain_graph=True, allow_unused=True, materialize_grads=True
        )

    whole, grids = work["fixed"].shape[2:], module.features.grids(work["fixed"].shape[2:], levels)
    start, size = _start(layer, fixed, moving, grids), grids[-1].size
    small = at_size(work, size)

    def loss(z: Tensor) -> Tensor:
        u = regrid(model.displacement(z, size), grids[-1], spanning(whole, size))
        return objective(small, u)["loss"]

    def solved() -> Equilibrium:
        f, m = (features[-1].detach().requires_grad_() for features in (fixed, moving))
        layer.adjoint = seen = _Seen()
        solution = layer.solve(f, m, start, steps)
        assert seen.solve is not None and seen.update is not None
        return Equilibrium(seen.update, start, solution, seen.solve, steps, loss, [f, m], to_weights, solved)

    return solved()


def _start(layer: OptimizerLayer, fixed: Sequence[Tensor], moving: Sequence[Tensor], grids: Sequence[Grid]) -> Tensor:
    """Parameters at which the finest level starts in training, where the phantom steps of coarser ones count."""
    model = layer.transformation
    z = model.initial(fixed[0])
    for level, (f, m, steps) in enumerate(zip(fixed[:-1], moving[:-1], layer.iterations, strict=False)):
        z = layer.solve(f, m, z, steps).value.detach()
        z = model.regrid(z, grids[level], grids[level + 1])
    return z


class _Seen(Adjoint):
    """Solves without a graph, and keeps the solve and the update that it was given."""

    def __init__(self) -> None:
        self.solve: Solve | None = None
        self.update: Update | None = None

    def __call__(self, solve: Solve, update: Update, z0: Tensor) -> Solution:
        self.solve, self.update = solve, update
        with torch.no_grad():
            return solve(z0)
