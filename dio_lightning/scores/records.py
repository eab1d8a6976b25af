"""What a study measures: long records, one number each, and how they are looked up."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from dio_lightning.scores.rows import PairId
from dio_lightning.scores.summary import moments

NO_PAIR: PairId = ("", "")
Condition = Any
"""Under what a number was taken, hashable: a step, a domain, an adjoint."""
Solve = tuple[str, PairId]
"""Seed and pair."""


class Record(NamedTuple):
    """One number: of a method, one of its seeds (its weights), under a condition, on a pair."""

    method: str
    seed: str
    condition: Condition
    pair: PairId
    quantity: str
    value: float


def of_batch(
    method: str, seed: str, condition: Condition, pairs: Sequence[PairId], quantity: str, values: Iterable[float]
) -> Iterator[Record]:
    """A record of every pair of a batch."""
    for pair, value in zip(pairs, values, strict=True):
        yield Record(method, seed, condition, pair, quantity, value)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (of the population) of the n finite numbers; NaN if there are none."""

    mean: float
    std: float
    n: int


class Records:
    """Long records, by method, quantity and condition, in the order in which they came."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._values: dict[tuple[str, str], dict[Condition, dict[Solve, float]]] = {}
        self._rows: dict[tuple[str, str, Condition, PairId], dict[str, float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """One more; it replaces one that differs in nothing but its value."""
        method, seed, condition, pair, quantity, value = record
        values = self._values.setdefault((method, quantity), {}).setdefault(condition, {})
        values[seed, pair] = self._rows.setdefault((method, seed, condition, pair), {})[quantity] = value

    @property
    def methods(self) -> list[str]:
        """Every method once."""
        return list(dict.fromkeys(method for method, _ in self._values))

    @property
    def weights(self) -> list[tuple[str, str]]:
        """Every method and seed once."""
        return list(dict.fromkeys((method, seed) for method, seed, _, _ in self._rows))

    def seeds(self, method: str) -> list[str]:
        """Every seed of a method once."""
        return [seed for name, seed in self.weights if name == method]

    def conditions(self, method: str, quantity: str, seed: str | None = None) -> list[Condition]:
        """Those under which a quantity of a method was taken, in rising order."""
        by_condition = self._values.get((method, quantity), {})
        return sorted(c for c, values in by_condition.items() if seed is None or any(seed == s for s, _ in values))

    def rows(self) -> Iterator[tuple[str, str, Condition, PairId, dict[str, float]]]:
        """Method, seed, condition, pair, and the value of each quantity that was taken there."""
        return ((*key, values) for key, values in self._rows.items())

    def solves(self, method: str, quantity: str, condition: Condition, seed: str | None = None) -> dict[Solve, float]:
        """A quantity of every solve, of one seed if it is named."""
        values = self._values.get((method, quantity), {}).get(condition, {})
        return {solve: value for solve, value in values.items() if seed in (None, solve[0])}

    def pairs(self, method: str, quantity: str, condition: Condition, seed: str | None = None) -> dict[PairId, float]:
        """A quantity of every pair, the mean over seeds."""
        seeds: dict[PairId, list[float]] = {}
        for (_, pair), value in self.solves(method, quantity, condition, seed).items():
            seeds.setdefault(pair, []).append(value)
        return {pair: fmean(values) for pair, values in seeds.items()}

    def moments(self, method: str, quantity: str, condition: Condition, seed: str | None = None) -> Moments:
        """Over pairs, each the mean over seeds; slices of one pair of subjects are averaged first."""
        return Moments(*moments(self.pairs(method, quantity, condition, seed)))

    def traces(self, method: str, quantity: str, seed: str | None = None) -> dict[Solve, dict[Condition, float]]:
        """A quantity of every solve by condition."""
        traces: dict[Solve, dict[Condition, float]] = {}
        for condition in self.conditions(method, quantity):
            for solve, value in self.solves(method, quantity, condition, seed).items():
                traces.setdefault(solve, {})[condition] = value
        return traces
