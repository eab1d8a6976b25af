"""The numbers of a comparison: every method's mean of every score, and its test against the reference."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dio_lightning.scores import SCORES, Score, expect, look_up
from dio_lightning.scores.rows import PairId, cells_csv
from dio_lightning.scores.runs import Method, present, unit_of
from dio_lightning.scores.statistics import Comparison, holm, paired
from dio_lightning.scores.summary import moments, per_unit, unit

Verdict = Literal["better", "worse", ""]


@dataclass(frozen=True)
class Entry:
    """One method's score: mean and population standard deviation over `n` units, NaN where n is 0.

    `std_seeds` is the sample standard deviation (n - 1) over seeds of their means, NaN with a single seed. `comparison`
    is with the reference, None where nothing is tested.
    """

    mean: float
    std: float
    n: int
    std_seeds: float
    comparison: Comparison | None = None
    p_holm: float = math.nan
    verdict: Verdict = ""


@dataclass(frozen=True)
class Comparisons:
    """A finished comparison; entries by method name and score, rows and columns in the order to print them."""

    methods: Sequence[Method]
    scores: Sequence[Score]
    reference: str
    alpha: float
    entries: Mapping[tuple[str, str], Entry]

    @property
    def pairs(self) -> list[PairId]:
        """All pairs (or slices) of every run."""
        return self.methods[0].pairs

    @property
    def units(self) -> list[PairId]:
        """What is averaged and tested over: pairs, or pairs of subjects where pairs are slices."""
        return list(dict.fromkeys(map(unit, self.pairs)))

    @property
    def available(self) -> list[str]:
        """Scores that at least one run has, shown or not."""
        return present(self.methods)

    @property
    def most_seeds(self) -> int:
        """Largest number of seeds of a method."""
        return max(len(method.runs) for method in self.methods)

    def best(self, score: Score) -> float:
        """The best mean of a tested score, NaN where there is none."""
        means = [self.entries[method.name, score.name].mean for method in self.methods]
        means = [mean for mean in means if not math.isnan(mean)]
        if not score.tested or not means:
            return math.nan
        return min(means) if score.better == "smaller" else max(means)


def compare_methods(
    methods: Sequence[Method], scores: Sequence[str] | None, reference: str | None, alpha: float
) -> Comparisons:
    """Compare methods on scores (by default those usual in tables that a run has) with a reference (default: the last).

    Raises:
        ValueError: a reference, a score or an alpha that cannot be.
    """
    names = [method.name for method in methods]
    reference = names[-1] if reference is None else reference
    if reference not in names:
        raise ValueError(f"--reference {reference!r} is none of the runs: expected one of {', '.join(names)}")
    if not 0 < alpha < 1:
        raise ValueError(f"--alpha must be between 0 and 1, not {alpha}")
    names_shown = _choose(scores, present(methods))
    chosen = [look_up(name).measured_in(unit_of(methods, name)) for name in names_shown]
    entries: dict[tuple[str, str], Entry] = {}
    for score in chosen:
        plain = [_entry(method, score.name) for method in methods]
        tested = _test(methods, score, reference, alpha, plain) if score.tested else plain
        entries |= {(name, score.name): entry for name, entry in zip(names, tested, strict=True)}
    return Comparisons(methods, chosen, reference, alpha, entries)


def matrix(methods: Sequence[Method], score: str) -> dict[tuple[str, str], tuple[Comparison, float]]:
    """Comparisons of all methods with each other, with p-values by Holm over all of these, in both orders."""
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
    tests = [paired(a.values(score), b.values(score)) for a, b in pairs]
    result: dict[tuple[str, str], tuple[Comparison, float]] = {}
    for (a, b), comparison, p in zip(pairs, tests, holm([c.p for c in tests]), strict=True):
        result[a.name, b.name] = result[b.name, a.name] = (comparison, p)
    return result


def table_csv(compared: Comparisons) -> str:
    """A row per method and score: plain numbers, empty where there is none."""
    columns = ("method", "seeds", "score", "mean", "std", "n", "std_seeds", "reference")
    columns += ("difference", "n_compared", "zeros", "dropped", "p", "p_holm", "verdict")
    rows: list[Sequence[object]] = [columns]
    for method in compared.methods:
        for score in compared.scores:
            e = compared.entries[method.name, score.name]
            row = [method.name, len(method.runs), score.name, e.mean, e.std, e.n, e.std_seeds]
            c = e.comparison
            tests = (
                [compared.reference, c.difference, c.units, c.zeros, c.dropped, c.p, e.p_holm, e.verdict] if c else []
            )
            rows.append(row + (tests or [""] * 8))
    return cells_csv(rows)


def p_values_csv(compared: Comparisons) -> str:
    """Matrices over all methods, one below the other: p, p by Holm over all pairs of methods, units compared."""
    names = [method.name for method in compared.methods]
    shown = ("dice", *(score.name for score in compared.scores))
    score = next((name for name in shown if look_up(name).tested and name in compared.available), "dice")
    tests = matrix(compared.methods, score)
    rows: list[Sequence[object]] = [("score", "quantity", "method", *names)]
    blocks = {
        "p": {key: comparison.p for key, (comparison, _) in tests.items()},
        "p_holm": {key: p for key, (_, p) in tests.items()},
        "n": {key: comparison.units for key, (comparison, _) in tests.items()},
    }
    for quantity, block in blocks.items():
        rows += [(score, quantity, name, *(block.get((name, other), "") for other in names)) for name in names]
    return cells_csv(rows)


def _choose(scores: Sequence[str] | None, available: Sequence[str]) -> list[str]:
    if scores is None:
        chosen = [score.name for score in SCORES if score.shown and score.name in available]
        if not chosen:
            raise ValueError("no run has a score to show: expected the metrics.csv of `dio-lightning test`")
        return chosen
    expect(scores, available, "--metrics")
    return list(dict.fromkeys(scores))


def _entry(method: Method, score: str) -> Entry:
    """Mean and spread; those of a seed are taken on the pairs where every seed has a number."""
    values = method.values(score)
    mean, std, n = moments(values)
    if not n:
        return Entry(mean, std, n, math.nan)
    seeds = [run.values(score) for run in method.runs]
    means = [
        statistics.fmean(per_unit({pair: seed[pair] for pair in seed if math.isfinite(values[pair])}).values())
        for seed in seeds
    ]
    spread = statistics.stdev(means) if len(means) > 1 else math.nan
    return Entry(mean, std, n, spread)


def _test(
    methods: Sequence[Method], score: Score, reference: str, alpha: float, entries: Sequence[Entry]
) -> list[Entry]:
    """The entries with their comparison; Holm's correction counts the methods that have the score."""
    other = next(method for method in methods if method.name == reference).values(score.name)
    tests = [None if method.name == reference else paired(method.values(score.name), other) for method in methods]
    adjusted = holm([math.nan if comparison is None else comparison.p for comparison in tests])
    result: list[Entry] = []
    for entry, comparison, p in zip(entries, tests, adjusted, strict=True):
        verdict: Verdict = ""
        if comparison is not None and p < alpha and comparison.direction:
            verdict = "better" if (comparison.direction < 0) == (score.better == "smaller") else "worse"
        result.append(replace(entry, comparison=comparison, p_holm=p, verdict=verdict))
    return result
