"""What the header of an image file says: the one reader of whoever reads images, whatever the command.

`affine` is the same everywhere: voxels to RAS millimetres, after the rules of NIfTI-1 for sform and qform and with
the unit of the header applied. MONAI's reader is not used for it: where voxel sizes and sform disagree by 1e-4 it takes
the qform instead, though its code says that it is another space (`correct_nifti_header_if_necessary`, MONAI 1.6).
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.analyze import AnalyzeImage
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Header, Nifti1Pair
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, RuntimeError, ValueError)
"""What nibabel raises for a file that is none of its formats, or is damaged."""
SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh.gz", ".mgh", ".img.gz", ".img", ".hdr")
"""Endings of image files, the longer ones first."""
MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}
"""Millimetres per unit of a header; other units are taken for millimetres."""
SINGULAR = 1e-6
"""Voxels whose volume is less than this share of the product of their edges have no usable affine."""


class Unreadable(ValueError):
    """A file that cannot be read as an image: its path, and a sentence without it."""

    def __init__(self, path: Path, sentence: str) -> None:
        super().__init__(f"{path} {sentence}")
        self.path, self.sentence = path, sentence


@dataclass(frozen=True, eq=False)
class Header:
    """The header of an image file.

    Attributes:
        path: the file.
        stored_shape: extents as the file has them.
        dtype: of the values on disk, before they are scaled.
        affine: (4, 4) float64, voxels to RAS millimetres.
        source: where the affine comes from: `sform`, `qform`, `voxel size` (a header that says no more), `Analyze`, or
            the name of another format.
        unit: of lengths, as the header says: meter, mm, micron or unknown.
        scale: slope and intercept of the values, (1, 0) where there is none.
        disagreeing: both forms are given, and their axes differ.
    """

    path: Path
    stored_shape: tuple[int, ...]
    dtype: np.dtype
    affine: NDArray[np.float64]
    source: str
    unit: str
    scale: tuple[float, float]
    disagreeing: bool = False
    image: SpatialImage = field(repr=False, kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents without the trailing axes of one voxel beyond the second."""
        return without_last_single(self.stored_shape)

    @property
    def dimension(self) -> int:
        """Number of axes of `shape`."""
        return len(self.shape)

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Edges of a voxel in millimetres along the array axes, (d,), d at most 3."""
        return np.linalg.norm(self.affine[:3, : min(self.dimension, 3)], axis=0)

    @property
    def pixdim(self) -> tuple[float, ...]:
        """Edges of a voxel as the header lists them beside its affine, in its own unit, without a sign, (d,)."""
        return tuple(abs(float(edge)) for edge in self.image.header.get_zooms()[: min(self.dimension, 3)])

    @property
    def axes(self) -> str:
        """Where the array axes point: LIA is left, inferior, anterior; `?` for an axis that points nowhere."""
        if not self.invertible:
            return "?" * min(self.dimension, 3)
        codes: Sequence[str | None] = nib.aff2axcodes(self.affine)  # pyright: ignore[reportPrivateImportUsage]
        return "".join(code or "?" for code in codes[: self.dimension])

    @property
    def right_handed(self) -> bool:
        """Whether the array axes form a right-handed system."""
        return bool(np.linalg.det(self.affine[:3, :3]) > 0)

    @property
    def invertible(self) -> bool:
        """Whether the affine is finite and maps no two voxels to one place."""
        if not np.isfinite(self.affine).all():
            return False
        edges = float(np.prod(np.linalg.norm(self.affine[:3, :3], axis=0)))
        return edges > 0 and abs(float(np.linalg.det(self.affine[:3, :3]))) > SINGULAR * edges

    @cached_property
    def cut_off(self) -> str | None:
        """Why the data cannot be read to their end, if so.

        A gzip file ends in the size of its contents (RFC 1952), so it is unpacked only where that is not as expected.
        """
        proxy, name = self.image.dataobj, self.image.file_map["image"].filename
        if not isinstance(proxy, ArrayProxy) or name is None:
            return None
        wanted = int(proxy.offset) + math.prod(map(int, proxy.shape)) * proxy.dtype.itemsize
        size, packed = Path(name).stat().st_size, Path(name).suffix in (".gz", ".mgz")
        if packed and size >= 4:
            with open(name, "rb") as file:
                file.seek(-4, 2)
                (size,) = struct.unpack("<I", file.read(4))
        if size == wanted % 2**32 or (size > wanted and not packed):
            return None
        try:
            proxy.get_unscaled()
        except UNREADABLE as error:
            return str(error).splitlines()[0]
        return None

    def values(self) -> NDArray:
        """The values, scaled, of `shape`; integers stay integers where nothing is scaled.

        Raises:
            Unreadable: if they cannot be read.
        """
        try:
            return np.asarray(self.image.dataobj).reshape(self.shape)
        except (*UNREADABLE, OverflowError, MemoryError) as error:
            raise Unreadable(self.path, _why(error, self.path)) from error


def read_header(path: Path) -> Header:
    """The header of a NIfTI, MGH or Analyze file, or of another format that nibabel knows.

    Raises:
        FileNotFoundError: if there is no such file.
        Unreadable: if it is no image, or its header has been damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected an image")
    try:
        return header_of(nib.load(path), path)  # pyright: ignore[reportPrivateImportUsage]
    except Unreadable:
        raise
    # a header of random bytes is refused in many ways
    except (*UNREADABLE, OverflowError, MemoryError, KeyError, np.linalg.LinAlgError) as error:
        raise Unreadable(path, _why(error, path)) from error


def header_of(image: Any, path: Path) -> Header:  # noqa: ANN401
    """The header of an image that nibabel has read, or that was never in a file; `path` is what sentences call it.

    Raises:
        Unreadable: if it is no volume.
    """
    if not isinstance(image, SpatialImage) or image.affine is None:
        raise Unreadable(path, "holds no volume, expected a NIfTI, MGH or Analyze file")
    affine, source, unit = _affine(image)
    shape = tuple(int(extent) for extent in image.shape)
    dtype = np.dtype(image.get_data_dtype())
    return Header(path, shape, dtype, affine, source, unit, _scale(image), _disagreeing(image.header), image=image)


def without_last_single(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape without trailing axes of one voxel beyond the second."""
    kept = tuple(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept = kept[:-1]
    return kept


def stem(name: str) -> str:
    """A file name without the ending of an image file."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_image(path: Path) -> bool:
    """Whether a file has the ending of an image; not so the `._name` files in which macOS keeps attributes."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def _affine(image: SpatialImage) -> tuple[NDArray[np.float64], str, str]:
    """Voxels to RAS millimetres, where that comes from, and the header's unit."""
    header: Any = image.header
    if not isinstance(image, Nifti1Pair):
        analyze = isinstance(image, AnalyzeImage)
        name = "Analyze" if analyze else type(image).__name__.removesuffix("Image")
        return np.array(image.affine, dtype=np.float64), name, "mm"
    if int(header["sform_code"]) > 0:
        affine, source = header.get_sform(), "sform"
    elif int(header["qform_code"]) > 0:
        affine, source = header.get_qform(), "qform"
    else:
        affine, source = header.get_base_affine(), "voxel size"
    unit = _unit(header)
    affine = np.array(affine, dtype=np.float64)
    affine[:3] *= MILLIMETRES.get(unit, 1.0)
    return affine, source, unit


def _unit(header: Nifti1Header) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _disagreeing(header: Any) -> bool:  # noqa: ANN401
    if not isinstance(header, Nifti1Header) or not (int(header["sform_code"]) and int(header["qform_code"])):
        return False
    try:
        one, two = (np.asarray(form, dtype=np.float64) for form in (header.get_qform(), header.get_sform()))
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        return True
    return bool(np.abs(one - two)[:3, :3].max() > 0.05 * np.linalg.norm(two[:3, :3], axis=0).min())


def _scale(image: SpatialImage) -> tuple[float, float]:
    proxy = image.dataobj
    slope, intercept = (getattr(proxy, name, None) for name in ("slope", "inter"))
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _why(error: BaseException, path: Path) -> str:
    """The sentence for a file that nibabel refuses."""
    text = str(error).replace(str(path), path.name).splitlines()
    return f"cannot be read ({text[0] if text else type(error).__name__}), expected a NIfTI, MGH or Analyze file"
