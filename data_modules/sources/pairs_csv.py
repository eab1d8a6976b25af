"""Pairs that a table lists: for data in no known layout."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_modules.base import Split
from data_modules.layout import Case, CasePair, Layout
from data_modules.sources.tables import SPLITS, Row, TableData, check_cells, distinct_names, read_rows

SIDES = ("fixed", "moving")
KINDS = {"label": "label", "mask": "mask", "points": "keypoints"}
"""What a column is called after its side, and the field of a case that it fills."""
COLUMNS = tuple(f"{side}_{kind}" for kind in KINDS for side in SIDES)


class PairsCSV(TableData):
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
            spacing: see `VolumePairs`.
        **options: Those of `VolumePairs`.

    Raises:
        ValueError: if an argument is not as expected.
        FileNotFoundError, ValueError: in `setup`, with up to five sentences that name file, value and expectation.
    """

    def read_layout(self) -> Layout:
        """The rows as pairs."""
        rows = read_rows(self.csv, SIDES, COLUMNS)
        _check_points(self.csv, rows[0].cells)
        check_cells(self.csv, rows, [[f"{side}_points" for side in SIDES]], SIDES)
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

    def _case(self, row: Row, side: str, names: Mapping[Path, str]) -> Case:
        files = {field: row.cells.get(f"{side}_{kind}") for kind, field in KINDS.items()}
        given = {field: self.root / Path(cell).expanduser() for field, cell in files.items() if cell}
        image = self.root / Path(row.cells[side]).expanduser()
        return Case(image, given.get("label"), given.get("mask"), given.get("keypoints"), names[image])


def _check_points(path: Path, columns: Iterable[str]) -> None:
    """Landmarks of one image alone say nothing."""
    for side, other in (SIDES, SIDES[::-1]):
        if f"{side}_points" in columns and f"{other}_points" not in columns:
            raise ValueError(f"{path} has the column '{side}_points' without '{other}_points', expected both")


def _one_sided(rows: Sequence[Row], kind: str) -> bool:
    """Whether in some split fixed or moving images alone have a label map or a mask."""
    having = {(row.split, side) for row in rows for side in SIDES if row.cells.get(f"{side}_{kind}")}
    return any((split, SIDES[1 - SIDES.index(side)]) not in having for split, side in having)


def _check_lists(path: Path, listed: Sequence[tuple[Row, CasePair]]) -> None:
    """No image with itself, no pair twice, no image both for training and for something else, an atlas apart."""
    lines: dict[tuple[Path, Path], int] = {}
    trained: dict[Path, int] = {}
    atlases = set.intersection(*({fixed.image} for _, (fixed, _) in listed))
    for row, (fixed, moving) in listed:
        if fixed.image.resolve() == moving.image.resolve():
            raise ValueError(f"{path}: line {row.line} pairs {fixed.image} with itself, expected two images")
        first = lines.setdefault((fixed.image, moving.image), row.line)
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
