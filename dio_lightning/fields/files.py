"""Displacement fields as files: which layouts are read, where they lie, and what is wrong with one."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from struct import error as StructError
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor

from dio_lightning.errors import times
from dio_lightning.fields.placing import check_place, on_grid
from dio_lightning.headers import Header, read_header

# what NumPy and zipfile raise for a damaged archive, found by flipping its bytes
DAMAGED = (
    OSError, EOFError, ValueError, BadZipFile, UnpicklingError, zlib.error, StructError, TokenError, SyntaxError,
    KeyError, TypeError, OverflowError, MemoryError, RuntimeError,
)  # fmt: skip
VECTOR = 1007
"""NIfTI's intent of the displacements of ITK and ANTs: millimetres, with x and y towards left and posterior."""
FSL_FIELD, FSL_COEFFICIENTS = 2006, range(2007, 2010)
"""NIfTI's intents of what FNIRT writes: displacements in millimetres of FSL's own, and coefficients of splines."""
SPM = ("deformation", "inverse deformation", "flow field")
"""How SPM's descriptions begin: positions in RAS millimetres (y_*.nii, iy_*.nii) and velocities (u_*.nii)."""


@dataclass(frozen=True)
class Stored:
    """A displacement as its file has it."""

    path: Path
    values: NDArray
    header: Header | None = None
    """That of a NIfTI file; None for .npz, which does not say where it lies."""

    @property
    def world(self) -> bool:
        """Whether the values are LPS millimetres of ITK or ANTs, and no voxels."""
        return self.values.ndim == 5 and self.intent == VECTOR

    @property
    def intent(self) -> int:
        """NIfTI's code for what the values are; 0 where that is not said."""
        return 0 if self.header is None else _intent(self.header)[0]


def stored(path: Path) -> Stored:
    """The array of a .nii, .nii.gz or .npz file, in its own layout and type.

    Raises:
        ValueError: if it cannot be read, holds no real numbers, was written by NiftyReg or SPM, or a .npz file holds
            several arrays.
    """
    header = None
    if path.suffix == ".npz":
        arrays = _arrays(path)
        if len(arrays) != 1:
            raise ValueError(f"{path} holds {len(arrays)} arrays, expected one")
        (values,) = arrays
    else:
        header = read_header(path)
        values = header.values().reshape(header.stored_shape)
        if (stranger := _stranger(header)) is not None:
            raise ValueError(f"{path} is {stranger}, expected voxels of the fixed grid, or a displacement of ITK")
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path} has the type {values.dtype}, expected real numbers")
    return Stored(path, values, header)


def read_displacement(
    path: Path, size: Sequence[int], affine: NDArray[np.float64] | None = None
) -> Float[Tensor, "d *s"]:
    """The displacement of a file in voxels of a grid (*s), float32.

    Layouts: (*s, d), (*s, 1, d) and channels first (d, *s), each also on the grid of half the size that Learn2Reg had,
    with values in voxels of the full one: enlarged by splines of order 2, as Learn2Reg's evaluation does it. A slice
    (x, y) of two dimensions is (x, y, 1, 2). What their header says of where they lie must not contradict the affine
    (`placing.check_place`).

    Five axes with NIfTI's intent `vector` are millimetres of ITK or ANTs on any grid that covers the fixed one, on
    which they are sampled through both affines, linearly (`placing.on_grid`).

    Args:
        path: the file.
        size: of the fixed grid.
        affine: (4, 4), voxels of the fixed grid to RAS millimetres. None where that is not known: the file is then
            taken to lie on the fixed grid.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another shape or place, values that are not finite, or a file that cannot be read or is FSL's.
    """
    file = stored(path)
    refuse_fsl(file)
    return displacement_of(file, size, affine)


def refuse_fsl(file: Stored) -> None:
    """Raises ValueError for millimetres of FSL, which mean nothing without both images, or FNIRT's coefficients."""
    convert = "`dio-lightning transform convert --to learn2reg` makes them, given --fixed and --moving"
    if file.intent == FSL_FIELD:
        raise ValueError(f"{file.path} is a field of FSL in millimetres, expected voxels of the fixed grid: {convert}")
    if file.intent in FSL_COEFFICIENTS:
        what = "voxels of the fixed grid: of the field that fnirt --fout writes,"
        raise ValueError(f"{file.path} holds coefficients of FNIRT, expected {what} {convert}")


def displacement_of(
    file: Stored, size: Sequence[int], affine: NDArray[np.float64] | None = None
) -> Float[Tensor, "d *s"]:
    """See `read_displacement`, whoever wrote the file."""
    path, size = file.path, tuple(size)
    # a file that is no displacement of this grid is better told so than counted
    values = _in_world(file, size) if file.world else _channels_first(file, size)
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(f"{path} has {wrong} values that are NaN or infinite, expected finite displacements")
    field = torch.from_numpy(values.astype(np.float64))
    if file.world:
        assert file.header is not None
        return on_grid(field, file.header, size, affine).float()
    if file.header is not None and affine is not None:
        check_place(file.header, tuple(field.shape[1:]), size, affine)
    if tuple(field.shape[1:]) != size:
        # for odd sizes too, both grids have their ends in common
        factors = [n / h for n, h in zip(size, field.shape[1:], strict=True)]
        field = torch.from_numpy(np.stack([np.asarray(zoom(channel, factors, order=2)) for channel in field.numpy()]))
    return field.float()


def half(size: Sequence[int]) -> tuple[int, ...]:
    """The grid of half the size; odd sizes are rounded up."""
    return tuple((extent + 1) // 2 for extent in size)


def layouts(size: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Shapes of files on a grid, each with the axis of its channels."""
    d = len(size)
    for ones in range(4 - d + 1):
        yield (*size, *[1] * ones, d), d + ones
    for ones in range(3 - d + 1):
        yield (d, *size, *[1] * ones), 0


def _channels_first(file: Stored, size: tuple[int, ...]) -> NDArray:
    """The values as (d, *s), on the full grid or that of half the size."""
    for grid in dict.fromkeys((size, half(size), tuple(extent // 2 for extent in size))):
        for shape, axis in layouts(grid):
            if file.values.shape == shape:
                return np.moveaxis(file.values, axis, 0).reshape(len(size), *grid)
    expected = (*size, *[1] * (3 - len(size)), len(size))
    message = f"{file.path} has shape {times(file.values.shape)}, expected {times(expected)}"
    alike = any(sorted(file.values.shape) == sorted(shape) for shape, _ in layouts(size))
    raise ValueError(message + (": its axes look permuted" if alike else ""))


def _in_world(file: Stored, size: tuple[int, ...]) -> NDArray:
    """The values of ITK as (d, *t), t their own grid."""
    d, shape = len(size), file.values.shape
    if shape[d:] != (*[1] * (4 - d), d):
        raise ValueError(f"{file.path} has shape {times(shape)}, expected {d} axes of a grid and {d} components")
    return np.moveaxis(file.values, -1, 0).reshape(d, *shape[:d])


def _arrays(path: Path) -> list[NDArray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a displacement")
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in file.files]
    except DAMAGED as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read ({why}), expected a displacement as .nii.gz or .npz") from error


def _stranger(header: Header) -> str | None:
    """Whose file it is, if its values are known to be neither displacements of ITK nor voxels."""
    name = _intent(header)[1]
    if name.startswith("NREG_TRANS"):
        return "a transformation of NiftyReg"
    fields: Any = header.image.header
    described = _text(fields["descrip"]).lower() if isinstance(fields, Nifti1Header) else ""
    # SPM's own unified segmentation leaves the intent out
    if name == "Mapping" or (len(header.stored_shape) == 5 and described.startswith(SPM)):
        return "a deformation of SPM"
    return None


def _intent(header: Header) -> tuple[int, str]:
    """What NIfTI says that values are: code and name."""
    fields: Any = header.image.header
    if not isinstance(fields, Nifti1Header):
        return 0, ""
    return int(fields["intent_code"]), _text(fields["intent_name"])


def _text(field: NDArray) -> str:
    """Characters of a header without what fills them up."""
    return bytes(field).decode("latin-1").rstrip("\0 ")
