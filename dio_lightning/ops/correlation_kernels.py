"""The compiled loops of local correlation, on NumPy arrays: volumes (n, s0, s1, s2), all sums in float64.

A sum over a window runs along its axis, one voxel in and one out. A thread takes a band of rows through all planes and
keeps the sums of the last few planes of its band, which lie in the cache; no volume of sums is ever stored.
"""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST

_BLOCK = 128
"""Voxels of a row in a loop. What it reads and writes is one array: LLVM makes no SIMD of loops over eight and more."""


@njit(fastmath=_FAST)
def _into(line, enters, leaves, total, kept):  # noqa: ANN001, ANN202
    """A line of running sums down a plane moves on by a row; in the sums over planes it takes the place of `kept`."""
    for k in range(len(line)):
        fresh = line[k] + (enters[k] - leaves[k])
        total[k] += fresh - kept[k]
        line[k] = fresh
        kept[k] = fresh


@njit(fastmath=_FAST)
def _down(rows, first, count, radius, line, zero, total, kept):  # noqa: ANN001, ANN202
    """Sums of windows down a plane at `count` rows from `first` on, into the sums over planes."""
    extent = len(rows)
    line[:] = 0
    for j in range(max(first - radius - 1, 0), min(first + radius, extent)):
        for k in range(len(line)):
            line[k] += rows[j, k]
    for j in range(count):
        enters, leaves = first + j + radius, first + j - radius - 1
        _into(line, rows[enters] if enters < extent else zero, rows[leaves] if leaves >= 0 else zero, total[j], kept[j])


@njit(fastmath=_FAST)
def _out(total, kept):  # noqa: ANN001, ANN202
    """A plane that is kept leaves the sums, and none takes its place."""
    for j in range(total.shape[0]):
        for k in range(total.shape[1]):
            total[j, k] -= kept[j, k]
            kept[j, k] = 0


@njit(fastmath=_FAST)
def _within(place, extent, radius):  # noqa: ANN001, ANN202
    """How many voxels of a window lie inside along an axis."""
    return min(place + radius, extent - 1) - max(place - radius, 0) + 1


@njit(fastmath=_FAST, error_model="numpy")  # a division that raises is no SIMD
def _row(work, length, within, count, za, zb, floor, signed):  # noqa: ANN001, ANN202
    """The sum of the correlations of `length` voxels of a row, where so many voxels of a window count.

    The five sums over windows lie one behind the other, and behind them the five slopes.
    """
    summed, outside, share = 0.0, count - within, 1 / count
    # what a window has beyond the image counts as -zero: moments of the outside
    off_a, off_b, lack = outside * za * share, outside * zb * share, outside * (1 - outside * share)
    off_aa, off_bb, off_ab = lack * za * za, lack * zb * zb, lack * za * zb
    for k in range(length):
        sum_a, sum_b = work[k], work[_BLOCK + k]
        mean_a, mean_b = sum_a * share - off_a, sum_b * share - off_b
        var_a = work[2 * _BLOCK + k] + off_aa - sum_a * (mean_a - off_a)
        var_b = work[3 * _BLOCK + k] + off_bb - sum_b * (mean_b - off_b)
        cross = work[4 * _BLOCK + k] + off_ab - sum_a * mean_b + off_a * sum_b
        free_a, free_b = 1.0 if var_a > floor else 0.0, 1.0 if var_b > floor else 0.0
        # so written that NaN stays NaN
        var_a, var_b = floor if var_a <= floor else var_a, floor if var_b <= floor else var_b
        product = 1 / (var_a * var_b + floor)
        root = np.sqrt(product) if signed else 2 * cross * product
        correlation = cross * root if signed else cross * cross * product
        correlation = 1.0 if correlation > 1 else (-1.0 if correlation < -1 else correlation)
        summed += correlation
        bend = -root * cross * product
        slope_a, slope_b = bend * var_b * free_a, bend * var_a * free_b
        work[5 * _BLOCK + k], work[6 * _BLOCK + k] = root, slope_a
        work[7 * _BLOCK + k] = root * mean_b + slope_a * mean_a
        work[8 * _BLOCK + k], work[9 * _BLOCK + k] = slope_b, root * mean_a + slope_b * mean_b
    return summed


@njit(fastmath=_FAST)
def _plane(total, i, first, s0, s1, radius, count, za, zb, floor, signed, work, slopes):  # noqa: ANN001, ANN202
    """The sum of the correlations of a plane of a band, given its sums over windows (5, rows, s2)."""
    summed, s2 = 0.0, total.shape[2]
    for part in range(total.shape[1] * ((s2 + _BLOCK - 1) // _BLOCK)):
        row, start = part % total.shape[1], part // total.shape[1] * _BLOCK
        j, stop = first + row, min(start + _BLOCK, s2)
        for place in range(5):
            work[place * _BLOCK : place * _BLOCK + stop - start] = total[place, row, start:stop]
        around = _within(i, s0, radius) * _within(j, s1, radius)
        k = start
        while k < stop:
            # all columns whose windows lie within the line are one loop
            end = min(stop, s2 - radius) if radius <= k < s2 - radius else k + 1
            within = around * _within(k, s2, radius)
            summed += _row(work[k - start :], end - k, within, count, za, zb, floor, signed)
            k = end
        for place in range(len(slopes)):
            slopes[place, j, start:stop] = work[(5 + place) * _BLOCK : (5 + place) * _BLOCK + stop - start]
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
def _correlate(a, b, za, zb, first, rows, radius, count, floor, signed, slopes):  # noqa: ANN001, ANN202
    """Sum of the correlations of a band of one volume, and its slopes; see `correlations`."""
    s0, s1, s2 = a.shape
    last = min(first + rows, s1)
    low, high = max(first - radius, 0), min(last + radius, s1)
    lines, line, zero = np.empty((5, high - low, s2)), np.empty(s2), np.zeros(s2)
    kept, total = np.zeros((2 * radius + 1, 5, last - first, s2)), np.zeros((5, last - first, s2))
    work, summed = np.empty(10 * _BLOCK), 0.0
    for i in range(s0 + radius):
        if i < s0:
            _products(a[i, low:high], b[i, low:high], za, zb, radius, lines)
        for which in range(5):
            before = kept[i % len(kept), which]
            if i < s0:
                _down(lines[which], first - low, last - first, radius, line, zero, total[which], before)
            else:
                _out(total[which], before)
        if i >= radius:
            at = i - radius
            summed += _plane(total, at, first, s0, s1, radius, count, za, zb, floor, signed, work, slopes[:, at])
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
    lines, line, zero = np.empty((3, high - low, s2)), np.empty(s2), np.zeros(s2)
    kept, total = np.zeros((2 * radius + 1, 3, last - first, s2)), np.zeros((3, last - first, s2))
    for i in range(s0 + radius):
        if i < s0:
            planes = slopes[which[0], i, low:high], slopes[which[1], i, low:high], slopes[which[2], i, low:high]
            _three(planes[0], planes[1], planes[2], radius, lines)
        for place in range(3):
            before = kept[i % len(kept), place]
            if i < s0:
                _down(lines[place], first - low, last - first, radius, line, zero, total[place], before)
            else:
                _out(total[place], before)
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
