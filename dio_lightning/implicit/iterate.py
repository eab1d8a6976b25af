"""The one loop."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dio_lightning import ops
from dio_lightning.implicit.batch import finite, spread
from dio_lightning.implicit.graphs import fits, leaves, owned, recorder_of, storage, write
from dio_lightning.implicit.solution import Solution, Update
from dio_lightning.implicit.solvers import Solver, State, identity
from dio_lightning.implicit.stopping import Evaluation, Residual, StopRule
from dio_lightning.ops.memory import reuse

Advance = Callable[[Tensor, Tensor], Tensor]
"""(z, increment) -> next z, all (b, ...)."""
LOOK = 8
"""Evaluations between two looks at how many samples are still iterated, where a look waits for a GPU."""
SMALL = 2**22
"""Elements of a state that is looked at so seldom; beyond, holding stopped samples costs more than to wait."""
WARM = 2
"""Steps before one is recorded: kernels are loaded, and the bound on divergence is set."""
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
    graphs: bool = False,
) -> Solution:
    """Step from z0 (b, ...) towards update(z) = z until `stop` fires or `max_steps` are taken, sample by sample.

    A stopped sample keeps its value exactly while the others go on. A sample fails where the update or the
    step gives NaN or infinity, or where ||f(z) - z|| exceeds `divergence` times the larger of its first two values (the
    first alone is rounding where a solve starts at its solution); it returns its last finite state and does not touch
    the others. Records a graph through all steps if gradients are enabled.
    `observe` sees every state that is visited, z0 first, with the evaluation of f there; f is not evaluated at the last
    state where the steps run out, so that its evaluation is None.
    `graphs` promises that `update` and `advance` do the same operations at every call. A GPU then records a step and
    replays it, where nobody observes and no gradient is asked; what it comes to is the same.
    Raises ValueError for a z0 without batch axis, max_steps < 0, divergence <= 1, or an update that changes shape.
    """
    _check(z0, max_steps, divergence)
    z = z0 if torch.is_grad_enabled() else z0.detach()
    tally = _Tally.start(z, divergence)
    walk = _Walk(update, solver, stop, advance, z, solver.init(z), stop.init(tally.residual), tally)
    del z  # the loop holds no old states
    # where no graph holds all states, the memory of those before is that of the next
    with nullcontext() if torch.is_grad_enabled() else reuse():
        first = _replayed(walk, max_steps) if graphs and observe is None else 0
        _take_steps(walk, first, max_steps, observe)
    frozen = solver.frozen(walk.state)
    step = None if frozen is identity and advance is torch.add else _next_step(update, frozen, advance)
    return Solution(walk.z, tally.residual, tally.steps, tally.converged, tally.failed, step)


def _take_steps(walk: "_Walk", first: int, max_steps: int, observe: Observe | None) -> None:
    """The steps from the first one on, until all samples have stopped."""
    tally, every, samples = walk.tally, 1 if observe is not None else _looks(walk.z), len(walk.z)
    for taken in range(first, max_steps):
        r, evaluation = walk.evaluate()
        if observe is not None:
            observe(taken, walk.z, evaluation)
        count = int(tally.active.sum()) if taken % every == 0 else -1
        if count == 0:
            break
        # where nobody looks, the samples that have stopped are held by a mask, which no host has to read
        walk.move(r, None if every == 1 and count == samples else tally.active)
        del r
    else:
        if observe is not None:
            observe(max_steps, walk.z, None)


def _replayed(walk: "_Walk", max_steps: int) -> int:
    """How many steps were taken with one of them recorded: all that are needed, or those before it was given up."""
    recorder = recorder_of(walk.z) if max_steps > WARM + 1 else None
    if recorder is None:
        return 0
    walk.z, walk.state, walk.memory, walk.tally.each = owned((walk.z, walk.state, walk.memory, walk.tally.each))
    for taken in range(WARM):
        if not walk.step_in_place():
            return taken + 1
    places = walk.z, walk.state, walk.memory, walk.tally.each

    def step() -> None:
        if not walk.step_in_place():
            raise RuntimeError("a step's results have other shapes than those of the steps before")

    replay = recorder.record(step)
    # a record that broke off leaves names of tensors that nobody has computed
    walk.z, walk.state, walk.memory, walk.tally.each = places
    if replay is None:
        return WARM
    for taken in range(WARM, max_steps):
        if taken % LOOK == 0 and not bool(walk.tally.active.any()):
            break
        replay()
    return max_steps


@dataclass
class _Walk:
    """A solve under way: what does not change, and after it what does."""

    update: Update
    solver: Solver
    stop: StopRule
    advance: Advance
    z: Tensor
    state: State
    memory: tuple[Any, ...]
    tally: "_Tally"

    def evaluate(self) -> tuple[Tensor, Evaluation]:
        """The residual f(z) - z (b, ...) and its numbers, judged."""
        r, evaluation = _evaluate(self.update, self.z)
        fired, self.memory = self.stop(evaluation, self.memory)
        self.tally.see(evaluation, fired)
        return r, evaluation

    def move(self, r: Tensor, active: Tensor | None) -> None:
        """Apply one step to the active samples; those that it would make infinite fail where they are."""
        if active is not None:
            r = torch.where(spread(active, r), r, 0)
        delta, self.state = self.solver.step(self.z, r, self.state, active)
        moved = self.advance(self.z, delta)
        good = self.tally.count(finite(moved))
        if active is not None or not bool(good.all()):
            moved = torch.where(spread(good, moved), moved, self.z)
        self.z = moved

    def step_in_place(self) -> bool:
        """A step that is written where z and all else lie; False if that does not fit, and they lie elsewhere now."""
        places = self.state, self.memory, self.tally.each
        r, _ = self.evaluate()
        active = self.tally.active
        delta, self.state = self.solver.step(self.z, torch.where(spread(active, r), r, 0), self.state, active)
        moved = self.advance(self.z, delta)
        good = self.tally.count(finite(moved))
        results = self.state, self.memory, self.tally.each
        if not fits((moved, results), (self.z, places)):
            self.z = torch.where(spread(good, moved), moved, self.z)
            return False
        if any(storage(moved) == storage(x) for x in leaves(places) if isinstance(x, Tensor)):
            moved = moved.clone()
        write(results, places)
        torch.where(spread(good, moved), moved, self.z, out=self.z)
        self.state, self.memory, self.tally.each = places
        return True


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
        broken = ~((residual <= self.limit) & (residual < torch.inf))
        relative = (residual / (evaluation.norm + 1e-9)).nan_to_num(nan=torch.inf, posinf=torch.inf)
        self.residual = torch.where(self.active, relative, self.residual)
        sound = self.active & ~broken
        self.failed = self.failed | (self.active & broken)
        self.converged = self.converged | (sound & fired)
        self.active = sound & ~fired

    def count(self, good: Tensor) -> Tensor:
        """The active samples that took a step, as `good` (b,) says; the others have failed."""
        good = self.active & good
        self.failed = self.failed | (self.active & ~good)
        self.active = good
        self.steps = self.steps + good
        return good

    @property
    def each(self) -> tuple[Tensor, ...]:
        """All tensors."""
        return self.active, self.converged, self.failed, self.steps, self.residual, self.limit

    @each.setter
    def each(self, tensors: tuple[Tensor, ...]) -> None:
        self.active, self.converged, self.failed, self.steps, self.residual, self.limit = tensors


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
    r, size, norm = ops.residual(fz, z)
    return r, Evaluation(size, norm, energy)


def _next_step(update: Update, frozen: Callable[[Tensor], Tensor], advance: Advance) -> Update:
    return lambda z: advance(z, frozen(update(z) - z))


def _check(z0: Tensor, max_steps: int, divergence: float) -> None:
    if z0.dim() < 2 or not z0.is_floating_point():
        raise ValueError(f"z0 must be a float tensor (b, ...), got {z0.dtype} of shape {tuple(z0.shape)}.")
    if max_steps < 0:
        raise ValueError(f"max_steps must be at least 0, got {max_steps}.")
    if not divergence > 1:
        raise ValueError(f"divergence must be above 1, got {divergence}.")
