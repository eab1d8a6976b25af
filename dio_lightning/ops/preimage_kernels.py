"""The compiled loop of preimages, on NumPy arrays: a field (3, s0 s1 s2) in voxels, points (3, n) in float64."""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST


@njit(fastmath=_FAST)
def _cell(position, extent):  # noqa: ANN001, ANN202
    """Of an axis: lower corner, whether the other one is the next voxel, both weights, and the weights' slopes.

    The position is clamped to the grid and has no slope beside it; weights are NaN where it is not finite.
    """
    if not abs(position) < np.inf:
        return 0, 0, np.nan, np.nan, 0.0, 0.0
    moves = 1.0 if 0 < position < extent - 1 else 0.0
    position = min(max(position, 0.0), extent - 1.0)
    low = int(position)
    return low, min(low + 1, extent - 1) - low, 1 - (position - low), position - low, -moves, moves


@njit(fastmath=_FAST)
def _along(line, x, d0, d1, d2, w0, w1, w2):  # noqa: ANN001, ANN202
    """Sum over the corners of a cell of the products of weights (lower, upper) of the three axes."""
    x00 = w2[0] * line[x] + w2[1] * line[x + d2]
    x01 = w2[0] * line[x + d1] + w2[1] * line[x + d1 + d2]
    x10 = w2[0] * line[x + d0] + w2[1] * line[x + d0 + d2]
    x11 = w2[0] * line[x + d0 + d1] + w2[1] * line[x + d0 + d1 + d2]
    return w0[0] * (w1[0] * x00 + w1[1] * x01) + w0[1] * (w1[0] * x10 + w1[1] * x11)


@njit(fastmath=_FAST)
def _determinant(a, b, c):  # noqa: ANN001, ANN202
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])


@njit(fastmath=_FAST)
def _step(field, size, y, z, flat, slopes, step):  # noqa: ANN001, ANN202
    """Newton's step at z, or minus the residual where the map folds; returns the square of the residual."""
    i, more0, a0, b0, l0, u0 = _cell(y[0] + z[0], size[0])
    j, more1, a1, b1, l1, u1 = _cell(y[1] + z[1], size[1])
    k, more2, a2, b2, l2, u2 = _cell(y[2] + z[2], size[2])
    # unsigned, which spares the question whether an index counts from the end
    x = np.uint64((i * size[1] + j) * size[2] + k)
    d0, d1, d2 = np.uint64(more0 * size[1] * size[2]), np.uint64(more1 * size[2]), np.uint64(more2)
    total = 0.0
    for c in range(3):
        line = field[c]
        residual = z[c] + _along(line, x, d0, d1, d2, (a0, b0), (a1, b1), (a2, b2))
        slopes[0, c] = _along(line, x, d0, d1, d2, (l0, u0), (a1, b1), (a2, b2))
        slopes[1, c] = _along(line, x, d0, d1, d2, (a0, b0), (l1, u1), (a2, b2))
        slopes[2, c] = _along(line, x, d0, d1, d2, (a0, b0), (a1, b1), (l2, u2))
        slopes[c, c] += 1.0
        step[c] = -residual
        total += residual * residual
    determinant = _determinant(slopes[0], slopes[1], slopes[2])
    if determinant > flat:
        r0, r1, r2 = step[0], step[1], step[2]
        right = (r0, r1, r2)
        step[0] = _determinant(right, slopes[1], slopes[2]) / determinant
        step[1] = _determinant(slopes[0], right, slopes[2]) / determinant
        step[2] = _determinant(slopes[0], slopes[1], right) / determinant
    return total


@njit(fastmath=_FAST)
def _some(field, points, size, tolerance, steps, flat, first, last, out):  # noqa: ANN001, ANN202
    """`newton` of the points from `first` up to before `last`."""
    y, z, best, before = np.empty(3), np.empty(3), np.zeros(3), np.zeros(3)
    step, slopes = np.empty(3), np.empty((3, 3))
    for at in range(first, last):
        for c in range(3):
            y[c], before[c], best[c] = points[c, at], best[c], np.nan
        least = np.inf
        for attempt in range(2):
            for c in range(3):
                z[c] = before[c] if attempt else 0.0
            for _ in range(steps):
                square = _step(field, size, y, z, flat, slopes, step)
                better = square < least
                least = square if better else least
                for c in range(3):
                    best[c] = z[c] if better else best[c]
                    z[c] += step[c]
                if not square > tolerance * tolerance:
                    break
            if not least > tolerance * tolerance:
                break
        for c in range(3):
            out[c, at] = best[c]


@njit(parallel=True, cache=True, fastmath=_FAST)
def newton(field, points, size, tolerance, steps, flat, chunk, out):  # noqa: ANN001, ANN201
    """Of every point the z (3, n) with z + u(y + z) = 0, or the best of those that were tried.

    Newton's method goes from zero, and where it does not arrive from what the point before has come to. No step is
    shortened: where the slope jumps from cell to cell, a walk that may only go downhill gets stuck.
    """
    count = points.shape[1]
    for part in prange((count + chunk - 1) // chunk):
        last = min((part + 1) * chunk, count)
        _some(field, points, size, tolerance, steps, flat, part * chunk, last, out)
