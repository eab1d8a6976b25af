"""The compiled loops of stencils, on NumPy arrays: volumes (n, s0, s1, s2). The last axis is a SIMD loop."""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST

_PLANES = 32
"""Planes that one thread smooths at a time; those beside them it smooths within, too."""


@njit(fastmath=_FAST)
def _weighted(line, weight, below, above, beside, out):  # noqa: ANN001, ANN202
    for k in range(len(out)):
        out[k] = weight * line[k] + beside * (below[k] + above[k])


@njit(fastmath=_FAST)
def _add(below, above, weight, out):  # noqa: ANN001, ANN202
    for k in range(len(out)):
        out[k] += weight * (below[k] + above[k])


@njit(fastmath=_FAST)
def _across(rows, at, extent, taps, zero, out):  # noqa: ANN001, ANN202
    """Symmetric correlation at row `at` of `extent`, which are kept in turns in fewer; zeros outside."""
    kept = len(rows)
    if len(taps) == 1:
        out[:] = rows[at % kept]
    for t in range(1, len(taps)):
        below = rows[(at - t) % kept] if at - t >= 0 else zero
        above = rows[(at + t) % kept] if at + t < extent else zero
        if t == 1:
            _weighted(rows[at % kept], taps[0], below, above, taps[1], out)
        else:
            _add(below, above, taps[t], out)


@njit(fastmath=_FAST)
def _along(line, taps, padded, out):  # noqa: ANN001, ANN202
    """Symmetric correlation of a line within zeros, of which `padded` has as many before and after it as are read."""
    width, tail = len(line), len(taps) - 1
    padded[tail : tail + width] = line
    if tail == 0:
        out[:] = line
    for t in range(1, tail + 1):
        below, above = padded[tail - t :], padded[tail + t :]
        if t == 1:
            _weighted(line, taps[0], below, above, taps[1], out)
        else:
            _add(below, above, taps[t], out)


@njit(fastmath=_FAST)
def _in_plane(plane, along, across, rows, padded, zero, out):  # noqa: ANN001, ANN202
    """Correlations of a plane (s1, s2) along both axes."""
    for j in range(len(plane)):
        _along(plane[j], along, padded, rows[j])
    for j in range(len(plane)):
        _across(rows, j, len(plane), across, zero, out[j])


@njit(fastmath=_FAST)
def _smooth(volume, taps0, taps1, taps2, first, end, out):  # noqa: ANN001, ANN202
    """`smooth` of the planes from `first` up to before `end`; as many are kept as one of them needs."""
    extent, height, width = volume.shape
    tail, number = len(taps0) - 1, volume.dtype
    rows, padded = np.empty((height, width), number), np.zeros(width + 2 * len(taps2), number)
    kept, zero = np.empty((2 * tail + 1, height, width), number), np.zeros(height * width, number)
    flat = kept.reshape(len(kept), height * width)
    for plane in range(max(first - tail, 0), end + tail):
        if plane < extent:
            _in_plane(volume[plane], taps2, taps1, rows, padded, zero[:width], kept[plane % len(kept)])
        if plane - tail >= first:
            _across(flat, plane - tail, extent, taps0, zero, out[plane - tail].reshape(height * width))


@njit(parallel=True, cache=True, fastmath=_FAST)
def smooth(x, taps0, taps1, taps2, out):  # noqa: ANN001, ANN201
    """Symmetric correlations along all axes; taps[t] is the weight at distance t, zeros outside."""
    n, extent = x.shape[0], x.shape[1]
    chunks = (extent + _PLANES - 1) // _PLANES
    for part in prange(n * chunks):
        m, first = part // chunks, part % chunks * _PLANES
        _smooth(x[m], taps0, taps1, taps2, first, min(first + _PLANES, extent), out[m])


@njit(fastmath=_FAST)
def _differences(line, below, above, left, right, out):  # noqa: ANN001, ANN202
    """`differences` of a line beside its neighbours, or itself where it has none."""
    last, total = len(line) - 1, line.dtype.type(0)
    for k in range(last + 1):
        here, up, down = line[k], above[k] - line[k], right[k] - line[k]
        total += up * up + down * down
        out[k] = 2 * ((here - below[k]) - up + (here - left[k]) - down)
    for k in range(last):
        step = line[k + 1] - line[k]
        total += step * step
        out[k] -= 2 * step
    for k in range(1, last + 1):
        out[k] += 2 * (line[k] - line[k - 1])
    return total


@njit(parallel=True, cache=True, fastmath=_FAST)
def differences(u, energy, slope):  # noqa: ANN001, ANN201
    """Sums of squared forward differences of each row (n s0 s1), in float64, and their slope by u."""
    n, s0, s1, _ = u.shape
    for row in prange(n * s0 * s1):
        m, i, j = row // (s0 * s1), row // s1 % s0, row % s1
        below, above = u[m, max(i - 1, 0), j], u[m, min(i + 1, s0 - 1), j]
        left, right = u[m, i, max(j - 1, 0)], u[m, i, min(j + 1, s1 - 1)]
        energy[row] = _differences(u[m, i, j], below, above, left, right, slope[m, i, j])


@njit(fastmath=_FAST)
def _central(low, high, span):  # noqa: ANN001, ANN202
    return (high - low) / span if span > 0 else 0.0


@njit(parallel=True, cache=True, fastmath=_FAST)
def determinants(u, out):  # noqa: ANN001, ANN201
    """Determinant of the Jacobian of id + u, (b, 3, s0, s1, s2), by central differences, one-sided at the border."""
    b, _, s0, s1, s2 = u.shape
    for row in prange(b * s0 * s1):
        m, i, j = row // (s0 * s1), row // s1 % s0, row % s1
        i0, i1, j0, j1 = max(i - 1, 0), min(i + 1, s0 - 1), max(j - 1, 0), min(j + 1, s1 - 1)
        for k in range(s2):
            k0, k1 = max(k - 1, 0), min(k + 1, s2 - 1)
            a0 = _central(u[m, 0, i0, j, k], u[m, 0, i1, j, k], i1 - i0) + 1
            a1 = _central(u[m, 1, i0, j, k], u[m, 1, i1, j, k], i1 - i0)
            a2 = _central(u[m, 2, i0, j, k], u[m, 2, i1, j, k], i1 - i0)
            b0 = _central(u[m, 0, i, j0, k], u[m, 0, i, j1, k], j1 - j0)
            b1 = _central(u[m, 1, i, j0, k], u[m, 1, i, j1, k], j1 - j0) + 1
            b2 = _central(u[m, 2, i, j0, k], u[m, 2, i, j1, k], j1 - j0)
            c0 = _central(u[m, 0, i, j, k0], u[m, 0, i, j, k1], k1 - k0)
            c1 = _central(u[m, 1, i, j, k0], u[m, 1, i, j, k1], k1 - k0)
            c2 = _central(u[m, 2, i, j, k0], u[m, 2, i, j, k1], k1 - k0) + 1
            out[m, i, j, k] = a0 * (b1 * c2 - b2 * c1) - b0 * (a1 * c2 - a2 * c1) + c0 * (a1 * b2 - a2 * b1)
