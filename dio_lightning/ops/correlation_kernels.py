"""The compiled loops of local correlation, on NumPy arrays: volumes (n, s0, s1, s2), all sums in float64.

A sum over a window runs along its axis, one voxel in and one out. A thread takes a band of rows through all planes and
keeps the sums of the last few planes of its band, which lie in the cache; no volume of sums is ever stored.
"""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST


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


@njit(inline="always")
def _plane(total, i, first, s0, s1, radius, count, za, zb, floor, signed, slopes):  # noqa: ANN001, ANN202
    """The sum of the correlations of a plane of a band, given its sums over windows (5, rows, s2)."""
    summed, both, s2 = 0.0, len(slopes) == 5, total.shape[2]
    for row in range(total.shape[1]):
        j = first + row
        for k in range(s2):
            outside = count - _within(i, s0, radius) * _within(j, s1, radius) * _within(k, s2, radius)
            sum_a, sum_b = total[0, row, k], total[1, row, k]
            mean_a, mean_b = (sum_a - outside * za) / count, (sum_b - outside * zb) / count
            cross = total[4, row, k] - sum_a * sum_b / count
            var_a, var_b = total[2, row, k] - sum_a * sum_a / count, total[3, row, k] - sum_b * sum_b / count
            if outside > 0:
                inside = 1 - outside / count
                cross += outside * (za * zb * inside + (za * sum_b + zb * sum_a) / count)
                var_a += outside * (za * za * inside + 2 * za * sum_a / count)
                var_b += outside * (zb * zb * inside + 2 * zb * sum_b / count)
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
            slopes[0, j, k], slopes[1, j, k] = root, of_a
            slopes[2, j, k] = root * mean_b + of_a * mean_a
            if both:
                slopes[3, j, k] = of_b
                slopes[4, j, k] = root * mean_a + of_b * mean_b
    return summed


@njit(fastmath=_FAST)
def _products(x, y, za, zb, radius, out):  # noqa: ANN001, ANN202
    """Sums of a, b, a², b² and ab over windows along the rows of a plane, into out (5, rows, s2); all five at once."""
    rows, extent = x.shape
    for j in range(rows):
        of_a = of_b = of_aa = of_bb = of_ab = 0.0
        for k in range(-radius, extent):
            if k + radius < extent:
                p, q = x[j, k + radius] - za, y[j, k + radius] - zb
                of_a, of_b, of_aa, of_bb, of_ab = of_a + p, of_b + q, of_aa + p * p, of_bb + q * q, of_ab + p * q
            if k > radius:
                p, q = x[j, k - radius - 1] - za, y[j, k - radius - 1] - zb
                of_a, of_b, of_aa, of_bb, of_ab = of_a - p, of_b - q, of_aa - p * p, of_bb - q * q, of_ab - p * q
            if k >= 0:
                out[0, j, k], out[1, j, k], out[2, j, k], out[3, j, k], out[4, j, k] = of_a, of_b, of_aa, of_bb, of_ab


@njit(fastmath=_FAST)
def _three(x, y, z, radius, out):  # noqa: ANN001, ANN202
    """Sums of three planes over windows along their rows, into out (3, rows, s2)."""
    rows, extent = x.shape
    for j in range(rows):
        of_x = of_y = of_z = 0.0
        for k in range(-radius, extent):
            if k + radius < extent:
                of_x, of_y, of_z = of_x + x[j, k + radius], of_y + y[j, k + radius], of_z + z[j, k + radius]
            if k > radius:
                before = k - radius - 1
                of_x, of_y, of_z = of_x - x[j, before], of_y - y[j, before], of_z - z[j, before]
            if k >= 0:
                out[0, j, k], out[1, j, k], out[2, j, k] = of_x, of_y, of_z


@njit(fastmath=_FAST)
def _exchange(total, kept, fresh):  # noqa: ANN001, ANN202
    """A plane that is kept leaves the running total, and another one takes its place."""
    for j in range(total.shape[0]):
        for k in range(total.shape[1]):
            total[j, k] += fresh[j, k] - kept[j, k]
            kept[j, k] = fresh[j, k]


@njit(fastmath=_FAST)
def _correlate(a, b, za, zb, first, rows, radius, count, floor, signed, slopes):  # noqa: ANN001, ANN202
    """Sum of the correlations of a band of one volume, and its slopes; see `correlations`."""
    s0, s1, s2 = a.shape
    last = min(first + rows, s1)
    low, high = max(first - radius, 0), min(last + radius, s1)
    lines, down, none = np.empty((5, high - low, s2)), np.empty((high - low, s2)), np.zeros((last - first, s2))
    kept, total = np.zeros((2 * radius + 1, 5, last - first, s2)), np.zeros((5, last - first, s2))
    summed = 0.0
    for i in range(s0 + radius):
        if i < s0:
            _products(a[i, low:high], b[i, low:high], za, zb, radius, lines)
        for which in range(5):
            if i < s0:
                _down(lines[which], radius, down)
                _exchange(total[which], kept[i % len(kept), which], down[first - low : last - low])
            else:
                _exchange(total[which], kept[i % len(kept), which], none)
        if i >= radius:
            at = i - radius
            summed += _plane(total, at, first, s0, s1, radius, count, za, zb, floor, signed, slopes[:, at])
    return summed


@njit(parallel=True, cache=True, fastmath=_FAST)
def correlations(a, b, zeros, radius, window, floor, signed, rows, value, slopes):  # noqa: ANN001, ANN201
    """Sum of the correlations of a band, and of each window what the gradients need, into slopes (3 or 5, n, *s).

    The sums are those of a, b, a², b² and ab, counted from their zeros (2, n). The slopes are the derivatives by the
    window's cross, twice by var_a, and their share of the means, counted from the zeros; of five the last two are those
    of b instead of a. A window that lies inside does not see where the zeros are; beyond the image there is 0, which is
    -zero when counted from zero. `window` is the extent along each axis, 1 where there is none.
    """
    count, bands = window[0] * window[1] * window[2], len(value) // len(a)
    for part in prange(len(value)):
        m, first = part // bands, part % bands * rows
        value[part] = _correlate(
            a[m], b[m], zeros[0, m], zeros[1, m], first, rows, radius, count, floor, signed, slopes[:, m]
        )


@njit(fastmath=_FAST)
def _slope(slopes, which, a, b, za, zb, first, rows, radius, factor, out):  # noqa: ANN001, ANN202
    """Factor times the derivative with respect to a band of one volume; see `gradient`."""
    s0, s1, s2 = a.shape
    last = min(first + rows, s1)
    low, high = max(first - radius, 0), min(last + radius, s1)
    lines, down, none = np.empty((3, high - low, s2)), np.empty((high - low, s2)), np.zeros((last - first, s2))
    kept, total = np.zeros((2 * radius + 1, 3, last - first, s2)), np.zeros((3, last - first, s2))
    for i in range(s0 + radius):
        if i < s0:
            planes = slopes[which[0], i, low:high], slopes[which[1], i, low:high], slopes[which[2], i, low:high]
            _three(planes[0], planes[1], planes[2], radius, lines)
        for place in range(3):
            if i < s0:
                _down(lines[place], radius, down)
                _exchange(total[place], kept[i % len(kept), place], down[first - low : last - low])
            else:
                _exchange(total[place], kept[i % len(kept), place], none)
        if i >= radius:
            x, y, to = a[i - radius], b[i - radius], out[i - radius]
            for j in range(first, last):
                for k in range(s2):
                    slope = total[0, j - first, k] * (y[j, k] - zb) + total[1, j - first, k] * (x[j, k] - za)
                    to[j, k] = factor * (slope - total[2, j - first, k])


@njit(parallel=True, cache=True, fastmath=_FAST)
def gradient(slopes, which, a, b, zeros, radius, rows, factor, out):  # noqa: ANN001, ANN201
    """Factor times the derivative of the sum of all correlations with respect to a, into out (n, s0, s1, s2).

    `which` names the three of the slopes that are those of a; `zeros` are (2, n), the first of them those of a.
    """
    bands = (a.shape[2] + rows - 1) // rows
    for part in prange(len(a) * bands):
        m, first = part // bands, part % bands * rows
        _slope(slopes[:, m], which, a[m], b[m], zeros[0, m], zeros[1, m], first, rows, radius, factor, out[m])
