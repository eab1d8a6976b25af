"""Scores of many states of one batch: what `RegistrationScores` takes, without what would be slow."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.callbacks.pair_scores import BORDER, ScoreOptions
from dio_lightning.callbacks.report import summarise
from dio_lightning.fields import on_moving_grid
from dio_lightning.metrics import dice_per_label, label_sizes, regularity, warp_label
from dio_lightning.pair import Pair
from dio_lightning.studies.comparison_statistics import per_unit
from dio_lightning.studies.loading import PairId

SCORES = ("dice", "folds", "sdlogj")
SPARSE = (*range(1, 13), 14, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)
"""Steps that are scored in 3-D, where a score takes as long as a step."""


def score(u: Float[Tensor, "b d *s"], pair: Pair, options: ScoreOptions) -> dict[str, Float[Tensor, " b"]]:
    """Dice (mean over labels), folds (%) and sdlogj of every sample, u in voxels of the pair's grid."""
    fixed, moving = pair["fixed_label"], pair["moving_label"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    largest = max(int(fixed.max()), int(moving.max()), 0)
    counts = torch.minimum(label_sizes(fixed, largest), label_sizes(moving, largest)) >= options.min_voxels
    warped = warp_label(moving, on_moving_grid(u, pair), options.dice)
    dice = dice_per_label(fixed, warped, moving, largest).where(counts, torch.nan)
    found = regularity(u, BORDER, pair.get("fixed_mask") if options.masked else None)
    return {"dice": dice.nanmean(1), "folds": found.folds, "sdlogj": found.sdlogj}


def moments(values: Mapping[PairId, float]) -> tuple[float, float, int]:
    """Mean, standard deviation and number over pairs; slices of one pair of subjects are averaged first."""
    found = summarise(per_unit(values).values())
    mean, std, n = (math.nan if found[name] is None else float(found[name] or 0) for name in ("mean", "std", "n"))
    return mean, std, int(n)


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
