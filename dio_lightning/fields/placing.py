"""Where grids lie in the world: whether two are one, and what the place of a file makes of its displacement."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.errors import times
from dio_lightning.fields.grid import identity, sample
from dio_lightning.headers import Header

SAME_GRID = 0.01
"""Voxels by which the corners of two grids may lie apart in the world: within it they are one grid, to whoever asks."""
EXACT = 1e-4
"""Voxels within which values of one grid are taken for those of another, instead of interpolated: to rounding alone."""
SAME = 0.1
"""Voxels that the corners of a file in voxels of the fixed grid may lie from those of that grid."""


def same_grid(
    size: Sequence[int],
    affine: NDArray[np.float64],
    other_size: Sequence[int],
    other: NDArray[np.float64],
    tolerance: float = SAME_GRID,
) -> bool:
    """Whether two grids have the same voxels at the same places of the world: see `corners_apart`.

    The one rule of data modules, checks, registration and transforms. What decides otherwise asks something else:
    `check_place`, whether a header contradicts a file that is in voxels of the fixed grid by definition.

    Args:
        size: voxels of the one grid.
        affine: (4, 4), its voxels to RAS millimetres.
        other_size: voxels of the other grid.
        other: (4, 4), likewise.
        tolerance: voxels by which corners may lie apart.
    """
    return tuple(size) == tuple(other_size) and corners_apart(size, affine, other) <= tolerance


def corners_apart(size: Sequence[int], affine: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The largest distance between outer corners that two affines (4, 4) give one grid, in voxels.

    Outer corners, half a voxel beyond the last centres, say how thick a single slice is, too. A voxel is the shortest
    edge of either grid. No other voxel is further away: the distance is a convex function of the place. NaN for affines
    that are not finite.
    """
    d = len(size)
    moved = (other - affine)[:3, [*range(d), 3]] @ corners(size, 0.5)
    edge = min(float(np.linalg.norm(matrix[:3, :d], axis=0).min()) for matrix in (affine, other))
    return float(np.linalg.norm(moved, axis=0).max()) / edge


def on_grid(
    field: Float[Tensor, "d *t"], header: Header, size: tuple[int, ...], affine: NDArray[np.float64] | None
) -> Float[Tensor, "d *s"]:
    """A displacement of ITK, LPS millimetres on its own grid, in voxels of the fixed grid: a map of the world.

    At the world position of every fixed voxel it is sampled linearly, as ITK's DisplacementFieldTransform does it; up
    to half a voxel beyond its last ones it has their values. Vectors are millimetres whatever unit the header has for
    its voxels, as in ITK. Images of two dimensions have ITK's plane x, y.

    Args:
        field: the values.
        header: of their file.
        size: of the fixed grid.
        affine: (4, 4), voxels of the fixed grid to RAS millimetres; None: those of the file.

    Raises:
        ValueError: if the field does not cover the fixed grid, or lies in another plane.
    """
    d, path = len(size), header.path
    if affine is None and field.shape[1:] != size:
        raise ValueError(f"{path} has a grid of {times(field.shape[1:])} voxels, expected {times(size)}")
    fixed = header.affine if affine is None else affine
    if not header.invertible:
        raise ValueError(f"{path} has an affine that is not invertible, expected one that says where it lies")
    if d == 2 and np.abs(fixed[2, :2]).max() > EXACT * np.linalg.norm(fixed[:3, :2], axis=0).min():
        raise ValueError(f"{path} is a displacement of ITK in the plane x, y, expected a fixed image in that plane")
    axes = [*range(d), 3]
    own, fixed = header.affine[np.ix_(axes, axes)], fixed[np.ix_(axes, axes)]
    to_own = np.linalg.solve(own, fixed).astype(np.float64)
    _check_covers(header, tuple(field.shape[1:]), size, to_own)
    turn = torch.from_numpy(np.linalg.inv(fixed[:d, :d]) @ np.diag([-1.0, -1.0, 1.0][:d]))
    voxels = torch.einsum("ij,j...->i...", turn, field)
    moved = np.abs((to_own - np.eye(d + 1))[:d] @ corners(size)).max()
    if tuple(field.shape[1:]) == size and moved <= EXACT:
        return voxels
    matrix = torch.from_numpy(to_own)
    points = torch.einsum("ij,j...->i...", matrix[:d, :d], identity(size, field)[0])
    points = points + matrix[:d, d].view(-1, *[1] * d)
    return sample(voxels[None], points[None])[0]


def check_place(header: Header, grid: tuple[int, ...], size: tuple[int, ...], affine: NDArray[np.float64]) -> None:
    """Refuse values in voxels of the fixed grid whose header says that they lie on another one.

    Learn2Reg's evaluation reads no affine, and many tools write none, the identity (nibabel's or ITK's) or voxel sizes
    alone: those say nothing. Any other one must be that of the fixed image, or of the grid of half the size, whose last
    voxels may lie a voxel beside those of the fixed one: a file that is flipped or shifted was made for another image,
    or holds no voxels of this one.

    Args:
        header: of the file.
        grid: its size, full or half.
        size: of the fixed grid.
        affine: (4, 4), voxels of the fixed grid to RAS millimetres.

    Raises:
        ValueError: if they disagree.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if header.source == "voxel size" or _says_nothing(header.affine, spacing):
        return
    d, axes = len(size), [*range(len(size)), 3]
    back = np.linalg.pinv(affine) @ header.affine
    distance = np.abs(back[np.ix_(axes, axes)] @ corners(grid) - corners(size))[:d].max()
    if not distance <= SAME + (grid != size):
        raise ValueError(
            f"{header.path} lies on another grid than the fixed image (a corner is {distance:.4g} voxels away by its "
            f"{header.source}), expected the affine of the fixed image, or the identity, with voxels of the fixed grid"
        )


def _says_nothing(affine: NDArray[np.float64], spacing: NDArray[np.float64]) -> bool:
    """Whether an affine is the identity of nibabel or of ITK, with or without voxel sizes."""
    signs = ([1.0, 1.0, 1.0], [-1.0, -1.0, 1.0])
    plain = [np.diag([*(np.array(sign) * size), 1.0]) for sign in signs for size in (np.ones(3), spacing)]
    return any(np.allclose(affine, other, rtol=1e-5, atol=1e-6) for other in plain)


def _check_covers(header: Header, grid: tuple[int, ...], size: tuple[int, ...], to_own: NDArray[np.float64]) -> None:
    """The fixed grid's corners lie in the field's voxels; `there` leads from the former to the latter."""
    d = len(size)
    at, last = (to_own @ corners(size))[:d], np.array(grid)[:, None] - 0.5
    beyond = np.maximum(-0.5 - at, at - last).max(1)
    if not (beyond <= EXACT).all():
        axis = int(np.argmax(beyond * header.spacing[:d]))
        raise ValueError(
            f"{header.path} does not cover the fixed image, which reaches {beyond[axis] * header.spacing[axis]:.4g} mm "
            f"beyond it along axis {axis}, expected a displacement at every voxel"
        )


def corners(size: Sequence[int], beyond: float = 0.0) -> NDArray[np.float64]:
    """The corners of a grid as columns, with a 1 below: (d + 1, 2^d), so many voxels beyond the last centres."""
    return np.array([(*corner, 1.0) for corner in product(*[(-beyond, n - 1.0 + beyond) for n in size])]).T
