"""Where two images lie in the world."""

import numpy as np
from numpy.typing import NDArray

from dio_lightning.fields.placing import corners
from dio_lightning.headers import Header


def apart(one: Header, two: Header) -> bool:
    """Whether no point of the world lies in the voxels of both images, which have equally many axes.

    Two parallelepipeds are apart if and only if a normal of a face of either, or of an edge of each, separates them.
    Slices of two axes are compared in their own plane.
    """
    d = one.dimension
    relation = np.linalg.solve(two.affine, one.affine)
    first, second = (corners(header.shape, 0.5)[:d].T for header in (one, two))
    edges = relation[:d, :d]
    first = first @ edges.T + relation[:d, 3]
    return any(_separates(axis, first, second) for axis in _axes(edges))


def _axes(edges: NDArray) -> list[NDArray[np.float64]]:
    """Directions that may separate a box along the axes from one with these edges, its columns."""
    d = len(edges)
    own, others = np.eye(d), edges / np.linalg.norm(edges, axis=0).clip(min=1e-12)
    if d == 2:
        return [*own, *(np.array([-edge[1], edge[0]]) for edge in others.T)]
    faces = [np.cross(others[:, i - 1], others[:, i]) for i in range(3)]
    pairs = [np.cross(a, b) for a in own for b in others.T]
    return [*own, *(axis for axis in [*faces, *pairs] if np.linalg.norm(axis) > 1e-6)]


def _separates(axis: NDArray[np.float64], one: NDArray[np.float64], two: NDArray[np.float64]) -> bool:
    first, second = one @ axis, two @ axis
    return bool(first.max() < second.min() or second.max() < first.min())
