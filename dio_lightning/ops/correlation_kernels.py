"""The compiled loops of local correlation, on NumPy arrays: volumes (n, s0, s1, s2), all sums in float64.

A sum over a window runs along its axis, one voxel in and one out. First both axes of every plane, then across planes.
"""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST


@njit(inline="always")
def _run(line, radius, out):  # noqa: ANN001, ANN202
    """Sums over [k - radius, k + radius] of a line."""
    extent = len(line)
    total = 0.0
    for k in range(min(radius, extent)):
        total += line[k]
    for k in range(extent):
        if k + radius < extent:
            total += line[k + radius]
        if k > radius:
            total -= line[k - radius - 1]
        out[k] = total


@njit(inline="always")
def _down(rows, radius, out):  # noqa: ANN001, ANN202
    """The same down the first axis of (s1, s2)."""
    extent, width = rows.shape
    total = np.zeros(width)
    for j in range(min(radius, extent)):
        for k in range(width):
            total[k] += rows[j, k]
    for j in range(extent):
        if j + radius < extent:
            for k in range(width):
                total[k] += rows[j + radius, k]
        if j > radius:
            for k in range(width):
                total[k] -= rows[j - radius - 1, k]
        for k in range(width):
            out[j, k] = total[k]


@njit(inline="always")
def _within(place, extent, radius):  # noqa: ANN001, ANN202
    """How many voxels of a window lie inside along an axis."""
    return min(place + radius, extent - 1) - max(place - radius, 0) + 1


@njit(parallel=True, cache=True, fastmath=_FAST)
def moments(a, b, zero_a, zero_b, radius, planes):  # noqa: ANN001, ANN201
    """Window sums within each plane of a, b, a², b² and ab, counted from their zeros (n), into planes (5, n, *s)."""
    n, s0, s1, s2 = a.shape
    for plane in prange(n * s0):
        m, i = plane // s0, plane % s0
        rows, line = np.empty((s1, s2)), np.empty(s2)
        for which in range(5):
            for j in range(s1):
                for k in range(s2):
                    x, y = a[m, i, j, k] - zero_a[m], b[m, i, j, k] - zero_b[m]
                    if which == 0:
                        line[k] = x
                    elif which == 1:
                        line[k] = y
                    elif which == 2:
                        line[k] = x * x
                    elif which == 3:
                        line[k] = y * y
                    else:
                        line[k] = x * y
                _run(line, radius, rows[j])
            _down(rows, radius, planes[which, m, i])


@njit(parallel=True, cache=True, fastmath=_FAST)
def correlations(planes, zero_a, zero_b, radius, window, floor, signed, value, slopes):  # noqa: ANN001, ANN201
    """Sum of the correlations of a row (n s1), and of each window what the gradients need, into slopes (3 or 5, n, *s).

    The slopes are the derivatives by the window's cross, twice by var_a, and their share of the means, counted from the
    zeros; of five the last two are those of b instead of a. A window that lies inside does not see where the zeros are;
    beyond the image there is 0, which is -zero when counted from zero. `window` is the extent along each axis, 1 where
    there is none.
    """
    _, n, s0, s1, s2 = planes.shape
    count, both = window[0] * window[1] * window[2], len(slopes) == 5
    for row in prange(n * s1):
        m, j = row // s1, row % s1
        total, summed = np.zeros((5, s2)), 0.0
        for i in range(min(radius, s0)):
            total += planes[:, m, i, j]
        for i in range(s0):
            if i + radius < s0:
                total += planes[:, m, i + radius, j]
            if i > radius:
                total -= planes[:, m, i - radius - 1, j]
            for k in range(s2):
                outside = count - _within(i, s0, radius) * _within(j, s1, radius) * _within(k, s2, radius)
                mean_a = (total[0, k] - outside * zero_a[m]) / count
                mean_b = (total[1, k] - outside * zero_b[m]) / count
                cross = total[4, k] - total[0, k] * total[1, k] / count
                var_a = total[2, k] - total[0, k] * total[0, k] / count
                var_b = total[3, k] - total[1, k] * total[1, k] / count
                if outside > 0:
                    x, y, part = zero_a[m], zero_b[m], 1 - outside / count
                    cross += outside * (x * y * part + (x * total[1, k] + y * total[0, k]) / count)
                    var_a += outside * (x * x * part + 2 * x * total[0, k] / count)
                    var_b += outside * (y * y * part + 2 * y * total[1, k] / count)
                free_a, free_b = var_a > floor, var_b > floor
                # so written that NaN stays NaN
                var_a, var_b = floor if var_a <= floor else var_a, floor if var_b <= floor else var_b
                product = var_a * var_b + floor
                root = 1 / np.sqrt(product) if signed else 2 * cross / product
                correlation = cross * root if signed else cross * cross / product
                correlation = 1.0 if correlation > 1 else (-1.0 if correlation < -1 else correlation)
                summed += correlation
                of_a = -root * cross * var_b / product if free_a else 0.0
                of_b = -root * cross * var_a / product if free_b else 0.0
                slopes[0, m, i, j, k], slopes[1, m, i, j, k] = root, of_a
                slopes[2, m, i, j, k] = root * mean_b + of_a * mean_a
                if both:
                    slopes[3, m, i, j, k] = of_b
                    slopes[4, m, i, j, k] = root * mean_a + of_b * mean_b
        value[row] = summed


@njit(parallel=True, cache=True, fastmath=_FAST)
def spread(slopes, which, radius, planes):  # noqa: ANN001, ANN201
    """Window sums within each plane of the three slopes that `which` names, into planes (3, n, s0, s1, s2)."""
    _, n, s0, s1, s2 = slopes.shape
    for plane in prange(n * s0):
        m, i = plane // s0, plane % s0
        rows = np.empty((s1, s2))
        for place in range(3):
            for j in range(s1):
                _run(slopes[which[place], m, i, j], radius, rows[j])
            _down(rows, radius, planes[place, m, i])


@njit(parallel=True, cache=True, fastmath=_FAST)
def gradient(planes, a, b, zero_a, zero_b, radius, factor, out):  # noqa: ANN001, ANN201
    """Factor times the derivative of the sum of all correlations with respect to a, into out (n, s0, s1, s2)."""
    n, s0, s1, s2 = a.shape
    for row in prange(n * s1):
        m, j = row // s1, row % s1
        total = np.zeros((3, s2))
        for i in range(min(radius, s0)):
            total += planes[:, m, i, j]
        for i in range(s0):
            if i + radius < s0:
                total += planes[:, m, i + radius, j]
            if i > radius:
                total -= planes[:, m, i - radius - 1, j]
            for k in range(s2):
                slope = total[0, k] * (b[m, i, j, k] - zero_b[m]) + total[1, k] * (a[m, i, j, k] - zero_a[m])
                out[m, i, j, k] = factor * (slope - total[2, k])
