"""How dz*/dtheta is found, theta being all that the update closes over: features, images, network weights.

An adjoint sees the solve as a black box. Where gradients are disabled, each of them just solves.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from dio_lightning.implicit.batch import spread
from dio_lightning.implicit.conjugate import conjugate_gradients
from dio_lightning.implicit.gmres import gmres
from dio_lightning.implicit.solution import AdjointReport, Solution, Update

Solve = Callable[[Tensor], Solution]


class Adjoint(ABC):
    """Runs a solve and makes its value differentiable."""

    @abstractmethod
    def __call__(self, solve: Solve, update: Update, z0: Tensor) -> Solution:
        """Solution of solve(z0), z0 (b, ...), whose value carries gradients; `update` is one plain step."""


@dataclass(frozen=True)
class UnrolledAdjoint(Adjoint):
    """Backpropagate through all iterates; memory grows with the number of steps."""

    def __call__(self, solve: Solve, update: Update, z0: Tensor) -> Solution:
        """The solve itself, recorded."""
        return solve(z0)


@dataclass(frozen=True)
class PhantomAdjoint(Adjoint):
    """Backpropagate through `steps` steps at the fixed point, z <- (1 - damping) step(z) + damping z.

    One undamped step is Jacobian-free backpropagation (JFB). The step is the solver's own with its state frozen,
    or the plain update. The value is that after these steps.

    `checkpointed`: the backward pass recomputes one step at a time, so that memory is that of one step for any
    number; it costs one more evaluation a step. The step must then compute the same when called again.
    """

    steps: int = 1
    damping: float = 0.0
    checkpointed: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.damping < 1:
            raise ValueError(
                f"PhantomAdjoint expects steps >= 1 and 0 <= damping < 1, got {self.steps} and {self.damping}."
            )

    def __call__(self, solve: Solve, update: Update, z0: Tensor) -> Solution:
        """Solve without a graph, then record the phantom steps."""
        with torch.no_grad():
            solution = solve(z0)
        if not torch.is_grad_enabled():
            return solution
        step = solution.step or update
        z = start = _start(solution, z0)
        hold = solution.failed if bool(solution.failed.any()) else None

        def damped(z: Tensor) -> Tensor:
            stepped = step(z)
            stepped = stepped if self.damping == 0 else torch.lerp(stepped, z, self.damping)
            return stepped if hold is None else torch.where(spread(hold, z), start, stepped)

        for _ in range(self.steps):
            z = checkpoint(damped, z, use_reentrant=False, preserve_rng_state=False) if self.checkpointed else damped(z)
        return _attach(solution, z)


@dataclass(frozen=True)
class ImplicitAdjoint(Adjoint):
    """Implicit function theorem: dL/dtheta = w^T df/dtheta with (I - J^T) w = dL/dz*, J = df/dz at z*.

    The value is update(z*), one evaluation on from the solver's z* and equal to it up to the solver's tolerance.
    The system is solved in the backward pass by GMRES(restart) with at most `max_steps` products J^T w; `update`
    must treat samples independently. How it went is in `Solution.backward`; a warning tells when `rtol` is missed;
    a sample whose w is not finite uses dL/dz* itself (JFB). J must not have 1 as an eigenvalue.

    `symmetric`: conjugate gradients in the place of GMRES, which keep four fields however many products, and no
    `restart` + 1. Right where the update descends on an energy without smoothing its gradient and z* is a strict
    minimum, so that I - J, the Hessian, is symmetric and positive definite; where it is not positive definite, that
    counts as not finite.
    """

    rtol: float = 1e-6
    max_steps: int = 50
    restart: int = 20
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.rtol <= 0 or self.max_steps < 1 or self.restart < 1:
            raise ValueError(
                "ImplicitAdjoint expects rtol > 0, max_steps >= 1 and restart >= 1, "
                f"got {self.rtol}, {self.max_steps} and {self.restart}."
            )

    def __call__(self, solve: Solve, update: Update, z0: Tensor) -> Solution:
        """Solve without a graph, then attach one evaluation of the update with the implicit gradient."""
        with torch.no_grad():
            solution = solve(z0)
        if not torch.is_grad_enabled():
            return solution
        z = _start(solution, z0).requires_grad_()
        fz = update(z)

        def implicit_gradient(v: Tensor) -> Tensor:
            return self._solve(fz, z, v, solution.backward)

        return _attach(solution, _Reattach.apply(fz, implicit_gradient))

    def _solve(self, fz: Tensor, z: Tensor, v: Tensor, report: AdjointReport) -> Tensor:
        """Solution w of (I - J^T) w = v (b, ...), noted in `report`."""

        def product(w: Tensor) -> Tensor:
            (back,) = torch.autograd.grad(fz, z, w, retain_graph=True, materialize_grads=True)
            return w - back

        solved = (
            conjugate_gradients(product, v, rtol=self.rtol, max_steps=self.max_steps)
            if self.symmetric
            else gmres(product, v, rtol=self.rtol, max_steps=self.max_steps, restart=self.restart)
        )
        w, residual, report.steps = solved
        report.residual, report.converged = residual, residual <= self.rtol
        if not bool(report.converged.all()):
            warnings.warn(
                f"ImplicitAdjoint reached relative residuals {residual.tolist()} instead of {self.rtol} "
                f"after {report.steps} products.",
                stacklevel=2,
            )
        return torch.where(spread(residual.isfinite(), v), w, v)


class _Context(Protocol):
    gradient: Callable[[Tensor], Tensor]


class _Reattach(torch.autograd.Function):
    """Identity whose backward replaces the incoming gradient by `gradient` of it."""

    @staticmethod
    def forward(ctx: _Context, value: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.gradient = gradient
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, v: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.gradient(v), None


def _start(solution: Solution, z0: Tensor) -> Tensor:
    """The detached z*; a failed sample, where the update may give NaN, is evaluated at z0 instead."""
    z = solution.value.detach()
    if bool(solution.failed.any()):
        z = torch.where(spread(solution.failed, z), z0.detach(), z)
    return z


def _attach(solution: Solution, value: Tensor) -> Solution:
    """The solution with a differentiable value; failed samples keep theirs, without gradient."""
    if bool(solution.failed.any()):
        value = torch.where(spread(solution.failed, value), solution.value.detach(), value)
    return replace(solution, value=value)
