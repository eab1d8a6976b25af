"""Subjects that a table lists: pairs are made of them."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from data_modules.layout import Case, Layout
from data_modules.sources.folder import divided
from data_modules.sources.tables import SPLITS, Row, TableData, check_cells, distinct_names, read_rows

KINDS = {"label": "label", "mask": "mask", "points": "keypoints"}
"""What a column is called, and the field of a case that it fills."""


class SubjectsCSV(TableData):
    """Subjects listed in a CSV file, one a row, of whom pairs are made.

    Its first row names the columns: `image`; if wanted `label`, `mask` and `points` (landmarks: CSV files without
    header, voxels in array order, row by row the same point of the body); `name`, an id where file names do not tell
    subjects apart; and `split`, one of train, val and test. Training draws pairs of two training subjects (`pairing`);
    validation and test pair each subject (fixed) with the next one of its split. Without `split` the last subjects are
    held out, and one line says how many. A cell may be empty if those of its column are empty in the whole split.

    Args:
        csv: The file.
        root: Folder that its paths are relative to. Default: the file's.
        common_grid: All images must lie on one grid. If not, they may differ in size and spacing: see `VolumePairs`.
        **options: Those of `VolumePairs`.

    Raises:
        ValueError: if an argument is not as expected.
        FileNotFoundError, ValueError: in `setup`, with up to five sentences that name file, value and expectation.
    """

    def read_layout(self) -> Layout:
        """The rows as subjects of their splits."""
        rows = read_rows(self.csv, ("image",), (*KINDS, "name"))
        check_cells(self.csv, rows, (), ("image",))
        first: dict[Path, int] = {}
        for row in rows:
            image = self._path(row.cells["image"]).resolve()
            if first.setdefault(image, row.line) != row.line:
                where = f"line {row.line} repeats the image of line {first[image]}"
                raise ValueError(f"{self.csv}: {where}, expected every subject once")
        names = distinct_names([self._path(row.cells["image"]) for row in rows])
        cases = [self._case(row, names) for row in rows]
        if rows[0].split is None:
            return divided(Layout(cases, [], [], [], {}))
        parts = {name: [case for case, row in zip(cases, rows, strict=True) if row.split == name] for name in SPLITS}
        for name, part in parts.items():
            if len(part) == 1:
                raise ValueError(
                    f"{self.csv} has one subject with the split {name!r}, expected at least two for a pair"
                )
        val, test = (list(pairwise(parts[name])) for name in ("val", "test"))
        return Layout(parts["train"], [], val, test, {})

    def _path(self, cell: str) -> Path:
        return self.root / Path(cell).expanduser()

    def _case(self, row: Row, names: Mapping[Path, str]) -> Case:
        image = self._path(row.cells["image"])
        files = {field: self._path(row.cells[kind]) for kind, field in KINDS.items() if row.cells.get(kind)}
        name = row.cells.get("name") or names[image]
        return Case(image, files.get("label"), files.get("mask"), files.get("keypoints"), name)
