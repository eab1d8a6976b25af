"""What a score is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from dio_lightning.scores.registered import Registered

SUFFIX = "_identity"
"""Ends the name of a score of u = 0."""
NONE = "–"
"""What stands in a table where there is no number."""

Better = Literal["larger", "smaller", "neither"]
Kind = Literal["pair", "cost", "solver"]
Digits = int | Callable[[float, float], str]


@dataclass(frozen=True)
class Score:
    """All that is said of a score anywhere.

    Args:
        name: in metrics.csv, summary.json, logs and options.
        heading: of its column in tables, its unit included.
        unit: that the name alone does not say, empty for pure numbers.
        digits: decimals, or how a number is written beside another one of a given size (number, size).
        better: which of two values is the better one; a score that says "neither" is not tested.
        needs: keys of a `Pair` without which there is none. A score that needs nothing sees the displacement alone, and
            says nothing where there is none.
        compute: its value for a pair, or one for every label that counts; None where the pair is too small for it.
            Absent if the score is none of a pair, but of what it took (`kind`).
        labelled: whether `compute` gives one value a label (n,); the pair's is the mean of those that are numbers.
        option: the field of `ScoreOptions` that asks for it, empty for a score that is always taken.
        constant: whether u = 0 has the same value for every pair, so that it need not be taken.
        kind: of a "pair"; a "cost", which the machine decides too; what a "solver" reports.
        shown: whether `compare` has a column of it that nobody asked for.
    """

    name: str
    heading: str
    unit: str = ""
    digits: Digits = 2
    better: Better = "neither"
    needs: tuple[str, ...] = ()
    compute: "Callable[[Registered], Tensor | float | None] | None" = None
    labelled: bool = False
    option: str = ""
    constant: bool = False
    kind: Kind = "pair"
    shown: bool = True

    @property
    def identity(self) -> bool:
        """Whether it is also taken of u = 0, as NAME_identity."""
        return bool(self.needs) and not self.constant

    @property
    def tested(self) -> bool:
        """Whether methods are compared on it."""
        return self.kind == "pair" and self.better != "neither"

    def measured_in(self, unit: str | None) -> "Score":
        """The same score in another unit; as it is for None."""
        if unit is None or not self.unit:
            return self
        return replace(self, unit=unit, heading=self.heading.replace(f"({self.unit})", f"({unit})"))

    def text(self, value: float, size: float | None = None) -> str:
        """The number as tables have it; with `size`, as that number is written: a deviation like its mean."""
        if math.isnan(value):
            return NONE
        if callable(self.digits):
            return self.digits(value, value if size is None else size)
        return f"{value:.{self.digits}f}"


def percent(value: float, size: float) -> str:
    """Two decimals, below 1 % four."""
    return f"{value:.{2 if abs(size) >= 1 else 4}f}"


def seconds(value: float, size: float) -> str:
    """One decimal, below a second two digits; a deviation has as many decimals as its mean."""
    mean = f"{size:.1f}" if size >= 1 else f"{size:.2g}"
    return f"{value:.{len(mean.partition('.')[2])}f}"
