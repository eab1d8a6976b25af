"""Rules on values: intensities, labels, masks. A case is read once, by whoever reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.checking.findings import Findings
from data_modules.checking.headers import Asked, CaseHeaders, case_headers, usable_header
from data_modules.checking.landmarks import check_covered
from data_modules.layout import Case
from dio_lightning.findings import grey_mask
from dio_lightning.headers import Header, Unreadable

LARGEST_LABEL = 32767
WHOLE = 1e-3
"""Stored labels may differ from integers by this much: a scale of 0.1 in a header makes 3.0000000149 of a 3."""
SMALL = 2**20
"""Labels below this number are looked up in a table, others by bisection."""
SAMPLED = 500_000
"""Voxels of which percentiles are taken."""


@dataclass(frozen=True, eq=False)
class CaseVolumes:
    """The values of one case.

    Attributes:
        headers: of its files.
        image: float32 (*s).
        range: least value, 0.5 %, 99.5 % and largest value of the image.
        label: int16 (*s), with the labels asked for and their numbers.
        stored_labels: labels above 0 that the file has.
        inside: bool (*s), the mask.
    """

    headers: CaseHeaders
    image: NDArray[np.float32]
    range: tuple[float, float, float, float]
    label: NDArray[np.int16] | None = None
    stored_labels: frozenset[int] | None = None
    inside: NDArray[np.bool_] | None = None


def read_case(case: Case, asked: Asked, findings: Findings) -> CaseVolumes | None:
    """A case from its files; None, and why, if any of them is not as expected."""
    before = findings.errors
    headers = case_headers(case, asked, findings)
    volumes = case_volumes(headers, asked, findings) if headers is not None else None
    return volumes if findings.errors == before else None


def case_volumes(headers: CaseHeaders, asked: Asked, findings: Findings) -> CaseVolumes | None:
    """The values behind headers that can be used; None, and why, if the image's are not as expected."""
    label, stored, inside = _label_and_mask(headers.label, headers.mask, asked, findings)
    if headers.points is not None and inside is not None and headers.case.keypoints is not None:
        check_covered(headers.case.keypoints, headers.points, inside, findings)
    values = _values(headers.image, findings)
    if values is None or (limits := intensities(headers.image.path, values, asked, findings)) is None:
        return None
    # a copy: values that were mapped from a file would change with it
    image = np.array(values, dtype=np.float32, order="C")
    return CaseVolumes(headers, image, limits, label, stored, inside)


def check_beside(case: Case, asked: Asked, findings: Findings) -> None:
    """The label map and the mask of a case whose image cannot be used."""
    label, mask = (
        usable_header(path, f"the {kind} of a case", findings) if path is not None else None
        for kind, path in (("label", case.label), ("mask", case.mask))
    )
    _label_and_mask(label, mask, asked, findings)


def intensities(
    path: Path, values: NDArray, asked: Asked, findings: Findings
) -> tuple[float, float, float, float] | None:
    """Least value, 0.5 %, 99.5 % and largest value of an image; None, and why, if it cannot be registered."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            count = int((~np.isfinite(values.astype(np.float32))).sum())
        if count:
            sentence = f"has {count} voxels that are NaN or infinite, expected finite intensities"
            findings.error(path, f"{sentence} below {np.finfo(np.float32).max:.2g}")
            return None
    least, largest = float(values.min()), float(values.max())
    if least == largest:
        findings.error(path, f"is {least:g} everywhere, expected an image")
        return None
    flat = values.ravel(order="K")
    low, high = np.percentile(flat[:: max(1, flat.size // SAMPLED)], [0.5, 99.5])
    # the contrast of a few voxels above a background lies beyond the percentiles
    bottom, top, share = (low, high, " (0.5 to 99.5 %)") if high > low else (least, largest, "")
    if asked.clip is not None and (top <= asked.clip[0] or bottom >= asked.clip[1]):
        window = f"clip {list(asked.clip)}"
        findings.error(path, f"spans {bottom:g} to {top:g}{share}, all outside of {window}: nothing would be left")
        return None
    return least, float(low), float(high), largest


def label_map(
    path: Path, values: NDArray, chosen: Mapping[int, int] | None, findings: Findings
) -> tuple[NDArray[np.int16] | None, frozenset[int] | None]:
    """A label map with the labels that are chosen, and all labels above 0 of the file; None, and why, if not."""
    numbers = whole_labels(path, values, findings)
    if numbers is None:
        return None, None
    whole, stored = numbers
    labels = frozenset(int(value) for value in stored if value > 0)
    if chosen is not None:
        return renumbered(whole, stored, chosen), labels
    wrong = stored[(stored < 0) | (stored > LARGEST_LABEL)]
    if wrong.size:
        hint = f": choose labels or give them other numbers (`--data.labels '{{{wrong[-1]}: 1}}'`)"
        sentence = f"has the value {wrong[0]}, expected integers from 0 to {LARGEST_LABEL}"
        findings.error(path, sentence + (hint if wrong[-1] > LARGEST_LABEL else ""))
        return None, None
    return np.ascontiguousarray(whole, dtype=np.int16), labels


def whole_labels(path: Path, values: NDArray, findings: Findings) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Stored labels as integers, and which of them a map has, sorted; None, and why, if they are none or all 0."""
    whole = whole_numbers(path, values, findings)
    if whole is None:
        return None
    stored = present(whole)
    if not (stored != 0).any():
        findings.error(path, "is 0 everywhere, expected labels above 0")
        return None
    return whole, stored


def whole_numbers(path: Path, values: NDArray, findings: Findings) -> NDArray[np.int64] | None:
    """Stored labels as integers; None, and the digits that offend, if they are none."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    rounded = np.rint(values)
    # written so that NaN is wrong too
    wrong = ~(np.abs(values - rounded) <= WHOLE) | (np.abs(rounded) >= 2.0**63)
    if wrong.any():
        offending = values[wrong].flat[0]
        sentence = f"has the value {_digits(float(offending))}, expected integers from 0 to {LARGEST_LABEL}"
        findings.error(path, f"{sentence} (to {WHOLE:g})")
        return None
    return rounded.astype(np.int64)


def present(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The labels of a map, sorted."""
    if labels.min() < 0 or labels.max() >= SMALL:
        return np.unique(labels)
    return np.flatnonzero(np.bincount(labels.ravel(order="K")))


def renumbered(labels: NDArray[np.int64], stored: NDArray[np.int64], chosen: Mapping[int, int]) -> NDArray[np.int16]:
    """Chosen labels under their new numbers, others 0; `stored` are the labels of the map, sorted."""
    numbers = np.array([chosen.get(int(label), 0) for label in stored], dtype=np.int16)
    if stored[0] < 0 or stored[-1] >= SMALL:
        return np.ascontiguousarray(numbers[np.searchsorted(stored, labels)])
    table = np.zeros(int(stored[-1]) + 1, np.int16)
    table[stored] = numbers
    return np.ascontiguousarray(table[labels])


def check_mask(path: Path, values: NDArray, findings: Findings) -> NDArray[np.bool_] | None:
    """The voxels above 0; None, and why, if there are none."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        findings.error(path, f"has {count} voxels that are NaN or infinite, expected a mask of 0 and 1")
        return None
    inside = np.ascontiguousarray(values > 0)
    if not inside.any():
        sentence = "nowhere above 0" if (values < 0).any() else "0 everywhere"
        findings.error(path, f"is {sentence}, expected a mask with voxels above 0")
        return None
    if sentence := grey_mask(values):
        findings.warning(path, sentence)
    elif inside.all():
        findings.note(path, "covers every voxel: it masks nothing")
    return inside


def _label_and_mask(
    label: Header | None, mask: Header | None, asked: Asked, findings: Findings
) -> tuple[NDArray[np.int16] | None, frozenset[int] | None, NDArray[np.bool_] | None]:
    """The label map, all labels of its file, and the mask, as far as they are there and as expected."""
    chosen = stored = inside = None
    if label is not None and (values := _values(label, findings)) is not None:
        chosen, stored = label_map(label.path, values, asked.labels, findings)
    if mask is not None and (values := _values(mask, findings)) is not None:
        inside = check_mask(mask.path, values, findings)
    return chosen, stored, inside


def _values(header: Header, findings: Findings) -> NDArray | None:
    try:
        return header.values()
    except Unreadable as error:
        findings.error(header.path, error.sentence)
        return None


def _digits(value: float) -> str:
    """The shortest text that shows how a number differs from an integer."""
    short = f"{value:g}"
    return short if float(short) == value or not np.isfinite(value) else f"{value:.9g}"
