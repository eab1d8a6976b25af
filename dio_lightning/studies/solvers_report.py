"""Residuals of solvers as CSV, as a table and as a figure."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from dio_lightning.callbacks.gathering import Row
from dio_lightning.callbacks.report import to_csv
from dio_lightning.studies.loading import PairId
from dio_lightning.studies.plots import Line, Panel, draw

FILES = ("solvers.csv", "solvers_trace.csv", "solvers.md", "solvers.png", "solvers.svg")
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
REACHED = ("solver", "weights", "tolerance", "pairs", "reached", "evaluations", "dice")
TRACED = ("solver", "weights", "evaluation", "pairs", "residual", "residual_low", "residual_high", "dice")


@dataclass(frozen=True)
class Run:
    """One solver on one set of weights: relative residuals by evaluation, and Dice at some of them, of every pair."""

    solver: str
    weights: str
    residuals: dict[PairId, list[float]]
    dice: dict[PairId, dict[int, float]]

    def evaluations(self, tolerance: float) -> dict[PairId, float]:
        """The first evaluation whose residual is at most the tolerance, infinite where none is."""
        return {
            pair: next((k for k, value in enumerate(values, 1) if value <= tolerance), math.inf)
            for pair, values in self.residuals.items()
        }


@dataclass(frozen=True)
class Reached:
    """How a tolerance was reached: median evaluations over all pairs, and over those that did the share and mean Dice.

    A pair that did not counts as one that needs infinitely many; Dice is NaN where no pair did.
    """

    evaluations: float
    share: float
    dice: float
    pairs: int


def reached(runs: Sequence[Run], tolerance: float) -> Reached:
    """Runs of one solver, pooled over weights."""
    needed = [(run.dice[pair], k) for run in runs for pair, k in run.evaluations(tolerance).items()]
    dice = [found[int(k)] for found, k in needed if math.isfinite(k)]
    median = statistics.median_high([k for _, k in needed])
    return Reached(median, len(dice) / len(needed), _mean(dice), len(needed))


def tolerances_csv(runs: Sequence[Run]) -> str:
    """A row per solver, weights and tolerance; `evaluations` is empty unless most pairs reach it."""
    rows: list[Row] = []
    for run in runs:
        for tolerance in TOLERANCES:
            found = reached([run], tolerance)
            row: Row = {"solver": run.solver, "weights": run.weights, "tolerance": tolerance, "pairs": found.pairs}
            row |= {"reached": found.share}
            row |= {"evaluations": found.evaluations} if math.isfinite(found.evaluations) else {}
            row |= {"dice": found.dice} if found.share else {}
            rows.append(row)
    return to_csv(rows, REACHED)


def traces_csv(runs: Sequence[Run]) -> str:
    """A row per solver, weights and evaluation: quartiles of the residual over pairs and, where taken, mean Dice."""
    rows: list[Row] = []
    for run in runs:
        for k in range(1, _length([run]) + 1):
            low, middle, high = _quartiles([run], k)
            row: Row = {"solver": run.solver, "weights": run.weights, "evaluation": k, "pairs": len(run.residuals)}
            row |= {"residual": middle, "residual_low": low, "residual_high": high}
            row |= {"dice": _dice([run], k)} if _taken([run], k) else {}
            rows.append(row)
    return to_csv(rows, TRACED)


def markdown(runs: Sequence[Run], max_steps: int) -> str:
    """A row per solver: evaluations to each tolerance with the share of pairs that reach it, and Dice there."""
    heads = [f"{tolerance:g}" for tolerance in TOLERANCES]
    lines = [f"| solver | {' | '.join(heads)} | lowest residual |", f"|---|{'---:|' * (len(heads) + 1)}"]
    for name, seeds in _solvers(runs).items():
        found = [reached(seeds, tolerance) for tolerance in TOLERANCES]
        lowest = statistics.median(min(values) for run in seeds for values in run.residuals.values())
        lines.append(f"| {name} | {' | '.join(_cell(f, max_steps) for f in found)} | {lowest:.1e} |")
    weights = dict.fromkeys(run.weights for run in runs)
    return "\n".join(lines) + (
        f"\n\nEvaluations of f until ||f(z) - z|| / ||f(z)|| is at most the column's value: median over "
        f"{reached([r for r in runs if r.solver == runs[0].solver], 1).pairs} solves, a pair that does not get there "
        f"counted as more than {max_steps}; in brackets the share of pairs that do, then their mean Dice at that z. "
        f"Last column: median over pairs of the lowest residual."
        + (f" {len(weights)} seeds are pooled." if len(weights) > 1 else "")
        + "\n"
    )


def figure(runs: Sequence[Run]) -> Figure:
    """Median residual, with its quartiles, and mean Dice over evaluations."""
    residual, dice = [], []
    for name, seeds in _solvers(runs).items():
        x = list(range(1, _length(seeds) + 1))
        bands = [_quartiles(seeds, k) for k in x]
        low, middle, high = ([band[i] for band in bands] for i in range(3))
        residual.append(Line(name, x, middle, low, high))
        scored = [k for k in x if _taken(seeds, k)]
        dice.append(Line(name, scored, [_dice(seeds, k) for k in scored]))
    label = "evaluations of f"
    return draw([Panel(label, "relative residual", residual, "log"), Panel(label, "Dice", dice)])


def _solvers(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.solver, []).append(run)
    return found


def _length(runs: Sequence[Run]) -> int:
    return max(len(values) for run in runs for values in run.residuals.values())


def _quartiles(runs: Sequence[Run], k: int) -> tuple[float, float, float]:
    """Quartiles over pairs at evaluation k; a pair whose solve broke off before counts with its last residual."""
    values = [v[min(k, len(v)) - 1] for run in runs for v in run.residuals.values()]
    low, middle, high = (sorted(values)[len(values) * i // 4] for i in (1, 2, 3))
    return low, middle, high


def _taken(runs: Sequence[Run], k: int) -> bool:
    """Whether Dice was taken of every pair at evaluation k."""
    return all(k in found for run in runs for found in run.dice.values())


def _dice(runs: Sequence[Run], k: int) -> float:
    return _mean(found[k] for run in runs for found in run.dice.values())


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _cell(found: Reached, max_steps: int) -> str:
    if not found.share:
        return "–"
    count = f"{found.evaluations:g}" if math.isfinite(found.evaluations) else f"> {max_steps}"
    return f"{count} ({found.share:.0%}), {found.dice:.3f}"
