"""Curves over steps as CSV, as the paper's table and as a figure."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from dio_lightning.callbacks.gathering import Row
from dio_lightning.callbacks.report import to_csv
from dio_lightning.studies.loading import PairId
from dio_lightning.studies.plots import Line, Panel, draw
from dio_lightning.studies.scoring import SCORES, moments

FILES = tuple(f"convergence.{ending}" for ending in ("csv", "md", "png", "svg"))
RECORDED = (*SCORES, "residual")
COLUMNS = ("method", "weights", "trained_steps", "step", "n", *(f"{s}{k}" for s in RECORDED for k in ("", "_std")))


@dataclass(frozen=True)
class Curve:
    """One set of weights: every score of every pair after each step that was seen."""

    method: str
    weights: str
    trained: int
    values: dict[str, dict[int, dict[PairId, float]]]

    @property
    def steps(self) -> list[int]:
        """The steps that were seen."""
        return sorted(self.values["dice"])

    @property
    def pairs(self) -> list[PairId]:
        """The pairs, in the order of the data."""
        return list(next(iter(self.values["dice"].values()))) if self.values else []

    def add(self, score: str, step: int, ids: Sequence[PairId], values: Iterable[float]) -> None:
        """Scores of one batch after one step."""
        self.values.setdefault(score, {}).setdefault(step, {}).update(zip(ids, values, strict=True))


def curves_csv(curves: Sequence[Curve]) -> str:
    """A row per weights and step: mean and standard deviation of each score over n pairs."""
    rows: list[Row] = []
    for curve in curves:
        for step in curve.steps:
            row: Row = {"method": curve.method, "weights": curve.weights, "trained_steps": curve.trained, "step": step}
            for name in RECORDED:
                if name in curve.values:
                    mean, std, n = moments(curve.values[name][step])
                    row |= {name: mean, f"{name}_std": std} if n else {}
                    row |= {"n": n} if name == "dice" else {}
            rows.append(row)
    return to_csv(rows, COLUMNS)


def markdown(curves: Sequence[Curve], steps: int) -> str:
    """The paper's Table 2: Dice and folds after the trained steps, the best steps and the last step."""
    heads = [f"{when} | Dice | folds (%)" for when in ("trained steps", "best steps", "last step")]
    lines = [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * 9}"]
    for name, seeds in _methods(curves).items():
        trained, shown = seeds[0].trained, seeds[0].steps
        best = max(shown, key=lambda step: _known(_level(seeds, "dice", step)))
        last = [str(steps), *_cells(seeds, steps)] if len(shown) > 1 else ["–"] * 3
        cells = [str(trained), *_cells(seeds, trained), str(best), *_cells(seeds, best), *last]
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{_caption(curves)}\n"


def figure(curves: Sequence[Curve]) -> Figure:
    """Dice and folds over steps, a tick at the trained ones; the band holds all seeds."""
    methods = _methods(curves)
    dice, folds = ([_line(name, seeds, score) for name, seeds in methods.items()] for score in ("dice", "folds"))
    return draw([Panel("steps", "Dice", dice), Panel("steps", "folds (%)", folds, "symlog")])


def _methods(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {}
    for curve in curves:
        found.setdefault(curve.method, []).append(curve)
    return found


def _values(seeds: Sequence[Curve], score: str, step: int) -> dict[PairId, float]:
    """One score of every pair after a step, the mean over seeds."""
    every = [seed.values[score][step] for seed in seeds]
    return {pair: statistics.fmean(values[pair] for values in every) for pair in every[0]}


def _level(seeds: Sequence[Curve], score: str, step: int) -> float:
    return moments(_values(seeds, score, step))[0]


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _cells(seeds: Sequence[Curve], step: int) -> list[str]:
    found = [moments(_values(seeds, name, step)) for name in ("dice", "folds")]
    return [f"{mean:.3f} ± {std:.3f}" if n else "none" for mean, std, n in found]


def _line(name: str, seeds: Sequence[Curve], score: str) -> Line:
    shown = seeds[0].steps
    y = [_level(seeds, score, step) for step in shown]
    if len(seeds) == 1:
        return Line(name, shown, y, tick=seeds[0].trained)
    each = [[_level([seed], score, step) for seed in seeds] for step in shown]
    return Line(name, shown, y, [min(e) for e in each], [max(e) for e in each], seeds[0].trained)


def _caption(curves: Sequence[Curve]) -> str:
    seeds = {name: len(found) for name, found in _methods(curves).items() if len(found) > 1}
    n = moments(curves[0].values["dice"][curves[0].steps[0]])[2]
    told = f"Mean ± standard deviation over {n} pair{'s' if n != 1 else ''}"
    if n < len(curves[0].pairs):
        told += f" of subjects ({len(curves[0].pairs)} slices)"
    told += "; steps are those of the finest level, no pair stops early; "
    told += "best: the highest mean Dice of the steps seen, on these same pairs."
    if seeds:
        told += " Means over seeds: " + ", ".join(f"{name} {count}" for name, count in seeds.items()) + "."
    return told
