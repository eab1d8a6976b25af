"""Other images and points, where a transform takes them."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dio_lightning.fields import sample
from dio_lightning.headers import Header, Unreadable
from dio_lightning.transforms.base import Transform
from dio_lightning.transforms.world import ImageGrid, as_rows
from dio_lightning.volume_files import as_stored

Mode = Literal["linear", "nearest"]


class Moved(NamedTuple):
    """Points, and how exactly they were moved."""

    points: NDArray[np.float64]
    """(n, 3) or (n, 2), RAS millimetres."""
    missed: NDArray[np.float64]
    """(n,): millimetres between each given point and where the transform takes the point that was made of it."""


def warp_image(
    moving: Header, transform: Transform, fixed: ImageGrid, mode: Mode = "linear", outside: float | None = None
) -> NDArray:
    """The image of a file on the fixed grid: interpolated once, in its file's own type and intensities.

    Args:
        moving: the file; its values are read.
        transform: fixed world to moving world.
        fixed: the grid of the result.
        mode: `linear`, or `nearest` for labels.
        outside: the value more than half a voxel beside the moving image. None: 0, or the smallest value of an image
            that has negative ones, which is air in CT.

    Returns:
        (*s) as the file of the moving image would store it: `volume_files.save_volume` with `moving.scale` writes it.

    Raises:
        Unreadable: if the file holds no real numbers, or another dimension than the fixed grid.
        ValueError: if no voxel of the fixed grid comes from the moving image, or its type cannot hold `outside`.
    """
    if moving.dtype.kind not in "iuf" or moving.dimension != len(fixed.size):
        what = f"holds {moving.dtype} in {moving.dimension} dimensions"
        raise Unreadable(moving.path, f"{what}, expected real numbers in {len(fixed.size)} as on the fixed grid")
    positions = transform.at(fixed)
    source = ImageGrid.of(moving)
    inside = source.contains(positions)
    if not bool(inside.any()):
        raise ValueError(f"no voxel of the fixed grid comes from {moving.path}: the transform leads past it")
    values = moving.values()
    outside = _outside(outside, values, moving)
    exact = mode == "nearest" and values.dtype.kind in "iu"
    image = torch.from_numpy(values.astype(np.int64 if exact else np.float64))
    warped = sample(image[None, None], source.voxels(positions)[None], mode)[0, 0]
    warped = torch.where(inside, warped, torch.full_like(warped, outside)).numpy()
    return warped.astype(moving.dtype.newbyteorder("=")) if exact else as_stored(warped, moving)


def warp_points(points: ArrayLike, transform: Transform, to: Literal["moving", "fixed"] = "moving") -> Moved:
    """Points of one image where the other has them, RAS millimetres.

    Points of the fixed image lie in the moving one where the transform takes them. Points of the moving image lie in
    the fixed one where the inverse takes them: that is solved for each point, and no inverse field is interpolated.

    Args:
        points: (n, 3), or (n, 2) in the plane x, y.
        transform: fixed world to moving world.
        to: the image whose points are wanted.

    Raises:
        ValueError: for another shape, or two coordinates where the transform needs three.
    """
    given, d = transform.columns(points)
    if to == "moving":
        return Moved(as_rows(transform.map(given), d), np.zeros(given.shape[1]))
    origins = transform.origins(given)
    missed = (transform.map(origins) - given).norm(dim=0)
    return Moved(as_rows(origins, d), missed.numpy())


def _outside(wanted: float | None, values: NDArray, moving: Header) -> float:
    """The value beside the image; the default is the nearest that its type can hold."""
    usual = min(0.0, float(np.nanmin(values))) if np.isfinite(values).any() else 0.0
    value = usual if wanted is None else wanted
    if moving.dtype.kind == "f":
        return value
    limits, (slope, intercept) = np.iinfo(moving.dtype), moving.scale
    raw = (value - intercept) / slope
    if limits.min <= raw <= limits.max:
        return value
    if wanted is not None:
        raise ValueError(f"{moving.path} holds {moving.dtype}, which cannot be {wanted:g} beside the image")
    return float(np.clip(raw, limits.min, limits.max)) * slope + intercept
