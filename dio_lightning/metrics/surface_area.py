"""Areas of surface elements, derived from geometry: marching squares and marching cubes on one cell of 2^d voxels.

A cell has its corners at 2^d neighbouring voxel centres; its code has bit i set where corner i (in the order of
`itertools.product`) lies in the structure. The surface cuts an edge in its middle where the two corners differ.
Two rules settle what the code leaves open. On a face whose diagonals differ, the kind of corner that is rarer in the
cell is cut off one by one (Lorensen and Cline, SIGGRAPH 1987: a code and its complement have one surface). Of the
triangulations of a loop of cut edges, the one of largest area on the unit cube is taken. Together they reproduce the
256 areas of DeepMind's surface-distance (Nikolov et al., J. Med. Internet Res. 2021), used by Learn2Reg, for any
spacing.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Corner = tuple[int, ...]
Edge = tuple[Corner, Corner]
Simplex = tuple[Edge, ...]


Metric = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""Spacings in mm, or the rows of the (d, d) matrix that turns voxels into mm."""


@lru_cache(maxsize=64)
def element_areas(spacing: Metric) -> np.ndarray:
    """Area (d = 3, mm²) or length (d = 2, mm) of the surface in a cell for each of its 2^(2^d) codes, float64.

    Raises:
        ValueError: the spacing is not positive, or has neither two nor three numbers; the matrix is not invertible.
    """
    linear = np.asarray(spacing, dtype=np.float64)
    d = len(linear)
    if d not in (2, 3) or linear.shape not in ((d,), (d, d)) or (linear.ndim == 1 and not linear.min() > 0):
        raise ValueError(f"surfaces need two or three positive spacings in mm, not {spacing}")
    linear = np.diag(linear) if linear.ndim == 1 else linear
    volume = np.linalg.det(linear)
    if not abs(volume) > 0:
        raise ValueError(f"surfaces need voxels with a volume, not the directions {spacing}")
    # a normal transforms with the cofactors of the map, so one derivation on the unit cell serves all of them
    cofactors = np.linalg.inv(linear) * volume
    return np.array([np.linalg.norm(n @ cofactors, axis=1).sum() for n in _normals(d)])


@lru_cache(maxsize=2)
def _normals(d: int) -> tuple[np.ndarray, ...]:
    """Normals (m, d) of the surface's m simplices, as long as their area, on the unit cell, for every code."""
    corners = list(itertools.product((0, 1), repeat=d))
    codes = itertools.product((False, True), repeat=len(corners))
    cells: list[dict[Corner, bool]] = [
        {c: bit for c, bit in zip(corners, reversed(bits), strict=True)} for bits in codes
    ]
    return tuple(np.array([_normal(s) for s in _simplices(cell)]).reshape(-1, d) for cell in cells)


def _simplices(inside: dict[Corner, bool]) -> list[Simplex]:
    """Segments of a square, triangles of a cube."""
    segments = _segments(inside)
    if len(inside) == 4:
        return segments
    return [triangle for loop in _loops(segments) for triangle in _triangulate(loop)]


def _segments(inside: dict[Corner, bool]) -> list[Simplex]:
    """Where the surface crosses the square faces of a cell: pairs of cut edges."""
    d = len(next(iter(inside)))
    rarer = sum(inside.values()) <= len(inside) // 2
    segments: list[Simplex] = []
    for face in itertools.product((0, 1, None), repeat=d):
        if face.count(None) != 2:
            continue
        ring = [_fill(face, pair) for pair in ((0, 0), (0, 1), (1, 1), (1, 0))]
        edges = [_edge(ring[i - 1], ring[i]) for i in range(4)]
        cut = [edge for edge in edges if inside[edge[0]] != inside[edge[1]]]
        if len(cut) == 4:
            segments += [(edges[i], edges[(i + 1) % 4]) for i in range(4) if inside[ring[i]] == rarer]
        elif cut:
            segments.append((cut[0], cut[1]))
    return segments


def _fill(face: Sequence[int | None], pair: tuple[int, int]) -> Corner:
    free = iter(pair)
    return tuple(next(free) if value is None else value for value in face)


def _edge(start: Corner, end: Corner) -> Edge:
    return min(start, end), max(start, end)


def _loops(segments: list[Simplex]) -> list[list[Edge]]:
    """Closed loops of cut edges; every cut edge of a cube lies on two faces, so it ends two segments."""
    neighbours: dict[Edge, list[Edge]] = {}
    for start, end in segments:
        neighbours.setdefault(start, []).append(end)
        neighbours.setdefault(end, []).append(start)
    loops = []
    while neighbours:
        loop = [next(iter(neighbours))]
        while following := [edge for edge in neighbours.pop(loop[-1]) if edge in neighbours]:
            loop.append(following[0])
        loops.append(loop)
    return loops


def _triangulate(loop: list[Edge]) -> Sequence[Simplex]:
    """The triangulation of a loop whose area on the unit cube is largest."""
    # rounded, so that equal areas are equal on every machine and the first of them wins
    return max(_triangulations(loop), key=lambda t: round(sum(float(np.linalg.norm(_normal(s))) for s in t), 9))


def _triangulations(loop: Sequence[Edge]) -> list[list[Simplex]]:
    """All triangulations: the triangle on the side from first to last edge, then what is left beside it."""
    if len(loop) < 3:
        return [[]]
    pieces = []
    for k in range(1, len(loop) - 1):
        triangle = (loop[0], loop[k], loop[-1])
        for left, right in itertools.product(_triangulations(loop[: k + 1]), _triangulations(loop[k:])):
            pieces.append([*left, *right, triangle])
    return pieces


def _normal(simplex: Simplex) -> np.ndarray:
    """Vector at right angles to a segment (d = 2) or triangle (d = 3) of edge middles, as long as its area."""
    points = np.array(simplex, dtype=float).mean(axis=1)
    sides = points[1:] - points[0]
    d = points.shape[1]
    cross = [(-1) ** i * np.linalg.det(np.delete(sides, i, axis=1)) for i in range(d)]
    return np.array(cross) / (d - 1)
