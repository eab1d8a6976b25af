"""What a data set must satisfy before training starts; every failure is one sentence."""

import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from torch import Tensor
from tqdm import tqdm

from data_modules.layout import Case, CasePair
from dio_lightning.errors import times

UNREADABLE = (ImageFileError, OSError, EOFError, zlib.error, RuntimeError)
LARGEST_LABEL = 32767
Grid = tuple[tuple[int, ...], np.ndarray]
"""Shape without trailing axes of one voxel, and the affine (4, 4)."""


class Problems:
    """Collects sentences and raises the first five of them as one exception."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.missing = 0

    def add(self, sentence: str) -> None:
        """Remember a failure; each is told once."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    def add_missing(self, path: Path, what: str) -> None:
        """Remember a file that does not exist."""
        self.missing += 1
        self.add(f"{path} does not exist, expected {what}")

    def stop(self) -> None:
        """Raise if there is a problem.

        Raises:
            FileNotFoundError: if files are missing and nothing else is wrong.
            ValueError: otherwise.
        """
        if not self.sentences:
            return
        more = len(self.sentences) - 5
        text = "\n".join([*self.sentences[:5], *([f"and {more} more"] if more > 0 else [])])
        raise (FileNotFoundError if self.missing == len(self.sentences) else ValueError)(text)


def check_files(
    pairs: Sequence[CasePair], progress: bool = True, common_grid: bool = True, affines: bool = True
) -> None:
    """What can be told without reading volumes.

    Files exist and are whole, label and mask lie on the image's grid, landmarks lie inside it, equally many in a pair.
    With `common_grid` the two images of a pair share their grid; without it they have equally many axes. Without
    `affines` only shapes are compared.

    Raises:
        FileNotFoundError, ValueError: with up to five sentences.
    """
    problems = Problems()
    grids: dict[Case, Grid | None] = {}
    counts: dict[Case, int] = {}
    for case in watched(unique_cases(pairs), "Checking headers", progress):
        grids[case] = _case_grid(case, problems, affines)
        counts[case] = _case_points(case, grids[case], problems)
    seen: set[frozenset[Case]] = set()
    for fixed, moving in pairs:
        one, two = grids[fixed], grids[moving]
        if one is not None and two is not None and frozenset((fixed, moving)) not in seen:
            if common_grid:
                _same_grid(moving.image, two, fixed.image, one, problems)
            elif len(one[0]) != len(two[0]):
                problems.add(f"{moving.image} has {len(two[0])} axes, expected {len(one[0])} as {fixed.image}")
        seen.add(frozenset((fixed, moving)))
    check_counts([pair for pair in pairs if counts[pair[0]] and counts[pair[1]]], counts.__getitem__, problems)
    problems.stop()


def check_kinds(pairs: Sequence[CasePair]) -> None:
    """Within a split either every case or none has a label; likewise a mask, landmarks.

    Raises:
        ValueError: with up to five sentences.
    """
    problems = Problems()
    for case, kind, having in lacking(unique_cases(pairs)):
        problems.add(f"{case.image} has no {kind}, expected one as for {having.id} of the same split")
    problems.stop()


def lacking(cases: Sequence[Case]) -> Iterator[tuple[Case, str, Case]]:
    """Every case without a label, mask or landmarks that others have: the case, what it lacks, and one that has it."""
    for kind in ("label", "mask", "keypoints"):
        having = next((case for case in cases if getattr(case, kind) is not None), None)
        yield from ((case, kind, having) for case in cases if having is not None and getattr(case, kind) is None)


def unique_cases(pairs: Iterable[CasePair]) -> list[Case]:
    """The cases of the pairs, each once, in order of appearance."""
    return list(dict.fromkeys(case for pair in pairs for case in pair))


def check_volumes(case: Case, volumes: dict[str, Tensor], problems: Problems) -> None:
    """Values as stored: finite intensities, labels that are integers from 0 to 32767, a mask that is not empty."""
    image = volumes["image"]
    if not bool(image.isfinite().all()):
        count = int((~image.isfinite()).sum())
        problems.add(f"{case.image} has {count} voxels that are NaN or infinite, expected finite intensities")
    if case.label is not None:
        label = volumes["label"]
        wrong = label[(label != label.round()) | (label < 0) | (label > LARGEST_LABEL)]
        if wrong.numel():
            problems.add(f"{case.label} has the value {wrong[0].item():g}, expected integers from 0 to {LARGEST_LABEL}")
    if case.mask is not None and not bool((volumes["mask"] > 0).any()):
        problems.add(f"{case.mask} is 0 everywhere, expected a mask with voxels above 0")


def read_points(path: Path, shape: Sequence[int], problems: Problems) -> np.ndarray:
    """Landmarks (n, d) in voxels from a CSV without header; checked to be finite and inside the grid."""
    d = len(shape)
    try:
        points = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float32)
    except (OSError, ValueError) as error:
        problems.add(f"{path} cannot be read as landmarks ({error}), expected rows of {d} numbers and no header")
        return np.zeros((0, d), np.float32)
    if points.shape[1] != d or not len(points):
        problems.add(f"{path} has {len(points)} rows of {points.shape[1]} numbers, expected rows of {d}")
        return np.zeros((0, d), np.float32)
    for row in np.flatnonzero(~within(points, shape))[:1]:
        values = ", ".join(f"{value:g}" for value in points[row])
        problems.add(f"{path}: row {row + 1} is ({values}), expected voxels inside a grid of {times(shape)}")
    return points


def within(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Which rows of landmarks (n, d) are finite and inside a grid, (n,)."""
    return np.asarray((np.isfinite(points) & (points >= 0) & (points <= np.array(shape) - 1)).all(axis=1))


def check_counts(pairs: Iterable[CasePair], count: Callable[[Case], int], problems: Problems) -> None:
    """Fixed and moving have the same number of landmarks."""
    for fixed, moving in pairs:
        if fixed.keypoints and moving.keypoints and count(fixed) != count(moving):
            problems.add(
                f"{moving.keypoints} has {count(moving)} landmarks, "
                f"expected {count(fixed)} as in {fixed.keypoints.name} of the same pair"
            )


def spatial_dims(case: Case) -> int:
    """Dimensions of a case's image.

    Raises:
        FileNotFoundError, ValueError: if its header cannot be read.
    """
    problems = Problems()
    grid = _grid(case.image, "image", problems)
    problems.stop()
    assert grid is not None
    return len(grid[0])


def watched(cases: Sequence[Case], title: str, progress: bool) -> Iterable[Case]:
    """Cases with a bar that appears only if they take more than two seconds."""
    return tqdm(cases, desc=title, delay=2, leave=False, disable=not progress)


def _case_grid(case: Case, problems: Problems, affines: bool) -> Grid | None:
    """The image's grid; the label and the mask are compared with it, it with the data set's description."""
    grids = {kind: _grid(path, kind, problems) for kind, path in case.volumes.items()}
    if not affines:
        grids = {kind: (grid[0], np.eye(4)) if grid is not None else None for kind, grid in grids.items()}
    image = grids["image"]
    for kind, grid in grids.items():
        if image is not None and grid is not None and kind != "image":
            _same_grid(case.volumes[kind], grid, case.image, image, problems)
    # another size is the choice of who resampled the files, another order of the same axes is a mistake
    if image is not None and case.shape is not None and (hint := swapped(image[0], case.shape)):
        problems.add(
            f"{case.image} has shape {times(image[0])}, expected {times(case.shape)} as in its dataset JSON{hint}"
        )
        return None
    return image


def _case_points(case: Case, grid: Grid | None, problems: Problems) -> int:
    """Number of landmarks of a case, which are checked; 0 if it has none that can be used."""
    if case.keypoints is None:
        return 0
    if not case.keypoints.is_file():
        problems.add_missing(case.keypoints, f"the landmarks of {case.image.name}")
        return 0
    return len(read_points(case.keypoints, grid[0], problems)) if grid is not None else 0


def _grid(path: Path, kind: str, problems: Problems) -> Grid | None:
    if not path.is_file():
        problems.add_missing(path, f"the {kind} of a case")
        return None
    try:
        volume = cast(Nifti1Image, nib.load(path))  # pyright: ignore[reportPrivateImportUsage]
    except UNREADABLE as error:
        problems.add(f"{path} cannot be read ({error}), expected a NIfTI file")
        return None
    shape = tuple(volume.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        problems.add(f"{path} has shape {times(shape)}, expected two or three axes")
        return None
    if why := _cut_off(volume):
        problems.add(f"{path} is cut off ({why}), expected all {times(shape)} voxels of its header")
        return None
    return shape, np.asarray(volume.affine)


def _cut_off(volume: Nifti1Image) -> str | None:
    """Why the data cannot be read to their end, if so.

    A gzip file ends in the size of its contents (RFC 1952), so it is unpacked only where that is not as expected.
    """
    proxy, path = volume.dataobj, volume.file_map["image"].filename
    if not isinstance(proxy, ArrayProxy) or path is None:
        return None
    wanted = proxy.offset + math.prod(proxy.shape) * proxy.dtype.itemsize
    size, packed = Path(path).stat().st_size, Path(path).suffix in (".gz", ".mgz")
    if packed and size >= 4:
        with open(path, "rb") as file:
            file.seek(-4, 2)
            (size,) = struct.unpack("<I", file.read(4))
    if size == wanted % 2**32 or (size > wanted and not packed):
        return None
    try:
        proxy.get_unscaled()
    except UNREADABLE as error:
        return str(error).splitlines()[0]
    return None


def _same_grid(path: Path, grid: Grid, reference: Path, expected: Grid, problems: Problems) -> None:
    """Shape and affine agree, the affine to a hundredth of a voxel."""
    if grid[0] != expected[0]:
        hint = swapped(grid[0], expected[0])
        problems.add(f"{path} has shape {times(grid[0])}, expected {times(expected[0])} as in {reference}{hint}")
        return
    voxel = np.linalg.norm(expected[1][:3, :3], axis=0).min()
    if np.abs(grid[1] - expected[1]).max() > 0.01 * voxel:
        problems.add(f"{path} has the affine {_rows(grid[1])}, expected {_rows(expected[1])} as in {reference}")


def swapped(shape: Sequence[int], expected: Sequence[int]) -> str:
    """What to add to a sentence if a shape has the expected extents in another order; else nothing."""
    if tuple(shape) == tuple(expected) or sorted(shape) != sorted(expected):
        return ""
    oasis = "; Learn2Reg's OASIS files are 160x224x192, neurite's files of the same brains 160x192x224"
    return f": its axes look swapped{oasis if sorted(shape) == [160, 192, 224] else ''}"


def _rows(affine: np.ndarray) -> str:
    return str(np.round(affine[:3], 3).tolist())
