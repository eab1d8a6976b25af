"""Where a rigid or affine stage may start: the identity, centres, moments, and turns about the fixed image's axes."""

from itertools import product
from math import cos, prod, radians, sin

import numpy as np
import torch
from numpy.typing import NDArray

from dio_lightning.implicit.batch import spread
from dio_lightning.registration.grids import body_axes, counted, seen_at
from dio_lightning.registration.scan import Scan
from dio_lightning.registration.similarity import normalised_information
from dio_lightning.transforms import Affine, ImageGrid

Matrices = NDArray[np.float64]
"""(n, 4, 4), RAS millimetres of the fixed world to those of the moving one."""
BATCH = 16
LEAST = 0.1
"""Share of what counts of either image that has to count in both."""
TURNS = (-30.0, -15.0, 0.0, 15.0, 30.0)
"""Degrees about each axis."""


def starts(fixed: Scan, moving: Scan) -> Matrices:
    """The identity; principal axes onto principal axes; turns about the centres of mass and of the images."""
    axes, _ = body_axes(fixed.grid)
    matrices = [np.eye(4)]
    masses = [_mass(scan) for scan in (fixed, moving)]
    for turn in _turns(axes, len(fixed.grid.size), TURNS):
        matrices.append(_about(turn, masses[0][0], masses[1][0]))
    for turn in _turns(axes, len(fixed.grid.size), TURNS[::2]):
        matrices.append(_about(turn, fixed.grid.centre, moving.grid.centre))
    for turn in _principal(masses[0][1], masses[1][1], len(fixed.grid.size), axes):
        matrices.append(_about(turn, masses[0][0], masses[1][0]))
    return np.stack(matrices)


def best_starts(
    fixed: torch.Tensor,
    grid: ImageGrid,
    blurred: torch.Tensor,
    moving: Scan,
    all_starts: Matrices,
    keep: int,
    apart: float,
    counts: torch.Tensor | None = None,
) -> Matrices:
    """Those of the highest information that take the grid's corners `apart` mm from one another, on average."""
    places, kept = [Affine(matrix).map(grid.corners) for matrix in all_starts], list[int]()
    for index in np.argsort(-information(fixed, grid, blurred, moving, all_starts, counts)):
        if all((places[index] - places[other]).norm(dim=0).mean() > apart for other in kept):
            kept.append(int(index))
        if len(kept) == keep:
            break
    return all_starts[kept]


def information(
    fixed: torch.Tensor,
    grid: ImageGrid,
    blurred: torch.Tensor,
    moving: Scan,
    matrices: Matrices,
    counts: torch.Tensor | None = None,
) -> NDArray[np.float64]:
    """Normalised mutual information of the fixed image and the moving one under each matrix.

    Of what counts of the fixed image, (1, 1, *s), and of the moving one; 1 where less is left than a tenth of what
    counts of either.
    """
    parts, least = [], LEAST * min(1.0 if counts is None else float(counts.mean()), _extent(moving, grid))
    for some in (matrices[i : i + BATCH] for i in range(0, len(matrices), BATCH)):
        weights = weights_of(counts, counted(moving, some, grid))
        image = seen_at(blurred, moving.grid, some, grid)
        if weights is None:
            parts.append(normalised_information(image, fixed))
            continue
        weights = weights.expand_as(image)
        few = weights.flatten(1).mean(1) < least
        weights = torch.where(spread(few, weights), 1, weights)
        parts.append(torch.where(few, 1.0, normalised_information(image, fixed, weights=weights)))
    return torch.cat(parts).numpy()


def _extent(scan: Scan, grid: ImageGrid) -> float:
    """What counts of a scan as a share of the extent of a grid."""
    if scan.mask is None:
        return 1.0
    return float(scan.mask.sum()) * float(np.prod(scan.grid.spacing)) / float(np.prod(grid.spacing * grid.size))


def weights_of(*counts: torch.Tensor | None) -> torch.Tensor | None:
    """Where several images count at once; None: wherever they are."""
    given = [each for each in counts if each is not None]
    return prod(given[1:], start=given[0]) if given else None


def _turns(axes: NDArray, d: int, degrees: tuple[float, ...]) -> list[NDArray[np.float64]]:
    """Rotations (3, 3) by all combinations of angles; of a plane, about its normal alone."""
    angles = product(degrees, repeat=3) if d == 3 else ((0.0, 0.0, angle) for angle in degrees)
    return [axes @ rotation(*map(radians, angle)) @ axes.T for angle in angles]


def rotation(a: float, b: float, c: float) -> NDArray[np.float64]:
    """The turn (3, 3) by angles about x, then y, then z, in radians."""
    about_x = np.array([[1, 0, 0], [0, cos(a), -sin(a)], [0, sin(a), cos(a)]])
    about_y = np.array([[cos(b), 0, sin(b)], [0, 1, 0], [-sin(b), 0, cos(b)]])
    about_z = np.array([[cos(c), -sin(c), 0], [sin(c), cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _mass(scan: Scan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre (3,) and second moments (3, 3) of what is brighter than the mean, in mm."""
    image = scan.normalised[0, 0]
    inside = image > (image.mean() if scan.mask is None else image[scan.mask[0, 0]].mean())
    if scan.mask is not None:
        inside &= scan.mask[0, 0]
    points = scan.grid.points()[:, inside]
    if points.shape[1] < 2:  # one point has a place and no extent; none, where a mean is rounded up, has not even that
        return points.mean(1).numpy() if len(points[0]) else scan.grid.centre, np.zeros((3, 3))
    return points.mean(1).numpy(), torch.cov(points).numpy()


def _about(turn: NDArray, centre: NDArray, onto: NDArray) -> NDArray[np.float64]:
    """The map that turns about a centre and takes it onto another point."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, onto - turn @ centre
    return matrix


def _principal(one: NDArray, two: NDArray, d: int, axes: NDArray) -> list[NDArray[np.float64]]:
    """The rotations that take principal axes of one onto those of the other: each may point either way."""
    frames = [axes[:, :d] @ np.linalg.eigh(axes[:, :d].T @ moments @ axes[:, :d])[1] for moments in (one, two)]
    turns = []
    for signs in product((1.0, -1.0), repeat=d):
        turn = frames[1] * signs @ frames[0].T
        if d == 2:
            turn = turn + np.outer(axes[:, 2], axes[:, 2])
        if np.linalg.det(turn) > 0:
            turns.append(turn)
    return turns
