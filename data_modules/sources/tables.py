"""CSV files that list images: what every such table must satisfy."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from data_modules.base import Split
from data_modules.volumes import VolumePairs
from dio_lightning.headers import stem

SPLITS: tuple[Split, ...] = get_args(Split)


class TableData(VolumePairs):
    """What data sets that a CSV file lists have in common: the file, and the folder that its paths are relative to.

    Args:
        csv: The file.
        root: Folder that its paths are relative to. Default: the file's.
        common_grid: See `VolumePairs`.
        **options: Those of `VolumePairs`.
    """

    def __init__(
        self,
        csv: str,
        root: str | None = None,
        common_grid: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.csv = Path(csv).expanduser()
        super().__init__(root if root is not None else str(self.csv.parent), common_grid=common_grid, **options)

    @property
    def source(self) -> Path:
        """The table."""
        return self.csv


@dataclass(frozen=True)
class Row:
    """Cells by column, without the split, and the line where they are."""

    line: int
    cells: Mapping[str, str]
    split: str | None


def read_rows(path: Path, needed: Sequence[str], others: Sequence[str]) -> list[Row]:
    """The rows of a table with the needed columns and, if it has them, others and `split`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the column, or line and cell, that is not as expected.
    """
    names = " and ".join(needed)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a CSV file with the columns {names}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, skipinitialspace=True)
            table = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}), expected a CSV file in UTF-8") from error
    columns = table[0][1] if table else []
    _check_separator(path, columns)
    _check_columns(path, columns, needed, [*needed, *others, "split"])
    rows = []
    for line, cells in table[1:]:
        if len(cells) != len(columns):
            raise ValueError(f"{path}: line {line} has {len(cells)} cells, expected {len(columns)} as in its first row")
        row = dict(zip(columns, cells, strict=True))
        split = row.pop("split", None)
        if split is not None and split not in SPLITS:
            raise ValueError(f"{path}: line {line} has the split {split!r}, expected one of {', '.join(SPLITS)}")
        rows.append(Row(line, row, split))
    if not rows:
        raise ValueError(f"{path} has no rows, expected at least one")
    return rows


def check_cells(path: Path, rows: Sequence[Row], together: Sequence[Sequence[str]], needed: Sequence[str]) -> None:
    """What one row of a split has, all rows of the split have; columns that belong together are filled together.

    Raises:
        ValueError: naming line and column of a cell that is empty.
    """
    for split in {row.split: None for row in rows}:
        part = [row for row in rows if row.split == split]
        for column in rows[0].cells:
            group = next((names for names in together if column in names), [column])
            given = [row for row in part if any(row.cells[name] for name in group)]
            for row in part:
                if not row.cells[column] and (given or column in needed):
                    where = (
                        "of an image"
                        if column in needed
                        else f"as line {given[0].line} has a {column.rpartition('_')[2]}"
                    )
                    raise ValueError(f"{path}: line {row.line} has no {column}, expected a path {where}")


def distinct_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for every file: its stem, after as many of its folders as are needed to tell it from the others.

    Raises:
        ValueError: if names do not tell two files apart, as those that differ in nothing but their extension.
    """
    folders = {path: [part for part in path.parent.parts if part != path.anchor] for path in paths}
    depths = dict.fromkeys(paths, 0)
    while True:
        names = {
            path: "_".join([*folders[path][len(folders[path]) - depths[path] :], stem(path.name)]) for path in paths
        }
        used = list(names.values())
        alike = [path for path, name in names.items() if used.count(name) > 1]
        if not alike:
            return names
        if all(depths[path] == len(folders[path]) for path in alike):
            raise ValueError(f"{alike[0]} and another file get the id {names[alike[0]]!r}, expected other file names")
        depths |= {path: min(depths[path] + 1, len(folders[path])) for path in alike}


def _check_columns(path: Path, columns: Sequence[str], needed: Sequence[str], allowed: Sequence[str]) -> None:
    for column in needed:
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r} in its first row, expected {' and '.join(needed)}")
    for column in columns:
        if column not in allowed:
            raise ValueError(f"{path} has the column {column!r}, expected some of {', '.join(allowed)}")
        if columns.count(column) > 1:
            raise ValueError(f"{path} has the column {column!r} twice, expected it once")


def _check_separator(path: Path, columns: Sequence[str]) -> None:
    """Spreadsheets of some countries separate by semicolons."""
    mark = next((mark for mark in (";", "\t") if len(columns) == 1 and mark in columns[0]), None)
    if mark is not None:
        raise ValueError(f"{path} separates its columns by {mark!r}, expected ','")
