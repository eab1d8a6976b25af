"""Points in files: CSV, with or without a header, and Slicer's .fcsv and .mrk.json; everything else in them is kept."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dio_lightning.errors import times
from dio_lightning.files import write_atomic
from dio_lightning.transforms.world import ImageGrid

Coordinates = Literal["ras", "lps", "voxels"]
ENDINGS = (".mrk.json", ".json", ".fcsv", ".csv")
NAMES = {"0": "ras", "1": "lps", "2": "voxels", "ras": "ras", "lps": "lps", "ijk": "voxels"}
"""How Slicer calls coordinates, by number in its older files."""
_FLIP = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class PointFile:
    """Points of a file, as the file has them.

    Attributes:
        values: (n, 2) or (n, 3).
        coordinates: what they are, if the file says so: `ras` and `lps` in millimetres, or `voxels`.
        text: the file's content with other values in their place.
    """

    values: NDArray[np.float64]
    coordinates: Coordinates | None
    text: Callable[[NDArray[np.float64]], str]

    def write(self, path: Path, values: NDArray[np.float64]) -> None:
        """Write the file with other values; whole or not at all."""
        write_atomic(path, self.text(values))


def is_points(path: Path) -> bool:
    """Whether a file has the ending of points."""
    return path.name.lower().endswith(ENDINGS)


def read_points(path: Path) -> PointFile:
    """The points of a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no points.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected points")
    try:
        text = path.read_text(encoding="utf-8-sig")
        read = _json if path.name.lower().endswith(".json") else _fcsv if path.suffix.lower() == ".fcsv" else _csv
        return read(text)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, csv.Error) as error:
        why = str(error) if type(error) is ValueError else f"cannot be read as points ({error!r})"
        raise ValueError(f"{path} {why.splitlines()[0]}") from error


def coordinates_of(file: PointFile, path: Path, asked: Coordinates | None) -> Coordinates:
    """What the numbers of a file are: what the file says, or else what is asked for.

    Raises:
        ValueError: if neither says it, or they contradict each other.
    """
    if file.coordinates is not None and asked not in (None, file.coordinates):
        raise ValueError(f"{path} says that it is in {file.coordinates}, --coordinates {asked}")
    coordinates = file.coordinates or asked
    if coordinates is None:
        raise ValueError(f"{path} does not say what its numbers are: name it with --coordinates ras|lps|voxels")
    return coordinates


def to_world(values: NDArray[np.float64], coordinates: Coordinates, grid: ImageGrid | None) -> NDArray[np.float64]:
    """Values of a file in RAS millimetres; voxels of `grid` have three coordinates there, on a plane too."""
    d = values.shape[1]
    if coordinates != "voxels":
        return values * _FLIP[:d] if coordinates == "lps" else values
    affine = _of(grid, d)
    return values @ affine[:3, :d].T + affine[:3, 3]


def from_world(
    points: NDArray[np.float64], coordinates: Coordinates, grid: ImageGrid | None, d: int
) -> NDArray[np.float64]:
    """RAS millimetres as d coordinates of a file."""
    if coordinates != "voxels":
        return points[:, :d] * (_FLIP[:d] if coordinates == "lps" else 1.0)
    affine = _of(grid, d)
    return (points - affine[:3, 3]) @ np.linalg.pinv(affine[:3, :d]).T


def _of(grid: ImageGrid | None, d: int) -> NDArray[np.float64]:
    if grid is None or len(grid.size) != d:
        what = "no image" if grid is None else f"an image of {times(grid.size)} voxels"
        raise ValueError(f"points have {d} coordinates in voxels, but {what} says where these lie")
    return grid.affine


def _csv(text: str) -> PointFile:
    """Columns x, y and z where a header names them, else the only two or three columns."""
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError("holds no points")
    names = [cell.strip().lower() for cell in rows[0]]
    header = not all(map(_is_number, names))
    columns = [names.index(axis) for axis in "xyz" if axis in names] if header else list(range(len(names)))
    if len(columns) not in (2, 3):
        raise ValueError("has no columns x, y (and z), expected them in its header, or two or three columns alone")
    body = rows[1:] if header else rows
    for number, row in enumerate(body, start=2 if header else 1):
        if len(row) != len(names) or not all(_is_number(row[column]) for column in columns):
            raise ValueError(f"has no {len(columns)} numbers in row {number}: {','.join(row)[:60]}")

    def replaced(values: NDArray[np.float64]) -> str:
        out = [row.copy() for row in rows]
        for row, point in zip(out[1:] if header else out, values, strict=True):
            for column, value in zip(columns, point, strict=True):
                row[column] = _digits(value)
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(out)
        return stream.getvalue()

    return PointFile(_array([[row[column] for column in columns] for row in body]), None, replaced)


def _fcsv(text: str) -> PointFile:
    """Slicer's markups before version 5: id, x, y, z, ...; the comments say which coordinates."""
    lines = text.splitlines()
    said = [line.partition("=")[2].strip().lower() for line in lines if line.startswith("# CoordinateSystem")]
    if not said or said[0] not in NAMES:
        raise ValueError("does not say its CoordinateSystem, expected LPS or RAS")
    at = [index for index, line in enumerate(lines) if line.strip() and not line.startswith("#")]

    def replaced(values: NDArray[np.float64]) -> str:
        out = list(lines)
        for index, point in zip(at, values, strict=True):
            cells = out[index].split(",")
            out[index] = ",".join([cells[0], *map(_digits, point), *cells[4:]])
        return "\n".join(out) + "\n"

    return PointFile(_array([lines[index].split(",")[1:4] for index in at]), _named(said[0]), replaced)


def _json(text: str) -> PointFile:
    """Slicer's markups: control points of every markup of the file, in one system of coordinates."""
    content: Any = json.loads(text)
    markups = content["markups"]
    said = {str(markup.get("coordinateSystem", "LPS")).lower() for markup in markups}
    if len(said) != 1 or not said <= set(NAMES):
        raise ValueError(f"has markups in {' and '.join(sorted(said)) or 'no'} coordinates, expected LPS or RAS")
    points = [point for markup in markups for point in markup["controlPoints"]]

    def replaced(values: NDArray[np.float64]) -> str:
        for point, value in zip(points, values, strict=True):
            point["position"] = [float(coordinate) for coordinate in value]
        return json.dumps(content, indent=2) + "\n"

    return PointFile(_array([point["position"] for point in points]), _named(said.pop()), replaced)


def _array(rows: list[Any]) -> NDArray[np.float64]:
    if not rows:
        raise ValueError("holds no points")
    try:
        values = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
    except ValueError as error:
        raise ValueError(f"holds points that are no numbers ({error})") from error
    if not np.isfinite(values).all():
        raise ValueError("holds points that are NaN or infinite")
    return values


def _named(word: str) -> Coordinates:
    name = NAMES[word]
    return "ras" if name == "ras" else "lps" if name == "lps" else "voxels"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _digits(value: float) -> str:
    return f"{value:.9g}"
