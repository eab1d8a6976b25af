"""Where studies meet methods: a solve of one batch, seen step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import resize
from dio_lightning.implicit import Evaluation, StopRule
from dio_lightning.modules import DEQReg, RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.studies.loading import Loaded
from dio_lightning.studies.scoring import score


@dataclass(frozen=True)
class Step:
    """The displacement (b, d, *s) on the working grid after a step, the first is 1, and what was evaluated before it.

    The evaluation, of which only DEQReg tells, is that of the state before the step.
    """

    index: int
    displacement: Tensor
    evaluation: Evaluation | None


def watch(module: RegistrationModule, pair: Pair, steps: int, observe: Callable[[Step], None]) -> None:
    """Register a pair in so many steps at the finest level, where no sample stops early."""
    trained, recorder = module.steps, _Recorder(observe)
    if isinstance(module, DEQReg):
        module.stop = recorder
    module.steps, module.observe = steps, recorder.step
    with torch.no_grad():
        module.register(pair)
    module.steps, module.observe = trained, None


@dataclass
class _Recorder(StopRule):
    """Never stops, and joins what it is asked about to the step that follows."""

    observe: Callable[[Step], None]
    index: int = 0
    evaluation: Evaluation | None = None

    def __call__(self, seen: Evaluation, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        self.evaluation = seen
        return torch.zeros_like(seen.residual, dtype=torch.bool), state

    def step(self, u: Tensor) -> None:
        """The state after a step."""
        self.index += 1
        self.observe(Step(self.index, u, self.evaluation))


def takes_steps(module: RegistrationModule) -> bool:
    """Whether a method takes steps at its finest level, and their number may be set."""
    try:
        module.steps = module.steps
    except ValueError:
        return False
    return module.steps > 0


def as_trained(loaded: Loaded, pair: Pair) -> dict[str, Float[Tensor, " b"]]:
    """Scores of a batch that is registered as it was trained."""
    with torch.no_grad():
        return score(loaded.module.register(pair), pair, loaded.scores)


def scores_by_step(
    loaded: Loaded, pair: Pair, steps: int, at: Sequence[int]
) -> dict[int, dict[str, Float[Tensor, " b"]]]:
    """Scores and the relative change of u after each step of `at`; empty if the method does not report its steps.

    The change ||u - u'|| / ||u||, u' one step before, is called residual and is NaN after the first step. A batch whose
    samples have all broken off keeps its last state.
    """
    scores: dict[int, dict[str, Tensor]] = {}
    last: list[Step] = []

    def observe(step: Step) -> None:
        if step.index in at:
            before = last[-1].displacement if last else None
            scores[step.index] = {**_scores(loaded, pair, step.displacement), "residual": _change(step, before)}
        last[:] = [Step(step.index, step.displacement.clone(), None)]

    watch(loaded.module, pair, steps, observe)
    if last and last[-1].index < max(at):
        kept = _scores(loaded, pair, last[-1].displacement) | {"residual": _change(last[-1], None)}
        scores |= {step: kept for step in at if step > last[-1].index}
    return scores


def evaluations(
    loaded: Loaded, pair: Pair, steps: int, at: Sequence[int], tolerances: Sequence[float]
) -> list[tuple[int, int, str, float]]:
    """(evaluation of f, sample, "residual" or "dice", value) of a DEQReg's solve.

    The relative residual ||f(z) - z|| / ||f(z)|| is taken at every evaluation, the first at the identity; Dice at z
    where the residual is the first that is at most one of the tolerances, and at the evaluations `at`.
    """
    taken: list[tuple[int, int, str, float]] = []
    fixed = pair["fixed"]
    states = [fixed.new_zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:])]
    lowest = [torch.inf] * len(fixed)

    def observe(step: Step) -> None:
        assert step.evaluation is not None
        residuals = _relative(step.evaluation)
        first = [any(r <= t < low for t in tolerances) for r, low in zip(residuals, lowest, strict=True)]
        if step.index in at or any(first):
            dice = _scores(loaded, pair, states[-1])["dice"].tolist()
            scored = [i for i in range(len(fixed)) if step.index in at or first[i]]
            taken.extend((step.index, i, "dice", dice[i]) for i in scored)
        taken.extend((step.index, i, "residual", residual) for i, residual in enumerate(residuals))
        lowest[:] = map(min, lowest, residuals)
        states[:] = [step.displacement]

    watch(loaded.module, pair, steps, observe)
    last = taken[-1][0] if taken else 0
    # where all samples broke off there was one evaluation more, and no step after it
    return taken + [(last + 1, i, "residual", torch.inf) for i in range(len(fixed)) if last < steps]


def _relative(evaluation: Evaluation) -> list[float]:
    relative = evaluation.residual / (evaluation.norm + 1e-9)
    return relative.nan_to_num(nan=torch.inf, posinf=torch.inf).tolist()


def _scores(loaded: Loaded, pair: Pair, u: Tensor) -> dict[str, Tensor]:
    return score(resize(u, pair["fixed"].shape[2:]), pair, loaded.scores)


def _change(step: Step, before: Tensor | None) -> Tensor:
    """||u - before|| / ||u|| of every sample (b,), NaN where nothing is known of the state before."""
    u = step.displacement
    size = u.flatten(1).norm(dim=1)
    return torch.full_like(size, torch.nan) if before is None else (u - before).flatten(1).norm(dim=1) / (size + 1e-9)
