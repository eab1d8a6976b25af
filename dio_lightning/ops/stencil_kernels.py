"""The compiled loops of stencils, on NumPy arrays: volumes (n, s0, s1, s2). The last axis is a SIMD loop."""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST


@njit(fastmath=_FAST)
def _add(line, weight, out):  # noqa: ANN001, ANN202
    for k in range(len(out)):
        out[k] += weight * line[k]


@njit(fastmath=_FAST)
def _across(rows, taps, out):  # noqa: ANN001, ANN202
    """Symmetric correlation of rows (m, k) along their first axis into out (m, k), zeros outside."""
    extent, width = rows.shape
    total = np.empty(width, rows.dtype)
    for i in range(extent):
        total[:] = 0
        for t in range(1, min(len(taps), extent)):
            below, above = i - t >= 0, i + t < extent
            if below and above:
                one, two = rows[i - t], rows[i + t]
                for k in range(width):
                    total[k] += taps[t] * (one[k] + two[k])
            elif below:
                _add(rows[i - t], taps[t], total)
            elif above:
                _add(rows[i + t], taps[t], total)
        here = rows[i]
        for k in range(width):
            out[i, k] = total[k] + taps[0] * here[k]


@njit(fastmath=_FAST)
def _line(line, taps, out):  # noqa: ANN001, ANN202
    """Symmetric correlation of a line (k,) into out (k,), zeros outside."""
    extent = len(line)
    for k in range(extent):
        out[k] = taps[0] * line[k]
    for t in range(1, min(len(taps), extent)):
        for k in range(extent - t):
            out[k + t] += taps[t] * line[k]
        for k in range(extent - t):
            out[k] += taps[t] * line[k + t]


@njit(fastmath=_FAST)
def _in_plane(plane, along, across, out):  # noqa: ANN001, ANN202
    """Correlations of a plane (s1, s2) along both axes."""
    rows = np.empty(plane.shape, plane.dtype)
    for j in range(len(plane)):
        _line(plane[j], along, rows[j])
    _across(rows, across, out)


@njit(fastmath=_FAST)
def _through_planes(rows, taps):  # noqa: ANN001, ANN202
    """The correlation of a row of every plane (s0, s2) with those of the others, in place."""
    kept = np.empty(rows.shape, rows.dtype)
    for i in range(len(rows)):
        for k in range(rows.shape[1]):
            kept[i, k] = rows[i, k]
    _across(kept, taps, rows)


@njit(parallel=True, cache=True, fastmath=_FAST)
def smooth(x, taps0, taps1, taps2, out):  # noqa: ANN001, ANN201
    """Symmetric correlations along all axes; taps[t] is the weight at distance t, zeros outside."""
    n, s0, s1, _ = x.shape
    for plane in prange(n * s0):
        _in_plane(x[plane // s0, plane % s0], taps2, taps1, out[plane // s0, plane % s0])
    if len(taps0) > 1:
        for row in prange(n * s1):
            _through_planes(out[row // s1, :, row % s1], taps0)


@njit(parallel=True, cache=True, fastmath=_FAST)
def differences(u, energy, slope):  # noqa: ANN001, ANN201
    """Sums of squared forward differences of each row (n s0 s1), in float64, and their slope by u."""
    n, s0, s1, s2 = u.shape
    for row in prange(n * s0 * s1):
        m, i, j = row // (s0 * s1), row // s1 % s0, row % s1
        line, out, total = u[m, i, j], slope[m, i, j], 0.0
        out[:] = 0
        for k in range(s2 - 1):
            step = line[k + 1] - line[k]
            total += np.float64(step) * np.float64(step)
            out[k] -= 2 * step
            out[k + 1] += 2 * step
        if i > 0:
            for k in range(s2):
                out[k] += 2 * (line[k] - u[m, i - 1, j, k])
        if i + 1 < s0:
            for k in range(s2):
                step = u[m, i + 1, j, k] - line[k]
                total += np.float64(step) * np.float64(step)
                out[k] -= 2 * step
        if j > 0:
            for k in range(s2):
                out[k] += 2 * (line[k] - u[m, i, j - 1, k])
        if j + 1 < s1:
            for k in range(s2):
                step = u[m, i, j + 1, k] - line[k]
                total += np.float64(step) * np.float64(step)
                out[k] -= 2 * step
        energy[row] = total


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
