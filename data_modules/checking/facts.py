"""What one case is: its files read once, its numbers kept, every oddity told."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from data_modules.checking.checks import LARGEST_LABEL, UNREADABLE, swapped, within
from data_modules.layout import Case
from dio_lightning.errors import times
from dio_lightning.findings import Finding, Severity


class Found:
    """Collects findings; files are named relative to the root of the data set."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.findings: list[Finding] = []

    def add(self, severity: Severity, path: Path, sentence: str) -> None:
        """One finding about one file."""
        self.findings.append(Finding(severity, (self.name(path),), sentence))

    def name(self, path: Path) -> str:
        """The path as a report names it."""
        inside = self.root is not None and path.is_relative_to(self.root) and path != self.root
        return path.relative_to(self.root).as_posix() if inside and self.root is not None else str(path)


@dataclass(frozen=True)
class Facts:
    """Numbers of one case; None for what it has not or what cannot be read.

    Attributes:
        spacing: millimetres per voxel along the array axes.
        axes: where the array axes point, as `nibabel.aff2axcodes`: LIA is left, inferior, anterior.
        range: least value, 0.5 %, 99.5 % and largest value of the image.
        points: number of landmarks.
        coverage: share of voxels inside the mask.
        outside: share of the image's signal (value above its minimum) outside of the mask.
        digest: of the image's values.
    """

    case: Case
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: str
    affine: np.ndarray = field(compare=False)
    range: tuple[float, float, float, float] | None = None
    labels: frozenset[int] | None = None
    points: int | None = None
    coverage: float | None = None
    outside: float | None = None
    digest: str = ""

    def as_json(self) -> dict[str, object]:
        """JSON values."""
        numbers = {k: getattr(self, k) for k in ("spacing", "range", "coverage", "outside", "points")}
        labels = None if self.labels is None else sorted(self.labels)
        return {"id": self.case.id, "shape": self.shape, "orientation": self.axes, "labels": labels, **numbers}


@dataclass(frozen=True)
class _Volume:
    data: np.ndarray
    affine: np.ndarray


def examine(case: Case, found: Found, affines: bool = True) -> Facts | None:
    """Read all files of a case and tell what is wrong with each; None if its image cannot be read.

    With `affines`, those of label map and mask must be the image's.
    """
    volumes = {kind: _read(path, kind, found) for kind, path in case.volumes.items()}
    image = volumes.pop("image")
    for kind, volume in volumes.items():
        if image is not None and volume is not None:
            volumes[kind] = volume if _on_grid(case.volumes[kind], volume, image, affines, found) else None
    facts: dict[str, Any] = {}
    label, mask, inside = volumes.get("label"), volumes.get("mask"), None
    if label is not None and case.label is not None:
        facts["labels"] = _labels(case.label, label.data, found)
    if mask is not None and case.mask is not None:
        inside = mask.data > 0
        facts |= _mask(case.mask, inside, None if image is None else image.data, found)
    if image is None:
        return None
    facts["range"] = _intensities(case.image, image.data, found)
    if case.keypoints is not None:
        facts["points"] = _points(case.keypoints, image.data.shape, inside, found)
    d = image.data.ndim
    spacing = tuple(round(float(s), 4) for s in np.linalg.norm(image.affine[:3, :d], axis=0))
    digest = hashlib.blake2b(np.ascontiguousarray(image.data).tobytes(), digest_size=16).hexdigest()
    axes = "".join(code or "?" for code in nib.aff2axcodes(image.affine)[:d])  # pyright: ignore
    return Facts(case, image.data.shape, spacing, axes, image.affine, digest=digest, **facts)


def _read(path: Path, kind: str, found: Found) -> _Volume | None:
    """Values as stored, without trailing axes of one voxel, and the affine."""
    if not path.is_file():
        found.add("error", path, f"does not exist, expected the {kind} of a case")
        return None
    try:
        volume: Any = nib.load(path)  # pyright: ignore[reportPrivateImportUsage]
        data, affine = np.asarray(volume.dataobj), np.asarray(volume.affine)
    except (*UNREADABLE, ValueError) as error:
        why = str(error).replace(str(path), path.name)
        found.add("error", path, f"cannot be read ({why}), expected a whole NIfTI or Analyze file")
        return None
    while data.ndim > 2 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim not in (2, 3) or data.dtype.kind not in "buif":
        what = f"has shape {times(data.shape)} and type {data.dtype}"
        found.add("error", path, f"{what}, expected two or three axes of real numbers")
        return None
    if kind == "image" and not _header(path, volume.header, affine, found):
        return None
    return _Volume(data, affine)


def _header(path: Path, header: Any, affine: np.ndarray, found: Found) -> bool:  # noqa: ANN401
    """Whether the affine can be used; tells if it says nothing."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        found.add("error", path, f"has the affine {np.round(affine[:3], 3).tolist()}, expected an invertible one")
        return False
    codes = [int(header[key]) for key in ("qform_code", "sform_code") if key in header]
    if not codes:
        found.add("note", path, "is an Analyze file: its header has a voxel size but no orientation")
    elif not any(codes):
        sentence = "has a header without affine (qform and sform code 0): its orientation and origin are made up"
        found.add("warning", path, sentence)
    elif all(codes):
        one, two = header.get_qform(), header.get_sform()
        if np.abs(one - two)[:3, :3].max() > 0.05 * np.linalg.norm(two[:3, :3], axis=0).min():
            found.add("warning", path, "has a qform and an sform of different axes; the sform is used")
    return True


def _on_grid(path: Path, volume: _Volume, image: _Volume, affines: bool, found: Found) -> bool:
    """Whether a label map or mask has the image's shape; its affine too, or an error is told."""
    if volume.data.shape != image.data.shape:
        sentence = f"has shape {times(volume.data.shape)}, expected {times(image.data.shape)} as its image"
        found.add("error", path, sentence + swapped(volume.data.shape, image.data.shape))
        return False
    if (
        affines
        and np.abs(volume.affine - image.affine).max() > 0.01 * np.linalg.norm(image.affine[:3, :3], axis=0).min()
    ):
        text = [str(np.round(a[:3], 3).tolist()) for a in (volume.affine, image.affine)]
        found.add("error", path, f"has the affine {text[0]}, expected {text[1]} as its image")
    return True


def _intensities(path: Path, data: np.ndarray, found: Found) -> tuple[float, float, float, float] | None:
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        count = int((~np.isfinite(data)).sum())
        found.add("error", path, f"has {count} voxels that are NaN or infinite, expected finite intensities")
        return None
    least, largest = float(data.min()), float(data.max())
    if least == largest:
        found.add("error", path, f"is {least:g} everywhere, expected an image")
        return None
    values = data.ravel(order="K")
    low, high = np.percentile(values[:: max(1, values.size // 500_000)], [0.5, 99.5])
    return least, float(low), float(high), largest


def _labels(path: Path, data: np.ndarray, found: Found) -> frozenset[int] | None:
    wrong = (data < 0) | (data > LARGEST_LABEL)
    if data.dtype.kind == "f":
        wrong |= data != np.round(data)
    if wrong.any():
        sentence = f"has the value {data[wrong][0]:g}, expected integers from 0 to {LARGEST_LABEL}"
        found.add("error", path, sentence)
        return None
    values = np.flatnonzero(np.bincount(data.ravel(order="K").astype(np.int64)))
    if not values.any():
        found.add("error", path, "is 0 everywhere, expected labels above 0")
    return frozenset(int(value) for value in values if value > 0)


def _mask(path: Path, inside: np.ndarray, image: np.ndarray | None, found: Found) -> dict[str, float]:
    if not inside.any():
        found.add("error", path, "is 0 everywhere, expected a mask with voxels above 0")
        return {"coverage": 0.0}
    coverage = float(inside.mean())
    if coverage == 1:
        found.add("note", path, "covers every voxel: it masks nothing")
    if image is None:
        return {"coverage": coverage}
    signal = image.astype(np.float32) - float(np.nanmin(image))
    total = float(np.nansum(signal))
    return {"coverage": coverage, **({"outside": float(np.nansum(signal[~inside]) / total)} if total > 0 else {})}


def _points(path: Path, shape: Sequence[int], inside: np.ndarray | None, found: Found) -> int | None:
    d = len(shape)
    if not path.is_file():
        found.add("error", path, "does not exist, expected the landmarks of a case")
        return None
    try:
        points = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float64)
    except (OSError, ValueError) as error:
        sentence = f"cannot be read as landmarks ({error}), expected rows of {d} numbers and no header"
        found.add("error", path, sentence)
        return None
    if points.shape[1] != d or not len(points):
        found.add("error", path, f"has {len(points)} rows of {points.shape[1]} numbers, expected rows of {d}")
        return None
    good = within(points, shape)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        values = ", ".join(f"{value:g}" for value in points[row])
        sentence = f"has {int((~good).sum())} of {len(points)} landmarks outside of the image of {times(shape)} voxels"
        hint = "; with reversed axes all are inside" if within(points[:, ::-1], shape).all() else ""
        found.add("error", path, f"{sentence}, the first in row {row + 1}: ({values}){hint}")
    elif inside is not None:
        missed = int((~inside[tuple(np.rint(points).astype(int).T)]).sum())
        if missed:
            found.add("warning", path, f"has {missed} of {len(points)} landmarks outside of the mask")
    return len(points)
