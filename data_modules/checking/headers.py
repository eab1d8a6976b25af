"""Rules on headers: what can be told of files without reading their values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.checking.findings import MISSING, Findings, watched
from data_modules.checking.landmarks import read_points
from data_modules.checking.places import apart
from data_modules.layout import Case, CasePair
from dio_lightning.errors import times
from dio_lightning.fields.placing import corners_apart, same_grid
from dio_lightning.headers import Header, Unreadable, read_header


@dataclass(frozen=True)
class Asked:
    """What a data module asks of its files; the meaning of each is in `VolumePairs`.

    Attributes:
        labels: labels that are kept, with the number that each gets; None keeps all.
        affines: the affines of label maps and masks, and of pairs on a common grid, are compared.
    """

    common_grid: bool = True
    normalise: str = "none"
    clip: Sequence[float] | None = None
    labels: dict[int, int] | None = None
    mask_images: bool = False
    affines: bool = True


@dataclass(frozen=True)
class CaseHeaders:
    """The headers of one case that can be used; `image` is always there. Landmarks are (n, d) in voxels."""

    case: Case
    image: Header
    label: Header | None = None
    mask: Header | None = None
    points: NDArray[np.float64] | None = None


def check_headers(
    cases: Sequence[Case], asked: Asked, findings: Findings, progress: bool = True
) -> dict[Case, CaseHeaders]:
    """The headers of cases whose image can be used."""
    headers = {}
    for case in watched(cases, "Checking headers", progress):
        if (usable := case_headers(case, asked, findings)) is not None:
            headers[case] = usable
    return headers


def case_headers(case: Case, asked: Asked, findings: Findings) -> CaseHeaders | None:
    """The headers of a case; None if its image cannot be used."""
    if asked.mask_images and case.mask is None:
        findings.error(case.image, "has no mask, expected one for mask_images")
    headers = {kind: usable_header(path, f"the {kind} of a case", findings) for kind, path in case.volumes.items()}
    image = headers.pop("image")
    for kind, header in headers.items():
        if image is not None and header is not None and not _on_grid(header, image, asked.affines, findings):
            headers[kind] = None
    if image is None or not _as_promised(case, image, findings):
        return None
    _orientation(image, findings)
    points = read_points(case, image.shape, findings) if case.keypoints is not None else None
    return CaseHeaders(case, image, headers.get("label"), headers.get("mask"), points)


def usable_header(path: Path, what: str, findings: Findings) -> Header | None:
    """The header of a whole volume of real numbers at a place in the world; None, and why, if it is no such."""
    if not path.is_file():
        findings.error(path, f"{MISSING}, expected {what}")
        return None
    try:
        header = read_header(path)
    except Unreadable as error:
        findings.error(path, error.sentence)
        return None
    if header.dimension not in (2, 3):
        findings.error(path, f"has shape {times(header.shape)}, expected two or three axes")
    elif header.dtype.kind not in "buif":
        findings.error(path, f"has the type {header.dtype}, expected real numbers")
    elif not header.invertible:
        findings.error(path, f"has the affine {_rows(header)} ({header.source}), expected an invertible one")
    elif (why := header.cut_off) is not None:
        findings.error(path, f"is cut off ({why}), expected all {times(header.shape)} voxels of its header")
    else:
        return header
    return None


def dimension_of(case: Case) -> int:
    """Number of axes of a case's image.

    Raises:
        FileNotFoundError, ValueError: if its header cannot be used.
    """
    findings = Findings()
    header = usable_header(case.image, "the image of a case", findings)
    findings.stop()
    assert header is not None
    return header.dimension


def check_pairs(pairs: Iterable[CasePair], headers: dict[Case, CaseHeaders], asked: Asked, findings: Findings) -> None:
    """The two images of a pair have equally many axes and landmarks, and lie on one grid or at least overlap."""
    compared: set[frozenset[Case]] = set()
    for fixed, moving in pairs:
        if fixed not in headers or moving not in headers or frozenset((fixed, moving)) in compared:
            continue
        compared.add(frozenset((fixed, moving)))
        one, two = headers[fixed], headers[moving]
        _paired(two.image, one.image, asked, findings)
        if one.points is not None and two.points is not None and moving.keypoints and fixed.keypoints:
            check_counts(moving.keypoints, len(two.points), fixed.keypoints, len(one.points), findings)


def check_counts(moving: Path, count: int, fixed: Path, expected: int, findings: Findings) -> None:
    """Fixed and moving image have equally many landmarks."""
    if count != expected:
        findings.error(moving, f"has {count} landmarks, expected {expected} as in {fixed}, with which it is paired")


def swapped(shape: Sequence[int], expected: Sequence[int]) -> str:
    """What to add to a sentence if a shape has the expected extents in another order; else nothing."""
    if tuple(shape) == tuple(expected) or sorted(shape) != sorted(expected):
        return ""
    oasis = "; Learn2Reg's OASIS files are 160x224x192, neurite's files of the same brains 160x192x224"
    return f": its axes look swapped{oasis if sorted(shape) == [160, 192, 224] else ''}"


def _on_grid(header: Header, image: Header, affines: bool, findings: Findings) -> bool:
    """Whether a label map or mask lies on the grid of its image."""
    if header.shape != image.shape:
        expected = f"expected {times(image.shape)} as in {image.path}{swapped(header.shape, image.shape)}"
        findings.error(header.path, f"has shape {times(header.shape)}, {expected}")
        return False
    if affines and not same_grid(header.shape, header.affine, image.shape, image.affine):
        expected = f"expected {_rows(image)} as in {image.path} ({_away(header, image)})"
        findings.error(header.path, f"has the affine {_rows(header)}, {expected}")
        return False
    return True


def _as_promised(case: Case, image: Header, findings: Findings) -> bool:
    """Whether the image has the shape that its data set describes, as far as the order of axes goes."""
    # another size is the choice of who resampled the files, another order of the same axes is a mistake
    if case.shape is None or not (hint := swapped(image.shape, case.shape)):
        return True
    promise = f"expected {times(case.shape)} as in its dataset JSON{hint}"
    findings.error(case.image, f"has shape {times(image.shape)}, {promise}")
    return False


def _orientation(image: Header, findings: Findings) -> None:
    """Tells where the header says little, or two things, of where the image lies."""
    if image.source == "Analyze":
        findings.note(image.path, "is an Analyze file: its header has a voxel size but no orientation")
    elif image.source == "voxel size":
        sentence = "has a header without affine (qform and sform code 0): its orientation and origin are made up"
        findings.warning(image.path, sentence)
    elif np.array_equal(image.affine, np.eye(4)):
        findings.note(image.path, "has the identity as affine: orientation and origin may be made up")
    if image.disagreeing:
        findings.warning(image.path, "has a qform and an sform of different axes; the sform is used")


def _paired(moving: Header, fixed: Header, asked: Asked, findings: Findings) -> None:
    as_fixed = f"as in {fixed.path}, with which it is paired"
    if moving.dimension != fixed.dimension:
        sizes = f"has {moving.dimension} axes ({times(moving.shape)}), expected {fixed.dimension}"
        findings.error(moving.path, f"{sizes} ({times(fixed.shape)}) {as_fixed}")
    elif asked.common_grid and moving.shape != fixed.shape:
        hint = swapped(moving.shape, fixed.shape)
        findings.error(moving.path, f"has shape {times(moving.shape)}, expected {times(fixed.shape)} {as_fixed}{hint}")
    elif asked.affines and asked.common_grid and not same_grid(moving.shape, moving.affine, fixed.shape, fixed.affine):
        expected = f"expected ({_place(fixed)}) {as_fixed} ({_away(moving, fixed)})"
        findings.error(moving.path, f"lies on another grid ({_place(moving)}), {expected}")
    elif asked.affines and not asked.common_grid and apart(moving, fixed):
        sentence = f"({_place(moving)}) and {fixed.path} ({_place(fixed)}), with which it is paired, do not overlap"
        findings.error(moving.path, f"{sentence} in world coordinates, expected images of one place")


def _place(header: Header) -> str:
    spacing = times([round(float(edge), 3) for edge in header.spacing])
    return f"{header.axes}, {spacing} mm, origin {np.round(header.affine[:3, 3], 1).tolist()}"


def _away(one: Header, two: Header) -> str:
    """How far apart two grids of one size lie, which rounded numbers may not show."""
    return f"a corner is {corners_apart(one.shape, one.affine, two.affine):.3g} voxels away"


def _rows(header: Header) -> str:
    return str(np.round(header.affine[:3], 3).tolist())
