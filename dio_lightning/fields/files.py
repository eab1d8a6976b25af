"""Displacement fields as files: how they are named, which layouts are read, and what is wrong with one."""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import cast
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor

from dio_lightning.errors import times

UNREADABLE = (ImageFileError, OSError, EOFError, ValueError, BadZipFile, UnpicklingError, zlib.error)
SUFFIXES = (".nii.gz", ".npz", ".nii")
VECTOR = 1007
"""NIfTI's intent of the displacements of ITK and ANTs: millimetres, with x and y towards left and posterior."""
_ID = re.compile(r"(?:.*_)?(\d{4})_(\d{4})|(?:.*_)?(\d{4})")


def pair_name(fixed: str, moving: str) -> str:
    """A pair's part of the names of the files that we write, as Learn2Reg has it.

    0011_0012 for subjects of modality 0000, 0011_0000_0012_0001 if one has another; ids without Learn2Reg's four digits
    keep their letters and digits.
    """
    found = [_ID.fullmatch(_stem(name)) for name in (fixed, moving)]
    short = all(match is None or match[2] in (None, "0000") for match in found)
    names = []
    for match, name in zip(found, (fixed, moving), strict=True):
        if match is None:
            names.append(re.sub(r"[^A-Za-z0-9]+", "-", _stem(name)).strip("-") or "unnamed")
        else:
            subject = match[1] or match[3]
            names.append(subject if short or match[2] is None else f"{subject}_{match[2]}")
    return "_".join(names)


def pair_names(fixed: str, moving: str) -> tuple[str, ...]:
    """Every name by which a pair's file may go; the first is the one that Learn2Reg's evaluation looks for.

    It looks for the short name 0011_0012 where the modalities are equal, or 0000 and 0001, else for the long one.
    """
    one, two = (_ID.fullmatch(_stem(name)) for name in (fixed, moving))
    if one is None or two is None:
        return (pair_name(fixed, moving),)
    (s, p), (t, q) = ((match[1] or match[3], match[2] or "0000") for match in (one, two))
    short = [f"{s}_{t}"] if p == q or (p, q) == ("0000", "0001") else []
    return tuple(dict.fromkeys([*short, f"{s}_{p}_{t}_{q}", pair_name(fixed, moving)]))


def find_field(folder: Path, fixed: str, moving: str) -> Path:
    """The one file of a folder that holds the displacement of a pair.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if there are several.
    """
    names = pair_names(fixed, moving)
    found = [p for p in (folder / f"disp_{name}{s}" for name in names for s in SUFFIXES) if p.is_file()]
    if not found:
        wanted = " or ".join(f"disp_{name}.nii.gz" for name in names)
        raise FileNotFoundError(f"{folder} has no {wanted} (or .npz) for fixed {fixed} and moving {moving}")
    if len(found) > 1:
        several = " and ".join(path.name for path in found)
        raise ValueError(f"{folder} has {several} for fixed {fixed} and moving {moving}, expected one of them")
    return found[0]


@dataclass(frozen=True)
class Stored:
    """A displacement as its file has it."""

    path: Path
    values: NDArray
    world: NDArray[np.float64] | None = None
    """(d, d), voxels to LPS millimetres, where the values are displacements of ITK or ANTs; None where voxels."""


def stored(path: Path) -> Stored:
    """The array of a .nii, .nii.gz or .npz file, in its own layout and type.

    Raises:
        ValueError: if it cannot be read, or a .npz file holds several arrays.
    """
    image: Nifti1Image | None = None
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = [file[name] for name in file.files]
        else:
            image = cast(Nifti1Image, nib.load(path))  # pyright: ignore[reportPrivateImportUsage]
            arrays = [np.asarray(image.dataobj)]
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read ({error}), expected a displacement as .nii.gz or .npz") from error
    if len(arrays) != 1:
        raise ValueError(f"{path} holds {len(arrays)} arrays, expected one")
    (values,) = arrays
    if image is None or values.ndim != 5 or int(image.header["intent_code"]) != VECTOR:
        return Stored(path, values)
    d = values.shape[-1]
    return Stored(path, values, (np.diag([-1.0, -1.0, 1.0]) @ np.asarray(image.affine)[:3, :3])[:d, :d])


def read_displacement(path: Path, size: Sequence[int]) -> Float[Tensor, "d *s"]:
    """The displacement of a file in voxels of a grid (*s), float32.

    Layouts: (*s, d), (*s, 1, d) and channels first (d, *s), each also on the grid of half the size that Learn2Reg had,
    with values in voxels of the full one: enlarged by splines of order 2, as Learn2Reg's evaluation does it. A slice
    (x, y) of two dimensions is (x, y, 1, 2). Five axes with NIfTI's intent `vector` are millimetres of ITK or ANTs.

    Raises:
        ValueError: for another shape, values that are not finite, or a file that cannot be read.
    """
    file = stored(path)
    field = _channels_first(file, tuple(size)).astype(np.float64)
    wrong = int((~np.isfinite(field)).sum())
    if wrong:
        raise ValueError(f"{path} has {wrong} values that are NaN or infinite, expected finite displacements")
    if file.world is not None:
        field = np.einsum("ij,j...->i...", np.linalg.inv(file.world), field)
    if field.shape[1:] != tuple(size):
        # for odd sizes too, both grids have their ends in common
        factors = [n / h for n, h in zip(size, field.shape[1:], strict=True)]
        field = np.stack([np.asarray(zoom(channel, factors, order=2)) for channel in field])
    return torch.from_numpy(field.astype(np.float32))


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


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name.replace("\\", "/").rsplit("/", 1)[-1])
