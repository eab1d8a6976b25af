"""The grid on which a rigid or affine stage works: equal voxels, aligned with the fixed image's axes."""

from math import ceil

import numpy as np
import torch
from jaxtyping import Float
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.fields import gaussian_average, sample
from dio_lightning.level import WHOLE
from dio_lightning.registration.scan import Scan
from dio_lightning.transforms import ImageGrid, Transform

SOME = 1e-3
"""Share of a weighted average that has to count."""


def isotropic(grid: ImageGrid, edge: float, margin: float = 0.0) -> ImageGrid:
    """A grid of voxels of this edge in mm with the axes and the centre of another one, larger by this share a side.

    A rotation in its voxels is one in millimetres. Axes that are not at right angles lose their shear (`body_axes`).
    """
    d, size = len(grid.size), np.array(grid.size)
    axes, order = body_axes(grid)
    extent = (grid.spacing * (size - 1) * (1 + 2 * margin))[order]
    new = [max(4, ceil(float(e) / edge) + 1) for e in extent]
    affine = np.eye(4)
    affine[:3, :3] = axes * edge
    affine[:3, 3] = grid.centre - affine[:3, :d] @ ((np.array(new) - 1) / 2)
    return ImageGrid(tuple(new), affine)


def body_axes(grid: ImageGrid) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Three directions at right angles (3, 3), as columns, close to a grid's axes, and which axis each of them is.

    They are in the order and direction closest to right, anterior, superior, so that how an image is stored changes
    nothing; the third of a plane is its normal.
    """
    d = len(grid.size)
    left, _, right = np.linalg.svd(grid.affine[:3, :d] / grid.spacing, full_matrices=False)
    axes: NDArray[np.float64] = left @ right
    turn = io_orientation(np.block([[axes, np.zeros((3, 1))], [np.zeros((1, d)), np.ones((1, 1))]]))
    order = np.argsort(turn[:, 0])
    axes = np.asarray((axes * turn[:, 1])[:, order], dtype=np.float64)
    return (axes if d == 3 else np.column_stack([axes, np.cross(axes[:, 0], axes[:, 1])])), order


def blurred(scan: Scan, edge: float) -> Float[Tensor, "1 1 *s"]:
    """Normalised intensities, smoothed for voxels of this edge in mm: by half of what the image's own ones lack.

    Of a masked scan they are averages over what counts, and 0 where none of it is near.
    """
    wanted = [0.5 * np.sqrt(max(edge**2 - s**2, 0.0)) / s for s in scan.grid.spacing]
    sigmas = [float(s) if s > 0.3 else 0.0 for s in wanted]
    if scan.mask is None:
        return gaussian_average(scan.normalised, sigmas)
    share = gaussian_average(scan.mask.float(), sigmas)
    return torch.where(share > SOME, gaussian_average(scan.normalised * scan.mask, sigmas) / share.clamp(min=SOME), 0)


def seen_at(
    image: Float[Tensor, "1 1 *s"],
    grid: ImageGrid,
    matrices: NDArray[np.float64],
    onto: ImageGrid,
    mode: str = "linear",
) -> Float[Tensor, "b 1 *t"]:
    """An image of one grid on another one, under each of several matrices (b, 4, 4) from world to world; 0 outside."""
    return sample(image, _places(grid, matrices, onto).to(image), mode, "zeros")


def _places(grid: ImageGrid, matrices: NDArray[np.float64], onto: ImageGrid) -> Float[Tensor, "b d *t"]:
    """Voxels of one grid on which those of another one lie under each matrix.

    One affine map takes voxels to voxels, so that an axis is a line of its own until all are added up.
    """
    d = len(onto.size)
    back = np.linalg.pinv(grid.affine[:3, : len(grid.size)])
    columns = torch.from_numpy(back @ (matrices @ onto.affine)[:, :3, :d])
    places = torch.from_numpy((matrices @ onto.affine)[:, :3, 3] - grid.affine[:3, 3]) @ torch.from_numpy(back).mT
    places = places.view(*places.shape, *[1] * d)
    for axis, extent in enumerate(onto.size):
        line = columns[:, :, axis, None] * torch.arange(extent, dtype=torch.float64)
        places = places + line.view(*line.shape[:2], *[extent if a == axis else 1 for a in range(d)])
    return places


def counted(scan: Scan, matrices: NDArray[np.float64], onto: ImageGrid) -> Float[Tensor, "b 1 *t"] | None:
    """1 where a scan counts on a grid under each of several matrices, else 0; None without a mask.

    What is interpolated from any voxel that does not count does not. Beside the scan all counts, as zeros.
    """
    if scan.mask is None:
        return None
    return (seen_at((~scan.mask).float(), scan.grid, matrices, onto) <= 1 - WHOLE).float()


def placed(
    image: Float[Tensor, "1 1 *s"], grid: ImageGrid, transform: Transform, onto: ImageGrid, mode: str = "linear"
) -> Float[Tensor, "1 1 *t"]:
    """An image of one grid on another one, where a transform takes that one's voxels; 0 outside."""
    return sample(image, grid.voxels(transform.at(onto)).to(image)[None], mode, "zeros")
