"""What becomes of a registration when it takes other steps than it was trained with (DEQReg, Table 2)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dio_lightning.scores.records import NO_PAIR, Record, Records, of_batch
from dio_lightning.studies.rendering import Line, Panel, Value, draw, table, to_csv
from dio_lightning.studies.study import PairStudy, check_steps, option, scored_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dio_lightning.loaded import Loaded

QUANTITIES = ("dice", "folds", "sdlogj", "residual")


@dataclass(frozen=True, kw_only=True)
class Convergence(PairStudy):
    """Scores of every test pair after each step.

    Coarser levels take the steps that they were trained with; no sample stops early at the finest one. A method that
    takes no steps, does not report them, or was trained with more than are asked for, is run as it was trained.

    Raises:
        ValueError: if there is no step, or none of that number.
    """

    name = "convergence"
    steps: int = option(96, "how many are taken")
    at: Sequence[int] | None = option(
        None, "steps after which scores are taken (default: all in 2-D, ever fewer in 3-D)", metavar="STEP", many="+"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps, self.at)

    def check(self, loaded: Sequence["Loaded"]) -> None:
        """Weights of one name are one method, trained with one number of steps."""
        first: dict[str, Loaded] = {}
        for one in loaded:
            other = first.setdefault(one.name, one)
            if type(one.module) is not type(other.module) or one.module.steps != other.module.steps:
                raise ValueError(
                    f"{one.weights} and {other.weights} differ in method or steps ({one.module.steps} and "
                    f"{other.module.steps}), so they are no seeds of {one.name!r}: tell them apart by NAME=WEIGHTS"
                )

    def measure(self, loaded: "Loaded") -> Iterator[Record]:
        """Scores under their step, and the number of trained steps under 0."""
        from dio_lightning.studies.watching import as_trained, scores_by_step, takes_steps

        seed, trained = str(loaded.weights), loaded.module.steps
        yield Record(loaded.name, seed, 0, NO_PAIR, "trained", trained)
        varied = trained <= self.steps and takes_steps(loaded.module)
        for ids, pair in loaded.batches(self.limit):
            at = scored_steps(self.at, pair["fixed"].ndim - 2, self.steps, [trained])
            scores = scores_by_step(loaded, pair, self.steps, at) if varied else {}
            varied = bool(scores)
            for step, values in (scores or {trained: as_trained(loaded, pair)}).items():
                for quantity, value in values.items():
                    yield from of_batch(loaded.name, seed, step, ids, quantity, value.tolist())

    def tables(self, records: Records) -> list[str]:
        """A row per weights and step: mean and standard deviation of each score over n pairs."""
        rows: list[dict[str, Value]] = []
        for name, seed in records.weights:
            for step in records.conditions(name, "dice", seed):
                row: dict[str, Value] = {
                    "method": name,
                    "weights": seed,
                    "trained_steps": _trained(records, name),
                    "step": step,
                }
                row["n"] = records.moments(name, "dice", step, seed).n
                for quantity in QUANTITIES:
                    taken = records.moments(name, quantity, step, seed)
                    row |= {quantity: taken.mean, f"{quantity}_std": taken.std} if taken.n else {}
                rows.append(row)
        return [to_csv(rows)]

    def markdown(self, records: Records) -> str:
        """The paper's Table 2: Dice and folds after the trained steps, the best steps and the last step."""
        heads = [head for when in ("trained steps", "best steps", "last step") for head in (when, "Dice", "folds (%)")]
        rows = []
        for name in records.methods:
            trained, shown = _trained(records, name), records.conditions(name, "dice")
            best = max(shown, key=lambda step: _dice(records, name, step))
            rows.append([name, *(cell for step in (trained, best) for cell in _cells(records, name, step))])
            rows[-1] += _cells(records, name, self.steps) if len(shown) > 1 else ["–"] * 3
        return f"{table(['method', *heads], rows)}\n\n{_caption(records)}\n"

    def figure(self, records: Records) -> "Figure":
        """Dice and folds over steps, a tick at the trained ones; the band holds all seeds."""
        dice, folds = ([_line(records, name, q) for name in records.methods] for q in ("dice", "folds"))
        return draw(Panel("steps", "Dice", dice), Panel("steps", "folds (%)", folds, "symlog"))


def _trained(records: Records, name: str) -> int:
    return int(records.pairs(name, "trained", 0)[NO_PAIR])


def _dice(records: Records, name: str, step: int) -> float:
    dice = records.moments(name, "dice", step).mean
    return -math.inf if math.isnan(dice) else dice


def _cells(records: Records, name: str, step: int) -> list[str]:
    """The step, and Dice and folds after it."""
    taken = [records.moments(name, quantity, step) for quantity in ("dice", "folds")]
    return [str(step), *(f"{one.mean:.3f} ± {one.std:.3f}" if one.n else "none" for one in taken)]


def _line(records: Records, name: str, quantity: str) -> Line:
    steps, seeds = records.conditions(name, quantity), records.seeds(name)
    line = Line(name, steps, [records.moments(name, quantity, k).mean for k in steps], tick=_trained(records, name))
    if len(seeds) == 1:
        return line
    each = [[records.moments(name, quantity, k, seed).mean for seed in seeds] for k in steps]
    return replace(line, low=[min(means) for means in each], high=[max(means) for means in each])


def _caption(records: Records) -> str:
    first = records.methods[0]
    step = records.conditions(first, "dice")[0]
    n, pairs = records.moments(first, "dice", step).n, len(records.pairs(first, "dice", step))
    seeds = [f"{name} {count}" for name in records.methods if (count := len(records.seeds(name))) > 1]
    return (
        f"Mean ± standard deviation over {n} pair{'s' if n != 1 else ''}"
        + (f" of subjects ({pairs} slices)" if n < pairs else "")
        + "; steps are those of the finest level, no pair stops early; "
        + "best: the highest mean Dice of the steps seen, on these same pairs."
        + (f" Means over seeds: {', '.join(seeds)}." if seeds else "")
    )
