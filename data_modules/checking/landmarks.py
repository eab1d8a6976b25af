"""Landmarks in files, and rules on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.checking.findings import MISSING, Findings
from data_modules.layout import Case
from dio_lightning.errors import times


def read_points(case: Case, shape: Sequence[int], findings: Findings) -> NDArray[np.float64] | None:
    """Landmarks (n, d) in voxels from a CSV without header, finite and inside the grid; None, and why, if not."""
    path, d = case.keypoints, len(shape)
    assert path is not None
    if not path.is_file():
        findings.error(path, f"{MISSING}, expected the landmarks of {case.image.name}")
        return None
    try:
        points = _numbers(path)
    except (OSError, ValueError) as error:
        sentence = f"cannot be read as landmarks ({error}), expected rows of {d} numbers and no header"
        findings.error(path, sentence + _separator(path))
        return None
    if points.shape[1] != d or not len(points):
        findings.error(path, f"has {len(points)} rows of {points.shape[1]} numbers, expected rows of {d}")
        return None
    good = within(points, shape)
    if good.all():
        return points
    row = int(np.flatnonzero(~good)[0])
    values = ", ".join(f"{value:g}" for value in points[row])
    sentence = f"has {int((~good).sum())} of {len(points)} landmarks outside of the image of {times(shape)} voxels"
    hint = "; with reversed axes all are inside" if within(points[:, ::-1], shape).all() else ""
    findings.error(path, f"{sentence}, the first in row {row + 1}: ({values}){hint}")
    return None


def check_covered(path: Path, points: NDArray[np.float64], inside: NDArray[np.bool_], findings: Findings) -> None:
    """Landmarks lie inside the mask of their image."""
    missed = int((~inside[tuple(np.rint(points).astype(int).T)]).sum())
    if missed:
        findings.warning(path, f"has {missed} of {len(points)} landmarks outside of the mask")


def within(points: NDArray, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Which rows of landmarks (n, d) are finite and inside a grid, (n,)."""
    return np.asarray((np.isfinite(points) & (points >= 0) & (points <= np.array(shape) - 1)).all(axis=1))


def _numbers(path: Path) -> NDArray[np.float64]:
    # utf-8-sig: spreadsheets put a byte-order mark in front
    with open(path, encoding="utf-8-sig") as file:
        return np.loadtxt(file, delimiter=",", ndmin=2, dtype=np.float64)


def _separator(path: Path) -> str:
    """What to add to a sentence if the first row is separated by something else than commas."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            line = file.readline().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    other = next((mark for mark in (";", "\t", " ") if mark in line and "," not in line), None)
    return f": its numbers are separated by {other!r}, expected ','" if other else ""
