"""Where studies meet methods: a solve of one batch, watched state by state."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import resize
from dio_lightning.layers import Record, Run
from dio_lightning.loaded import Loaded
from dio_lightning.modules import RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import score_batch

SCORES = ("dice", "folds", "sdlogj")


def takes_steps(module: RegistrationModule) -> bool:
    """Whether a method takes steps at its finest level, and their number may be set."""
    try:
        module.steps = module.steps
    except ValueError:
        return False
    return module.steps > 0


def score(u: Float[Tensor, "b d ..."], pair: Pair, loaded: Loaded) -> dict[str, Float[Tensor, " b"]]:
    """Dice (mean over labels), folds (%) and sdlogj of every sample; u is brought to the pair's grid."""
    return score_batch(resize(u, pair["fixed"].shape[2:]), pair, loaded.scores, SCORES)


def as_trained(loaded: Loaded, pair: Pair) -> dict[str, Float[Tensor, " b"]]:
    """Scores of a batch that is registered as it was trained."""
    with torch.no_grad():
        return score(loaded.module.register(pair), pair, loaded)


def scores_by_step(
    loaded: Loaded, pair: Pair, steps: int, at: Sequence[int]
) -> dict[int, dict[str, Float[Tensor, " b"]]]:
    """Scores and the relative change of u after each step of `at`; empty if the method does not report its steps.

    The change ||u - u'|| / ||u||, u' one step before, is called residual and is NaN after the first step. A batch whose
    samples have all broken off keeps its last state.
    """
    scores: dict[int, dict[str, Tensor]] = {}
    last: list[tuple[int, Tensor]] = []

    def observe(record: Record) -> None:
        if record.step == 0:  # a level begins; the finest is the last
            scores.clear()
            last.clear()
            return
        u = record.displacement
        if record.step in at:
            scores[record.step] = {**score(u, pair, loaded), "residual": _change(u, last[0][1] if last else None)}
        last[:] = [(record.step, u.clone())]

    with torch.no_grad():
        loaded.module.register(pair, Run(steps=steps, observe=observe))
    if last and last[0][0] < max(at):
        kept = score(last[0][1], pair, loaded) | {"residual": _change(last[0][1], None)}
        scores |= {step: kept for step in at if step > last[0][0]}
    return scores


def evaluations(
    loaded: Loaded, pair: Pair, steps: int, at: Sequence[int], tolerances: Sequence[float]
) -> list[tuple[int, int, str, float]]:
    """(evaluation of f, sample, "residual" or "dice", value) of a DEQReg's solve.

    The relative residual ||f(z) - z|| / ||f(z)|| is taken at every evaluation, the first at the identity; Dice at z
    where the residual is the first that is at most one of the tolerances, and at the evaluations `at`.
    """
    taken: list[tuple[int, int, str, float]] = []
    lowest = [torch.inf] * len(pair["fixed"])

    def observe(record: Record) -> None:
        if record.evaluation is None:
            return
        k, relative = record.step + 1, record.evaluation.residual / (record.evaluation.norm + 1e-9)
        residuals: list[float] = relative.nan_to_num(nan=torch.inf, posinf=torch.inf).tolist()
        for sample, residual in enumerate(residuals):
            taken.append((k, sample, "residual", residual))
        first = [any(r <= t < low for t in tolerances) for r, low in zip(residuals, lowest, strict=True)]
        if k in at or any(first):
            dice = score(record.displacement, pair, loaded)["dice"].tolist()
            taken.extend((k, sample, "dice", dice[sample]) for sample, new in enumerate(first) if new or k in at)
        lowest[:] = map(min, lowest, residuals)

    with torch.no_grad():
        loaded.module.register(pair, Run(steps=steps, observe=observe))
    return taken


def _change(u: Tensor, before: Tensor | None) -> Tensor:
    """||u - before|| / ||u|| of every sample (b,), NaN where nothing is known of the state before."""
    size = u.flatten(1).norm(dim=1)
    return torch.full_like(size, torch.nan) if before is None else (u - before).flatten(1).norm(dim=1) / (size + 1e-9)
