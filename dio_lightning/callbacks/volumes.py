"""Images and fields as NIfTI files on the fixed grid, and the moving image's own intensities there."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nibabel.loadsave import save
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.fields import warp
from dio_lightning.fields.worlds import transport
from dio_lightning.files import replacing
from dio_lightning.headers import Header, Unreadable, read_header
from dio_lightning.pair import Pair

ALIKE = 0.01
"""Voxels by which the grids of a pair may differ and still be one, as in the data modules."""
ALIGNED = 2
"""NIfTI's code of a form in the coordinates of another image, which is the fixed one."""


def grid_affine(batch: Pair, sample: int) -> NDArray[np.float64]:
    """Voxel to world (4, 4) of the fixed grid; without one, the spacing on the diagonal, or 1 mm."""
    if "affine" in batch:
        return batch["affine"][sample].double().cpu().numpy()
    affine = np.eye(4)
    if "spacing" in batch:
        spacing = batch["spacing"][sample].double().cpu().numpy()
        np.fill_diagonal(affine[: len(spacing), : len(spacing)], spacing)
    return affine


def as_volume(image: Tensor) -> NDArray[np.float32]:
    """Channels last, with three spatial axes: (c, *s) -> (x, y, z, c)."""
    array = image.detach().to("cpu", torch.float32).movedim(0, -1).numpy()
    *size, channels = array.shape
    return array.reshape(*size, *[1] * (3 - len(size)), channels)


def warped_file(u: Float[Tensor, "d *s"], path: Path, affine: NDArray[np.float64]) -> tuple[NDArray, Header]:
    """The image of a file where the displacement takes it, as its file would store it, and its header.

    The displacement is carried through the file's own affine, and the values are interpolated once, linearly, in double
    precision; outside of the image they are those of its border. Integers are rounded.

    Args:
        u: in voxels of the fixed grid.
        path: of the moving image.
        affine: (4, 4), voxels of the fixed grid to RAS millimetres.

    Returns:
        Values (x, y, z) of the type on disk, still to be scaled as the header says.

    Raises:
        FileNotFoundError, Unreadable: if the file cannot be read, or holds no such image.
    """
    header = read_header(path)
    if header.dtype.kind not in "iuf" or header.dimension != len(u):
        what = f"{header.dtype} in {header.dimension} dimensions"
        raise Unreadable(path, f"holds {what}, expected real numbers in {len(u)} as in its pair")
    image = torch.from_numpy(header.values().astype(np.float64))[None, None]
    v = u.detach().cpu().double()[None]
    matrix = torch.from_numpy(np.linalg.solve(header.affine, affine))[None]
    apart = transport(torch.zeros_like(v), matrix).abs().max()
    if apart > ALIKE or image.shape[2:] != v.shape[2:]:
        v = transport(v, matrix)
    moved = warp(image, v)[0, 0].numpy()
    return _as_stored(moved.reshape(*moved.shape, *[1] * (3 - moved.ndim)), header), header


def save_volume(
    path: Path, array: NDArray, affine: NDArray[np.float64], scale: tuple[float, float] | None = None
) -> None:
    """Write a NIfTI file whose two forms agree, in millimetres; whole or not at all.

    Args:
        path: where to.
        array: the values as they are stored, in their type.
        affine: (4, 4), voxels to RAS millimetres.
        scale: slope and intercept that a reader applies; None: none.
    """
    image = Nifti1Image(np.ascontiguousarray(array), affine, dtype=array.dtype)
    header = image.header
    header.set_xyzt_units("mm")
    image.set_sform(affine, ALIGNED)
    image.set_qform(affine, ALIGNED)
    if not np.allclose(image.get_qform(), affine, rtol=1e-4, atol=1e-3):
        # a quaternion has no shear, and readers that ask it first would be misled
        image.set_qform(affine, 0)
    if scale is not None and scale != (1.0, 0.0):
        header.set_slope_inter(*scale)
    with replacing(path) as temporary:
        save(image, temporary)


def _as_stored(values: NDArray[np.float64], header: Header) -> NDArray:
    slope, intercept = header.scale
    dtype = header.dtype.newbyteorder("=")
    raw = (values - intercept) / slope
    if dtype.kind == "f":
        return raw.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(raw).clip(limits.min, limits.max).astype(dtype)
