"""The one loop."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dio_lightning.implicit.batch import finite, norm, spread
from dio_lightning.implicit.solution import Solution, Update
from dio_lightning.implicit.solvers import Solver, State, identity
from dio_lightning.implicit.stopping import Evaluation, Residual, StopRule

Advance = Callable[[Tensor, Tensor], Tensor]
"""(z, increment) -> next z, all (b, ...)."""
LOOK = 8
"""Evaluations between two looks at how many samples are still iterated, where a look waits for a GPU."""
SMALL = 2**22
"""Elements of a state that is looked at so seldom; beyond, holding stopped samples costs more than to wait."""
Observe = Callable[[int, Tensor, Evaluation | None], None]
"""(steps taken, z (b, ...), what f showed at z): sees every state from z0 on and must not change it."""


def iterate(
    update: Update,
    z0: Tensor,
    solver: Solver,
    *,
    max_steps: int = 50,
    stop: StopRule = Residual(1e-3),
    advance: Advance = torch.add,
    divergence: float = 1e6,
    observe: Observe | None = None,
) -> Solution:
    """Step from z0 (b, ...) towards update(z) = z until `stop` fires or `max_steps` are taken, sample by sample.

    A stopped sample keeps its value exactly while the others go on. A sample fails where the update or the
    step gives NaN or infinity, or where ||f(z) - z|| exceeds `divergence` times the larger of its first two values (the
    first alone is rounding where a solve starts at its solution); it returns its last finite state and does not touch
    the others. Records a graph through all steps if gradients are enabled.
    `observe` sees every state that is visited, z0 first, with the evaluation of f there; f is not evaluated at the last
    state where the steps run out, so that its evaluation is None.
    Raises ValueError for a z0 without batch axis, max_steps < 0, divergence <= 1, or an update that changes shape.
    """
    _check(z0, max_steps, divergence)
    z = z0 if torch.is_grad_enabled() else z0.detach()
    state = solver.init(z)
    tally = _Tally.start(z, divergence)
    memory = stop.init(tally.residual)
    every = 1 if observe is not None else _looks(z)
    for taken in range(max_steps):
        r, evaluation = _evaluate(update, z)
        if observe is not None:
            observe(taken, z, evaluation)
        fired, memory = stop(evaluation, memory)
        tally.see(evaluation, fired)
        count = int(tally.active.sum()) if taken % every == 0 else -1
        if count == 0:
            break
        # where nobody looks, the samples that have stopped are held by a mask, which no host has to read
        active = None if every == 1 and count == len(z) else tally.active
        if active is not None:
            r = torch.where(spread(active, r), r, 0)
        z, state = _move(solver, advance, z, r, state, active, tally)
        del r
    else:
        if observe is not None:
            observe(max_steps, z, None)
    frozen = solver.frozen(state)
    step = None if frozen is identity and advance is torch.add else _next_step(update, frozen, advance)
    return Solution(z, tally.residual, tally.steps, tally.converged, tally.failed, step)


@dataclass
class _Tally:
    """What is known of each sample, every tensor (b,)."""

    active: Tensor
    converged: Tensor
    failed: Tensor
    steps: Tensor
    residual: Tensor
    divergence: float
    limit: Tensor
    evaluations: int = 0

    @classmethod
    def start(cls, z: Tensor, divergence: float) -> "_Tally":
        off = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        residual = torch.full_like(off, torch.inf, dtype=torch.promote_types(z.dtype, torch.float32))
        return cls(
            ~off, off, off, torch.zeros_like(off, dtype=torch.int64), residual, divergence, torch.zeros_like(residual)
        )

    def see(self, evaluation: Evaluation, fired: Tensor) -> None:
        """Judge one evaluation."""
        residual = evaluation.residual
        if self.evaluations < 2:
            self.limit = torch.maximum(self.limit, torch.where(residual > 0, self.divergence * residual, torch.inf))
        self.evaluations += 1
        # written so that NaN counts as broken
        broken = ~((residual <= self.limit) & residual.isfinite())
        relative = (residual / (evaluation.norm + 1e-9)).nan_to_num(nan=torch.inf, posinf=torch.inf)
        self.residual = torch.where(self.active, relative, self.residual)
        self.failed = self.failed | (self.active & broken)
        self.converged = self.converged | (self.active & fired & ~broken)
        self.active = self.active & ~broken & ~fired


def _looks(z: Tensor) -> int:
    """Every how many evaluations the host looks whether all samples have stopped; what they come to is the same."""
    return LOOK if z.is_cuda and z.numel() <= SMALL and not torch.is_grad_enabled() else 1


def _evaluate(update: Update, z: Tensor) -> tuple[Tensor, Evaluation]:
    """The residual f(z) - z (b, ...) and its numbers per sample."""
    fz = update(z)
    if fz.shape != z.shape:
        raise ValueError(f"The update returned shape {tuple(fz.shape)}, expected that of z, {tuple(z.shape)}.")
    energy = getattr(update, "energy", None)
    if isinstance(energy, Tensor):
        if energy.shape != z.shape[:1]:
            raise ValueError(f"The update's energy has shape {tuple(energy.shape)}, expected ({len(z)},).")
        energy = energy.detach()
    r = fz - z
    return r, Evaluation(norm(r.detach()), norm(fz.detach()), energy)


def _move(
    solver: Solver, advance: Advance, z: Tensor, r: Tensor, state: State, active: Tensor | None, tally: _Tally
) -> tuple[Tensor, State]:
    """Apply one step to the active samples; those that it would make infinite fail where they are."""
    delta, state = solver.step(z, r, state, active)
    moved = advance(z, delta)
    good = tally.active & finite(moved)
    tally.failed = tally.failed | (tally.active & ~good)
    tally.active = good
    tally.steps = tally.steps + good
    if active is not None or not bool(good.all()):
        moved = torch.where(spread(good, moved), moved, z)
    return moved, state


def _next_step(update: Update, frozen: Callable[[Tensor], Tensor], advance: Advance) -> Update:
    return lambda z: advance(z, frozen(update(z) - z))


def _check(z0: Tensor, max_steps: int, divergence: float) -> None:
    if z0.dim() < 2 or not z0.is_floating_point():
        raise ValueError(f"z0 must be a float tensor (b, ...), got {z0.dtype} of shape {tuple(z0.shape)}.")
    if max_steps < 0:
        raise ValueError(f"max_steps must be at least 0, got {max_steps}.")
    if not divergence > 1:
        raise ValueError(f"divergence must be above 1, got {divergence}.")
