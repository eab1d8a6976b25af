"""What a solver needs to bring DEQReg to rest: evaluations of its network, and the Dice there."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, median_high
from typing import TYPE_CHECKING

from dio_lightning.scores.records import Record, Records, Solve
from dio_lightning.scores.summary import finite_mean
from dio_lightning.studies.rendering import Line, Panel, Value, draw, table, to_csv
from dio_lightning.studies.study import PairStudy, check_steps, option, scored_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dio_lightning.implicit import Solver
    from dio_lightning.loaded import Loaded

TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)


@dataclass(frozen=True, kw_only=True)
class Solvers(PairStudy):
    """Every test pair solved by every solver; a row of the tables is a solver, pooled over seeds.

    The relative residual ||f(z) - z|| / ||f(z)|| is taken at every evaluation of f, the first at the identity.

    Raises:
        ValueError: if there is no step, or none of that number, or for a damping outside [0, 1).
    """

    name = "solvers"
    more = ("trace",)
    max_steps: int = option(96, "of each solver, and so its evaluations")
    at: Sequence[int] | None = option(
        None,
        "evaluations at which Dice is taken (default: all in 2-D, ever fewer in 3-D)",
        metavar="EVALUATION",
        many="+",
    )
    damping: Sequence[float] = option((0.0,), "every solver with each of these dampings", float, "D", "+")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.max_steps, self.at)

    def check(self, loaded: Sequence["Loaded"]) -> None:
        """Solvers are studied on DEQReg alone."""
        from dio_lightning.modules import DEQReg

        solvers(self.damping)
        for one in loaded:
            if not isinstance(one.module, DEQReg):
                raise ValueError(f"{one.weights} is {one.module.title}: solvers are studied on DEQReg alone")

    def measure(self, loaded: "Loaded") -> Iterator[Record]:
        """Residuals and Dice under their evaluation, the solver as method."""
        for name, solver in solvers(self.damping).items():
            yield from self.trace(loaded, name, solver)

    def trace(self, loaded: "Loaded", name: str, solver: "Solver") -> Iterator[Record]:
        """The records of one solver, on all pairs of one set of weights."""
        from dio_lightning.modules import DEQReg
        from dio_lightning.studies.watching import evaluations

        assert isinstance(loaded.module, DEQReg)
        loaded.module.layer.solver = solver
        for ids, pair in loaded.batches(self.limit):
            at = scored_steps(self.at, pair["fixed"].ndim - 2, self.max_steps)
            for k, sample, quantity, value in evaluations(loaded, pair, self.max_steps, at, TOLERANCES):
                yield Record(name, str(loaded.weights), k, ids[sample], quantity, value)

    def tables(self, records: Records) -> list[str]:
        """A row per solver, weights and tolerance, then one per solver, weights and evaluation.

        `evaluations` is empty unless most pairs reach the tolerance. Quartiles of the residual are over pairs.
        """
        to_tolerance: list[dict[str, Value]] = []
        traces: list[dict[str, Value]] = []
        for name, seed in records.weights:
            of: dict[str, Value] = {"solver": name, "weights": seed}
            for tolerance in TOLERANCES:
                reach = reached(records, name, tolerance, seed)
                row: dict[str, Value] = {"tolerance": tolerance, "pairs": reach.pairs, "reached": reach.share}
                row["evaluations"] = reach.evaluations if math.isfinite(reach.evaluations) else None
                to_tolerance.append(of | row | {"dice": reach.dice if reach.share else None})
            x, bands, dice = _curves(records, name, seed)
            pairs = len(records.traces(name, "residual", seed))
            for k, (low, middle, high) in zip(x, bands, strict=True):
                row: dict[str, Value] = {
                    "evaluation": k,
                    "pairs": pairs,
                    "residual": middle,
                    "residual_low": low,
                    "residual_high": high,
                }
                traces.append(of | row | {"dice": dice.get(k)})
        return [to_csv(to_tolerance), to_csv(traces)]

    def markdown(self, records: Records) -> str:
        """A row per solver: evaluations to each tolerance with the share of pairs that reach it, and Dice there."""
        rows = []
        for name in records.methods:
            lowest = median(min(trace.values()) for trace in records.traces(name, "residual").values())
            cells = [self._cell(reached(records, name, tolerance)) for tolerance in TOLERANCES]
            rows.append([name, *cells, f"{lowest:.1e}"])
        heads = ["solver", *(f"{tolerance:g}" for tolerance in TOLERANCES), "lowest residual"]
        seeds = len({seed for _, seed in records.weights})
        return table(heads, rows) + (
            f"\n\nEvaluations of f until ||f(z) - z|| / ||f(z)|| is at most the column's value: median over "
            f"{len(records.traces(records.methods[0], 'residual'))} solves, a pair that does not get there "
            f"counted as more than {self.max_steps}; in brackets the share of pairs that do, then their mean Dice at "
            f"that z. Last column: median over pairs of the lowest residual."
            + (f" {seeds} seeds are pooled." if seeds > 1 else "")
            + "\n"
        )

    def figure(self, records: Records) -> "Figure":
        """Median residual, with its quartiles, and mean Dice over evaluations."""
        residuals, dices = [], []
        for name in records.methods:
            x, bands, dice = _curves(records, name)
            low, middle, high = zip(*bands, strict=True)
            residuals.append(Line(name, x, middle, low, high))
            dices.append(Line(name, list(dice), list(dice.values())))
        label = "evaluations of f"
        return draw(Panel(label, "relative residual", residuals, "log"), Panel(label, "Dice", dices))

    def _cell(self, reach: "Reached") -> str:
        if not reach.share:
            return "–"
        count = f"{reach.evaluations:g}" if math.isfinite(reach.evaluations) else f"> {self.max_steps}"
        return f"{count} ({reach.share:.0%}), {reach.dice:.3f}"


def solvers(dampings: Sequence[float]) -> dict[str, "Solver"]:
    """The solvers by name.

    Raises:
        ValueError: for a damping outside [0, 1).
    """
    from dio_lightning.implicit import Anderson, Broyden, Picard

    named: dict[str, Solver] = {}
    for damping in dict.fromkeys(dampings):
        suffix = f", damping {damping:g}" if damping else ""
        named[f"Picard{suffix}"] = Picard(damping)
        named |= {f"Anderson {window}{suffix}": Anderson(window, damping) for window in (3, 5)}
        named |= {f"Broyden {window}{suffix}": Broyden(window, damping) for window in (5, 8)}
    return named


@dataclass(frozen=True)
class Reached:
    """How a tolerance was reached: median evaluations over all pairs, and over those that did the share and mean Dice.

    A pair that did not counts as one that needs infinitely many; Dice is NaN where no pair did.
    """

    evaluations: float
    share: float
    dice: float
    pairs: int


def needed(records: Records, name: str, tolerance: float, seed: str | None = None) -> dict[Solve, float]:
    """The first evaluation whose residual is at most the tolerance, infinite where none is, by solve."""
    traces = records.traces(name, "residual", seed)
    return {
        solve: min((k for k, r in trace.items() if r <= tolerance), default=math.inf) for solve, trace in traces.items()
    }


def reached(records: Records, name: str, tolerance: float, seed: str | None = None) -> Reached:
    """Of one solver, pooled over weights unless a seed is named."""
    counts, dices = needed(records, name, tolerance, seed), records.traces(name, "dice", seed)
    dice = [dices[solve][int(k)] for solve, k in counts.items() if math.isfinite(k)]
    return Reached(median_high(counts.values()), len(dice) / len(counts), finite_mean(dice), len(counts))


def _curves(
    records: Records, name: str, seed: str | None = None
) -> tuple[list[int], list[tuple[float, float, float]], dict[int, float]]:
    """Every evaluation, the quartiles of the residual there, and mean Dice where it was taken of every pair.

    A pair whose solve broke off before counts with its last residual.
    """
    traces = records.traces(name, "residual", seed).values()
    x = list(range(1, max(map(len, traces)) + 1))
    ordered = [sorted(trace[min(k, len(trace))] for trace in traces) for k in x]
    bands = [(r[len(r) // 4], r[len(r) * 2 // 4], r[len(r) * 3 // 4]) for r in ordered]
    dices = {k: records.solves(name, "dice", k, seed) for k in x}
    return x, bands, {k: finite_mean(dice.values()) for k, dice in dices.items() if len(dice) == len(traces)}
