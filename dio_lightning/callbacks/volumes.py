"""Images and fields as NIfTI files on the fixed grid, and the moving image's own intensities there."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.fields import warp
from dio_lightning.fields.worlds import transport
from dio_lightning.headers import Header, Unreadable, read_header
from dio_lightning.volume_files import as_stored
from dio_lightning.volume_files import grid_affine as grid_affine
from dio_lightning.volume_files import save_volume as save_volume

ALIKE = 0.01
"""Voxels by which the grids of a pair may differ and still be one, as in the data modules."""


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
    return as_stored(moved.reshape(*moved.shape, *[1] * (3 - moved.ndim)), header), header
