"""Rows of numbers, one a pair: the order of their columns, and CSV."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence

from dio_lightning.scores.score import SUFFIX
from dio_lightning.scores.vocabulary import SCORES

Row = dict[str, float | int | str]
PairId = tuple[str, str]
"""fixed_id, moving_id."""
Values = dict[PairId, float]
"""One score of every pair; NaN where there is no number."""

IDS = ("fixed_id", "moving_id")
_LISTED = tuple(score.name for score in SCORES) + tuple(f"{score.name}{SUFFIX}" for score in SCORES if score.identity)


def scores_of(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Names of the scores that some row has, of u = 0 too: the vocabulary's first, then others as they come."""
    names = dict.fromkeys(name for row in rows for name in row if name not in IDS)
    return [name for name in _LISTED if name in names] + [name for name in names if name not in _LISTED]


def label_columns() -> tuple[str, ...]:
    """Columns of a table with a row for each label of each pair."""
    names = [(s.name, f"{s.name}{SUFFIX}") if s.identity else (s.name,) for s in SCORES if s.labelled]
    return (*IDS, "label", "name", *(name for both in names for name in both))


def to_csv(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Rows as CSV; a column that no row has is left out, a value that a row lacks, or None, is empty, NaN is "nan"."""
    used = [name for name in columns if any(name in row for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, used, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def cells_csv(rows: Iterable[Sequence[object]]) -> str:
    """Lines of cells as CSV, NaN as an empty cell."""
    text = io.StringIO()
    plain = [["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows]
    csv.writer(text, lineterminator="\n").writerows(plain)
    return text.getvalue()
