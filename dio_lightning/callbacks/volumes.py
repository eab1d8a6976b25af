"""Images and fields as NIfTI files on the fixed grid, and the moving image's own intensities there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.errors import times
from dio_lightning.fields import warp
from dio_lightning.headers import Header, Unreadable, read_header
from dio_lightning.volume_files import as_stored
from dio_lightning.volume_files import grid_affine as grid_affine
from dio_lightning.volume_files import save_volume as save_volume


def as_volume(image: Tensor) -> NDArray[np.float32]:
    """Channels last, with three spatial axes: (c, *s) -> (x, y, z, c)."""
    array = image.detach().to("cpu", torch.float32).movedim(0, -1).numpy()
    *size, channels = array.shape
    return array.reshape(*size, *[1] * (3 - len(size)), channels)


def warped_file(v: Float[Tensor, "d *s"], path: Path, size: Sequence[int]) -> tuple[NDArray, Header]:
    """The image of a file where the displacement takes it, as its file would store it, and its header.

    The values are interpolated once, linearly, in double precision; outside of the image they are those of its border.
    Integers are rounded. Whether its grid is the fixed one is not asked here: the pair has said so.

    Args:
        v: at every voxel x of the fixed grid, x + v(x) in voxels of the moving image (`fields.on_moving_grid`).
        path: of the moving image.
        size: of the pair's moving image.

    Returns:
        Values (x, y, z) of the type on disk, still to be scaled as the header says.

    Raises:
        FileNotFoundError, Unreadable: if the file cannot be read, or holds no such image, or one of another size.
    """
    header = read_header(path)
    if header.dtype.kind not in "iuf" or header.dimension != len(v):
        what = f"{header.dtype} in {header.dimension} dimensions"
        raise Unreadable(path, f"holds {what}, expected real numbers in {len(v)} as in its pair")
    if header.shape != tuple(size):
        raise Unreadable(path, f"has shape {times(header.shape)}, expected {times(size)} as in its pair")
    image = torch.from_numpy(header.values().astype(np.float64))[None, None]
    moved = warp(image, v.detach().cpu().double()[None])[0, 0].numpy()
    return as_stored(moved.reshape(*moved.shape, *[1] * (3 - moved.ndim)), header), header
