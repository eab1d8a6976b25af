"""Paired significance of scores: Wilcoxon's test on independent units as far as ids tell, and Holm's correction."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dio_lightning.scores.rows import PairId
from dio_lightning.scores.summary import per_unit

EXACT = 50
"""Most differences whose null distribution is counted out."""


@dataclass(frozen=True)
class Comparison:
    """One method against another on one score.

    `units` are compared, of which `zeros` do not differ; `dropped` pairs (or slices) have no number in one of the two.
    `difference` is the mean over units of the first minus the second, `direction` the sign of Wilcoxon's rank sum.
    `p` is NaN where there are no units.
    """

    units: int
    zeros: int
    dropped: int
    difference: float
    direction: int
    p: float


def paired(ours: Mapping[PairId, float], theirs: Mapping[PairId, float]) -> Comparison:
    """Two-sided Wilcoxon signed-rank test on the units where both have a number; zero differences are dropped.

    A slice without a number in one method is left out of both before slices are averaged. p is 1 where no unit differs.
    """
    kept = [pair for pair in ours if math.isfinite(ours[pair]) and math.isfinite(theirs[pair])]
    first, second = per_unit({pair: ours[pair] for pair in kept}), per_unit({pair: theirs[pair] for pair in kept})
    differences = [first[name] - second[name] for name in first if not _equal(first[name], second[name])]
    units, dropped = len(first), len(ours) - len(kept)
    if not units:
        return Comparison(0, 0, dropped, math.nan, 0, math.nan)
    if not differences:
        return Comparison(units, units, dropped, 0.0, 0, 1.0)
    p, direction = signed_rank(differences)
    return Comparison(units, units - len(differences), dropped, sum(differences) / units, direction, p)


def signed_rank(differences: Sequence[float]) -> tuple[float, int]:
    """Wilcoxon's two-sided p-value for differences without a zero, and the sign of the rank sum.

    Exact up to 50 differences, ties included, by counting the signs that give each rank sum; SciPy's is exact without
    ties alone, and takes seconds with them. Above 50 SciPy's normal approximation.
    Wilcoxon, Individual comparisons by ranking methods, 1945.
    """
    signs, ranks = np.sign(differences), stats.rankdata(np.abs(differences))
    direction = int(np.sign(np.sum(signs * ranks)))
    if len(differences) > EXACT:
        return float(np.asarray(stats.wilcoxon(np.asarray(differences)))[1]), direction
    doubled = np.rint(2 * ranks).astype(int)  # tied ranks are halves
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1
    for rank in doubled:
        ways[rank:] += ways[:-rank].copy()
    positive = doubled[signs > 0].sum()
    tail = ways[: min(positive, doubled.sum() - positive) + 1].sum()
    return min(1.0, float(2 * tail / 2 ** len(doubled))), direction


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, which counts those that are not NaN; NaN stays.

    The k-th smallest of m is multiplied by m - k + 1, and no adjusted value is below that of a smaller one.
    Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def subjects(units: Iterable[PairId]) -> int | None:
    """Number of subjects that the units are made of; None where no two units share one."""
    names = [name for pair in units for name in pair]
    return len(set(names)) if len(set(names)) < len(names) else None


def _equal(a: float, b: float) -> bool:
    """Whether two means of the same numbers, rounded in another order."""
    return math.isclose(a, b, rel_tol=1e-12)
