"""Pairs that a table lists: for data in no known layout."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from data_modules.base import Split
from data_modules.layout import Case, CasePair, Layout
from data_modules.volumes import VolumePairs
from dio_lightning.headers import stem

SIDES = ("fixed", "moving")
KINDS = {"label": "label", "mask": "mask", "points": "keypoints"}
"""What a column is called after its side, and the field of a case that it fills."""
COLUMNS = (*SIDES, *(f"{side}_{kind}" for kind in KINDS for side in SIDES), "split")
SPLITS: tuple[Split, ...] = get_args(Split)


class PairsCSV(VolumePairs):
    """Pairs listed in a CSV file, one a row.

    Its first row names the columns: `fixed` and `moving`, images; if wanted `fixed_label`, `moving_label`,
    `fixed_mask`, `moving_mask`, `fixed_points` and `moving_points` (landmarks: CSV files without header, voxels in
    array order, row by row the same point); if wanted `split`, one of train, val and test. Without `split` every row is
    in all three, so that one file serves fit, test and predict: scores are then scores on the training pairs. A cell
    may be empty if those of its column are empty in the whole split; label maps or masks of one side are enough where
    they shall be carried to the other one (an atlas). Ids are file names without extension, after as many folders as
    tell the files apart.

    Args:
        csv: The file.
        root: Folder that its paths are relative to. Default: the file's.
        common_grid: Fixed and moving image must lie on one grid. If not, a moving image may have another size or
            spacing; batches then hold one pair, and its `moving_affine` says where the moving image lies.
        **options: Those of `VolumePairs`.

    Raises:
        ValueError: if an argument is not as expected.
        FileNotFoundError, ValueError: in `setup`, with up to five sentences that name file, value and expectation.
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

    def read_layout(self) -> Layout:
        """The rows as pairs."""
        rows = read_rows(self.csv)
        paths = [self.root / Path(row.cells[side]).expanduser() for row in rows for side in SIDES]
        names = distinct_names(list(dict.fromkeys(paths)))
        listed = [(row, (self._case(row, "fixed", names), self._case(row, "moving", names))) for row in rows]
        _check_lists(self.csv, listed)
        train, val, test = ([pair for row, pair in listed if row.split in (None, name)] for name in SPLITS)
        without = rows[0].split is None
        remarks = ("has no column 'split': every pair is for training, validation and test",) if without else ()
        sided = {field for kind, field in KINDS.items() if _one_sided(rows, kind)}
        return Layout([], train, val, test, {}, remarks, without, frozenset(sided))

    def pairs(self, split: Split) -> list[CasePair]:
        """The pairs of a split, in the file's order.

        Raises:
            ValueError: if there is none.
        """
        if not {"train": self.layout.train, "val": self.layout.val, "test": self.layout.test}[split]:
            raise ValueError(f"{self.csv} has no row with the split {split!r}, expected at least one")
        return super().pairs(split)

    def _case(self, row: "Row", side: str, names: Mapping[Path, str]) -> Case:
        files = {field: row.cells.get(f"{side}_{kind}") for kind, field in KINDS.items()}
        given = {field: self.root / Path(cell).expanduser() for field, cell in files.items() if cell}
        image = self.root / Path(row.cells[side]).expanduser()
        return Case(image, given.get("label"), given.get("mask"), given.get("keypoints"), names[image])


@dataclass(frozen=True)
class Row:
    """Cells by column, without the split, and the line where they are."""

    line: int
    cells: Mapping[str, str]
    split: str | None


def read_rows(path: Path) -> list[Row]:
    """The rows of a table of pairs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the column, or line and cell, that is not as expected.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a CSV file with the columns fixed and moving")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, skipinitialspace=True)
            table = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}), expected a CSV file in UTF-8") from error
    columns = table[0][1] if table else []
    _check_separator(path, columns)
    _check_columns(path, columns)
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
        raise ValueError(f"{path} has no rows, expected one for every pair")
    _check_cells(path, rows)
    return rows


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


def _check_separator(path: Path, columns: Sequence[str]) -> None:
    """Spreadsheets of some countries separate by semicolons."""
    mark = next((mark for mark in (";", "\t") if len(columns) == 1 and mark in columns[0]), None)
    if mark is not None:
        raise ValueError(f"{path} separates its columns by {mark!r}, expected ','")


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    for column in SIDES:
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r} in its first row, expected fixed and moving")
    for column in columns:
        if column not in COLUMNS:
            raise ValueError(f"{path} has the column {column!r}, expected some of {', '.join(COLUMNS)}")
        if columns.count(column) > 1:
            raise ValueError(f"{path} has the column {column!r} twice, expected it once")
        side, _, kind = column.partition("_")
        other = f"{SIDES[1 - SIDES.index(side)]}_{kind}" if kind == "points" else None
        if other is not None and other not in columns:
            raise ValueError(f"{path} has the column {column!r} without {other!r}, expected both")


def _check_cells(path: Path, rows: Sequence[Row]) -> None:
    """Images are given; what one row of a split has, all of them have, landmarks for both sides."""
    for split in {row.split: None for row in rows}:
        part = [row for row in rows if row.split == split]
        for column in rows[0].cells:
            kind = column.partition("_")[2]
            pair = [column] if kind != "points" else [f"{side}_points" for side in SIDES]
            given = [row for row in part if any(row.cells[name] for name in pair)]
            for row in part:
                if not row.cells[column] and (given or not kind):
                    where = f"as line {given[0].line} has a {kind}" if kind else "of an image"
                    raise ValueError(f"{path}: line {row.line} has no {column}, expected a path {where}")


def _one_sided(rows: Sequence[Row], kind: str) -> bool:
    """Whether in some split fixed or moving images alone have a label map or a mask."""
    having = {(row.split, side) for row in rows for side in SIDES if row.cells.get(f"{side}_{kind}")}
    return any((split, SIDES[1 - SIDES.index(side)]) not in having for split, side in having)


def _check_lists(path: Path, listed: Sequence[tuple[Row, CasePair]]) -> None:
    """No pair is listed twice, and no image both for training and for something else, an atlas apart."""
    seen: dict[tuple[Path, Path], int] = {}
    trained: dict[Path, int] = {}
    atlases = set.intersection(*({fixed.image} for _, (fixed, _) in listed))
    for row, (fixed, moving) in listed:
        first = seen.setdefault((fixed.image, moving.image), row.line)
        if first != row.line:
            raise ValueError(f"{path}: line {row.line} repeats the pair of line {first}, expected every pair once")
        if row.split == "train":
            trained |= dict.fromkeys({fixed.image, moving.image} - atlases, row.line)
    for row, pair in listed:
        for case in pair:
            if row.split in ("val", "test") and case.image in trained:
                raise ValueError(
                    f"{path}: line {row.line} leaks: {case.image} is in line {trained[case.image]} for training too, "
                    "expected no image in both, unless it is fixed in every row"
                )
