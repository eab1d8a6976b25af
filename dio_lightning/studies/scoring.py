"""Which states of a solve are scored, and by which scores."""

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import score_batch
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.scores.summary import moments

__all__ = ["SCORES", "check_counts", "moments", "score", "seen_steps"]

SCORES = ("dice", "folds", "sdlogj")
SPARSE = (*range(1, 13), 14, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)
"""Steps that are scored in 3-D, where a score takes as long as a step."""


def score(u: Float[Tensor, "b d *s"], pair: Pair, options: ScoreOptions) -> dict[str, Float[Tensor, " b"]]:
    """Dice (mean over labels), folds (%) and sdlogj of every sample, u in voxels of the pair's grid."""
    return score_batch(u, pair, options, SCORES)


def seen_steps(at: Sequence[int] | None, spatial_dims: int, steps: int, always: Iterable[int] = ()) -> list[int]:
    """The steps of 1..`steps` that are scored: those asked for, by default all in 2-D, and always the last."""
    chosen = at if at is not None else range(1, steps + 1) if spatial_dims == 2 else SPARSE
    return sorted({step for step in chosen if step <= steps} | {steps, *always})


def check_counts(steps: int, at: Sequence[int] | None, limit: int | None) -> None:
    """Raises ValueError unless all are at least 1, and none of `at` is above steps."""
    if steps < 1 or (limit is not None and limit < 1):
        raise ValueError(f"steps is {steps} and limit {limit}, expected at least 1")
    if at is not None and not (at and 1 <= min(at) and max(at) <= steps):
        raise ValueError(f"at is {list(at)}, expected steps from 1 to {steps}")
