"""Scores of many methods on the pairs of many data sets, as they are taken: kept on disk and read again."""

import csv
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dio_lightning.files import write_atomic
from dio_lightning.scores.rows import IDS, PairId, Row, scores_of, to_csv

ROW = ("method", "weights", "domain", *IDS)
NOTES = ("resampled", "key")
STRUCTURES = (*ROW, "label", "name", "dice")
EVERY = 30.0
"""Seconds between two copies on disk."""


@dataclass(frozen=True)
class Solved:
    """What one method, one of its seeds, made of one pair; `labels` is Dice by structure."""

    method: str
    weights: str
    domain: str
    pair: PairId
    scores: Mapping[str, float]
    labels: Mapping[int, float]
    resampled: bool
    key: str
    """Of the weights and of all settings."""

    @property
    def identity(self) -> tuple[str, str, str, PairId]:
        """No two rows have the same."""
        return self.method, self.weights, self.domain, self.pair

    def ids(self) -> Row:
        """The first columns of its rows."""
        return dict(zip(ROW, (self.method, self.weights, self.domain, *self.pair), strict=True))


@dataclass
class Store:
    """The rows so far; a copy lies on disk, in NAME.csv and NAME_structures.csv, at most half a minute old."""

    folder: Path
    name: str
    earlier: dict[tuple[str, str, str, PairId], Solved] = field(default_factory=dict)
    rows: list[Solved] = field(default_factory=list)
    structures: dict[str, Mapping[int, str]] = field(default_factory=dict)
    """Names of labels, by domain."""
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, folder: Path, name: str, resume: bool) -> "Store":
        """A store without rows; with `resume`, rows that are in the folder can be had by `get`.

        Raises:
            ValueError: files that no store wrote.
        """
        store = cls(folder, name)
        if resume and all((folder / file).is_file() for file in store.files):
            store.earlier = {row.identity: row for row in store._read()}
        return store

    @property
    def files(self) -> tuple[str, str]:
        """Names of the two tables."""
        return f"{self.name}.csv", f"{self.name}_structures.csv"

    def get(self, method: str, weights: str, domain: str, pair: PairId, key: str) -> Solved | None:
        """An earlier row that was measured with the same weights and settings."""
        row = self.earlier.get((method, weights, domain, pair))
        return row if row is not None and row.key == key else None

    def add(self, row: Solved) -> None:
        """One more row."""
        self.rows.append(row)
        if time.monotonic() - self.saved > EVERY:
            for name, text in self.contents().items():
                write_atomic(self.folder / name, text)
            self.saved = time.monotonic()

    def contents(self) -> dict[str, str]:
        """The two tables by file name."""
        rows = [row.ids() | dict(row.scores) | {"resampled": int(row.resampled), "key": row.key} for row in self.rows]
        columns = (*ROW, *scores_of(row.scores for row in self.rows), *NOTES)
        structures: list[Row] = []
        for row in self.rows:
            for label, dice in row.labels.items():
                names = self.structures.get(row.domain, {})
                name: Row = {"name": names[label]} if label in names else {}
                structures.append(row.ids() | {"label": label, "dice": dice} | name)
        return dict(zip(self.files, (to_csv(rows, columns), to_csv(structures, STRUCTURES)), strict=True))

    def _read(self) -> list[Solved]:
        try:
            labels: dict[tuple[str, ...], dict[int, float]] = {}
            for row in _lines(self.folder / self.files[1]):
                labels.setdefault(tuple(row[name] for name in ROW), {})[int(row["label"])] = float(row["dice"])
            solved = []
            for row in _lines(self.folder / self.files[0]):
                method, weights, domain, *pair = ids = tuple(row[name] for name in ROW)
                scores = {k: float(text or math.nan) for k, text in row.items() if k not in (*ROW, *NOTES)}
                own, resampled = labels.get(ids, {}), row["resampled"] == "1"
                solved.append(Solved(method, weights, domain, (pair[0], pair[1]), scores, own, resampled, row["key"]))
            return solved
        except (KeyError, ValueError, TypeError):
            files = " or ".join(self.files)
            raise ValueError(f"{self.folder} has a {files} that is not of this study: do not resume it") from None


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
