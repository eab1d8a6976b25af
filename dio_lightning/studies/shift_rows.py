"""Scores of pairs of several domains, as they are measured, kept on disk and read again."""

import csv
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dio_lightning.callbacks.files import write_atomic
from dio_lightning.callbacks.gathering import Row
from dio_lightning.callbacks.report import to_csv
from dio_lightning.studies.loading import PairId

FILES = ("shift.csv", "shift_structures.csv")
SCORES = ("dice", "hd95", "folds", "sdlogj", "seconds")
ROW = ("method", "weights", "domain", "fixed_id", "moving_id")
COLUMNS = (*ROW, *SCORES, "resampled", "key")
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
    """The rows so far; a copy lies on disk, at most half a minute old."""

    folder: Path
    known: dict[tuple[str, str, str, PairId], Solved] = field(default_factory=dict)
    rows: list[Solved] = field(default_factory=list)
    names: dict[str, Mapping[int, str]] = field(default_factory=dict)
    """Of structures, by domain."""
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, folder: Path, resume: bool) -> "Store":
        """A store without rows; with `resume`, rows that are in the folder are known.

        Raises:
            ValueError: files that this study did not write.
        """
        store = cls(folder)
        if resume and all((folder / name).is_file() for name in FILES):
            store.known = {row.identity: row for row in _read(folder)}
        return store

    def get(self, method: str, weights: str, domain: str, pair: PairId, key: str) -> Solved | None:
        """A known row, measured with the same weights and settings."""
        found = self.known.get((method, weights, domain, pair))
        return found if found is not None and found.key == key else None

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
        structures: list[Row] = []
        for row in self.rows:
            for label, dice in row.labels.items():
                known = self.names.get(row.domain, {})
                name: Row = {"name": known[label]} if label in known else {}
                structures.append(row.ids() | {"label": label, "dice": dice} | name)
        return dict(zip(FILES, (to_csv(rows, COLUMNS), to_csv(structures, STRUCTURES)), strict=True))


def _read(folder: Path) -> list[Solved]:
    try:
        labels: dict[tuple[str, ...], dict[int, float]] = {}
        with (folder / FILES[1]).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                own = labels.setdefault(tuple(row[name] for name in ROW), {})
                own[int(row["label"])] = float(row["dice"])
        rows = []
        with (folder / FILES[0]).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                method, weights, domain, *pair = ids = tuple(row[name] for name in ROW)
                scores = {name: float(row[name] or math.nan) for name in SCORES if name in row}
                own = labels.get(ids, {})
                resampled = row["resampled"] == "1"
                rows.append(Solved(method, weights, domain, (pair[0], pair[1]), scores, own, resampled, row["key"]))
        return rows
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{folder} has a {' or '.join(FILES)} that is not of this study: do not resume it") from None
