"""A test pair brought to rest, and gradients of its loss by any adjoint."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
    UnrolledAdjoint,
    iterate,
    spectral_radius,
)
from dio_lightning.layers import Problem
from dio_lightning.layers.optimizer import pyramid
from dio_lightning.level import Level
from dio_lightning.losses import at_size
from dio_lightning.modules import DIO, DEQReg
from dio_lightning.pair import Pair

TIGHT = Residual(1e-5)


@dataclass(frozen=True)
class Equilibrium:
    """A finest level at rest; adjoints differ in nothing but how they join its solution to its problem."""

    module: DIO | DEQReg
    pair: Pair
    """On the grid of the level."""
    level: Level
    """Its features hold the graph to the weights; those of the problem are cut from it."""
    problem: Problem
    start: Tensor
    """z0 (b, ...) of the solve as it is trained."""
    solution: Solution
    """Without a graph."""
    cut: Sequence[Tensor]
    """Features of the problem, if they are learned: the gradient passes them."""
    again: "Callable[[], Equilibrium] | None"
    """The same once more, where the update holds a graph, which a gradient uses up."""

    def fresh(self) -> "Equilibrium":
        """An equilibrium of which no gradient has been taken."""
        return self if self.again is None else self.again()

    @property
    def leaves(self) -> list[Tensor]:
        """What the problem depends on: features, and weights of the layer."""
        return [*self.cut, *(p for p in self.module.layer.parameters() if p.requires_grad)]

    def gradient(self, adjoint: Adjoint | None) -> tuple[Tensor, AdjointReport]:
        """dL/dθ of all weights, flat, and how it was found; None unrolls the solve as it is trained."""
        if adjoint is None:
            end = _as_trained(self.module, self.problem, self.start)
        else:
            solution = replace(self.solution, backward=AdjointReport())
            end = adjoint(lambda _: solution, self.problem.update, self.start)
        assert self.module.objective is not None
        loss = self.module.objective(self.pair, self.problem.displacement(end.value))["loss"]
        leaves, weights = self.leaves, [p for p in self.module.parameters() if p.requires_grad]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ImplicitAdjoint reached")  # the table says where it did not converge
            of = dict(zip(map(id, leaves), _gradients([loss], leaves), strict=True))
        through = [of.get(id(p)) for p in weights]
        if self.cut:
            features = [self.level.fixed, self.level.moving]
            passed = _gradients(features, weights, [of[id(x)] for x in self.cut])
            through = [g if own is None else g + own for g, own in zip(passed, through, strict=True)]
        return torch.cat([gradient.flatten() for gradient in through if gradient is not None]), end.backward


def equilibrium(module: DIO | DEQReg, pair: Pair, max_steps: int, rest: int = 0) -> Equilibrium:
    """The finest level at rest, from where the coarser ones have ended.

    A DEQReg takes Anderson's steps until the relative residual is 1e-5 or `max_steps` are taken; DIO is solved as it is
    trained, and goes on by at most `rest` of Anderson's steps. It comes to rest only where its energy is smooth and
    regularised (`SplineDistance`, λ > 0, no smoothing of the field).
    """
    work = module.work(pair)
    fixed, moving, grids = module.pyramids(work, pair)
    size = work["fixed"].shape[2:]
    levels = pyramid(fixed, moving, grids, size, work)
    start = module.layer.finest(levels, size)[1].detach()
    level, pair = levels[-1], at_size(work, levels[-1].size)
    solved: list[Solution] = []

    def at_rest() -> Equilibrium:
        f, m = (x.detach().requires_grad_(x.requires_grad) for x in (level.fixed, level.moving))
        problem = module.layer.problem(replace(level, fixed=f, moving=m), size)
        with torch.no_grad():
            if isinstance(module, DEQReg):
                advance = problem.advance
                solution = iterate(problem.update, start, Anderson(), max_steps=max_steps, stop=TIGHT, advance=advance)
            else:
                trained = _as_trained(module, problem, start)
                if not solved:  # once: what a gradient uses up is the graph of the step, not where the solve ended
                    solved.append(_rested(problem, trained, rest) if rest else trained)
                solution = replace(solved[0], step=trained.step)
        cut = [x for x in (f, m) if x.requires_grad]
        return Equilibrium(module, pair, level, problem, start, solution, cut, at_rest if cut else None)

    return at_rest()


def _rested(problem: Problem, solution: Solution, max_steps: int) -> Solution:
    """The solution brought to rest."""
    damped = Anderson(15, damping=0.8)  # a descent step of full length overshoots
    return iterate(problem.update, solution.value, damped, max_steps=max_steps, stop=TIGHT, advance=problem.advance)


def _as_trained(module: DIO | DEQReg, problem: Problem, start: Tensor) -> Solution:
    """The solve as it is trained, with the graph of all its steps where gradients are enabled."""
    stop = Never() if isinstance(module, DEQReg) else None
    return module.layer.solve(problem, start, module.steps, UnrolledAdjoint(), stop)


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], arriving: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Of the outputs with respect to the inputs, zero where they do not depend on one."""
    return torch.autograd.grad(
        list(outputs), list(inputs), arriving, retain_graph=bool(arriving), allow_unused=True, materialize_grads=True
    )


def reference_of(problem: Equilibrium, exact: ImplicitAdjoint, unrolled: int) -> tuple[Tensor, dict[str, float]]:
    """The gradient that others are compared with, and how it and the solution were found, the worst of the batch.

    "reference" is the number of unrolled steps, 0 for the exact gradient; "reference_change" how much the second half
    of them changes it: near 1, it grows and is no reference.
    """
    gradient, report = problem.fresh().gradient(exact)
    solution, change = problem.solution, math.nan
    implicit = report.converged is not None and bool(report.converged.all())
    if not implicit:
        # one step at a time: hundreds of graphs would not fit
        half, gradient = (
            problem.fresh().gradient(PhantomAdjoint(steps, checkpointed=True))[0]
            for steps in ((unrolled + 1) // 2, unrolled)
        )
        change = float((half - gradient).norm() / gradient.norm())
    radius = spectral_radius(problem.problem.update, solution.value, generator=torch.Generator().manual_seed(0))
    about = {"reference": 0 if implicit else unrolled, "reference_change": change}
    about |= {"residual": float(solution.residual.max()), "solve_steps": int(solution.steps.max())}
    return gradient, about | {"spectral_radius": float(radius.max())}


def memory_of(problem: Equilibrium, adjoint: Adjoint | None) -> tuple[float, float]:
    """MiB: most tensors saved, and most alive, at once, beyond weights, features and the solution."""
    problem = problem.fresh()
    apart = [*problem.leaves, problem.start, problem.solution.value]
    with SavedTensors(apart) as saved, LiveTensors(apart) as tensors:
        problem.gradient(adjoint)
    return saved.peak / MIB, tensors.peak / MIB


def compare(gradient: Tensor, reference: Tensor) -> tuple[float, float]:
    """Cosine and ratio of norms; NaN where one is zero or not finite."""
    a, b = gradient.double(), reference.double()
    return float((a / a.norm()) @ (b / b.norm())), float(a.norm() / b.norm())
