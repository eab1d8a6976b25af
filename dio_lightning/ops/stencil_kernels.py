"""The compiled loops of stencils, on NumPy arrays: volumes (n, s0, s1, s2). The last axis is a SIMD loop."""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST


@njit(fastmath=_FAST)
def _weighted(line, weight, below, above, beside, out):  # noqa: ANN001, ANN202
    for k in range(len(out)):
        out[k] = weight * line[k] + beside * (below[k] + above[k])


@njit(fastmath=_FAST)
def _add(below, above, weight, out):  # noqa: ANN001, ANN202
    for k in range(len(out)):
        out[k] += weight * (below[k] + above[k])


@njit
def _copy(x, out):  # noqa: ANN001, ANN202
    for k in range(len(x)):
        out[k] = x[k]


@njit(fastmath=_FAST)
def _across(rows, at, extent, taps, zero, out):  # noqa: ANN001, ANN202
    """Symmetric correlation at row `at` of `extent`, which are kept in turns in fewer; zeros outside."""
    kept = len(rows)
    if len(taps) == 1:
        _copy(rows[at % kept], out)
    for t in range(1, len(taps)):
        below = rows[(at - t) % kept] if at - t >= 0 else zero
        above = rows[(at + t) % kept] if at + t < extent else zero
        if t == 1:
            _weighted(rows[at % kept], taps[0], below, above, taps[1], out)
        else:
            _add(below, above, taps[t], out)


@njit(fastmath=_FAST)
def _along(source, first, stride, taps, out):  # noqa: ANN001, ANN202
    """Symmetric correlation of the elements from the first one on with those that lie `stride` apart."""
    end = first + len(out)
    if len(taps) == 1:
        _copy(source[first:end], out)
    for t in range(1, len(taps)):
        far = t * stride
        below, above = source[first - far : end - far], source[first + far : end + far]
        if t == 1:
            _weighted(source[first:end], taps[0], below, above, taps[1], out)
        else:
            _add(below, above, taps[t], out)


@njit(fastmath=_FAST)
def _in_plane(plane, along, across, lines, rows, out):  # noqa: ANN001, ANN202
    """Correlations of a plane (s1, s2) along both axes: (s1 step), lines that lie a step apart.

    `lines` and `rows` hold zeros before, between and after lines, as many as are read, so that all lines are one loop.
    """
    (height, width), step = plane.shape, plane.shape[1] + len(along) - 1
    first = (len(across) - 1) * step + len(along) - 1
    end = first + height * step
    for j in range(height):
        _copy(plane[j], lines[first + j * step :])
    _along(lines, first, 1, along, rows[first:end])
    for j in range(height):
        for k in range(first + j * step + width, first + (j + 1) * step):
            rows[k] = 0
    _along(rows, first, step, across, out)


@njit(fastmath=_FAST)
def _smooth(volume, taps0, taps1, taps2, first, end, out):  # noqa: ANN001, ANN202
    """`smooth` of the planes from `first` up to before `end`; as many are kept as one of them needs."""
    (extent, height, width), tail, number = volume.shape, len(taps0) - 1, volume.dtype
    step = width + len(taps2) - 1
    padded = (height + 2 * len(taps1) - 2) * step + 2 * len(taps2) - 2
    lines, rows = np.zeros(padded, number), np.zeros(padded, number)
    kept = np.empty((2 * tail + 1, height * step), number)
    zero, total = np.zeros(height * step, number), np.empty(height * step, number)
    for plane in range(max(first - tail, 0), end + tail):
        if plane < extent:
            _in_plane(volume[plane], taps2, taps1, lines, rows, kept[plane % len(kept)])
        if plane - tail >= first:
            _across(kept, plane - tail, extent, taps0, zero, total)
            for j in range(height):
                _copy(total[j * step : j * step + width], out[plane - tail, j])


@njit(parallel=True, cache=True, fastmath=_FAST)
def smooth(x, taps0, taps1, taps2, planes, out):  # noqa: ANN001, ANN201
    """Symmetric correlations along all axes; taps[t] is the weight at distance t, zeros outside.

    A thread takes so many planes at a time, and smooths those beside them within, too.
    """
    n, extent = x.shape[0], x.shape[1]
    chunks = (extent + planes - 1) // planes
    for part in prange(n * chunks):
        m, first = part // chunks, part % chunks * planes
        _smooth(x[m], taps0, taps1, taps2, first, min(first + planes, extent), out[m])


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


@njit(inline="always")
def _columns(u, m, i, j, k, i0, i1, j0, j1):  # noqa: ANN001, ANN202
    """Derivatives of id + u, (b, 3, s0, s1, s2), at a voxel: of its components along each axis, one after the other."""
    k0, k1 = max(k - 1, 0), min(k + 1, u.shape[4] - 1)
    a0 = _central(u[m, 0, i0, j, k], u[m, 0, i1, j, k], i1 - i0) + 1
    a1 = _central(u[m, 1, i0, j, k], u[m, 1, i1, j, k], i1 - i0)
    a2 = _central(u[m, 2, i0, j, k], u[m, 2, i1, j, k], i1 - i0)
    b0 = _central(u[m, 0, i, j0, k], u[m, 0, i, j1, k], j1 - j0)
    b1 = _central(u[m, 1, i, j0, k], u[m, 1, i, j1, k], j1 - j0) + 1
    b2 = _central(u[m, 2, i, j0, k], u[m, 2, i, j1, k], j1 - j0)
    c0 = _central(u[m, 0, i, j, k0], u[m, 0, i, j, k1], k1 - k0)
    c1 = _central(u[m, 1, i, j, k0], u[m, 1, i, j, k1], k1 - k0)
    c2 = _central(u[m, 2, i, j, k0], u[m, 2, i, j, k1], k1 - k0) + 1
    return a0, a1, a2, b0, b1, b2, c0, c1, c2


@njit(parallel=True, cache=True, fastmath=_FAST)
def determinants(u, out):  # noqa: ANN001, ANN201
    """Determinant of the Jacobian of id + u, (b, 3, s0, s1, s2), by central differences, one-sided at the border."""
    b, _, s0, s1, s2 = u.shape
    for row in prange(b * s0 * s1):
        m, i, j = row // (s0 * s1), row // s1 % s0, row % s1
        i0, i1, j0, j1 = max(i - 1, 0), min(i + 1, s0 - 1), max(j - 1, 0), min(j + 1, s1 - 1)
        for k in range(s2):
            a0, a1, a2, b0, b1, b2, c0, c1, c2 = _columns(u, m, i, j, k, i0, i1, j0, j1)
            out[m, i, j, k] = a0 * (b1 * c2 - b2 * c1) - b0 * (a1 * c2 - a2 * c1) + c0 * (a1 * b2 - a2 * b1)


@njit
def _add_cross(to, weight, v0, v1, v2, w0, w1, w2):  # noqa: ANN001, ANN202
    """Adds the cross product of v and w, times a weight, to the three components of a voxel."""
    to[0] += weight * (v1 * w2 - v2 * w1)
    to[1] += weight * (v2 * w0 - v0 * w2)
    to[2] += weight * (v0 * w1 - v1 * w0)


@njit
def _push(u, determinant, margin, m, i, slope):  # noqa: ANN001, ANN202
    """What the determinants of a plane that lack something add to the slope, in it and the planes beside it."""
    s0, s1, s2 = determinant.shape[1:]
    i0, i1 = max(i - 1, 0), min(i + 1, s0 - 1)
    for j in range(s1):
        j0, j1 = max(j - 1, 0), min(j + 1, s1 - 1)
        for k in range(s2):
            if determinant[m, i, j, k] >= margin:
                continue
            a0, a1, a2, b0, b1, b2, c0, c1, c2 = _columns(u, m, i, j, k, i0, i1, j0, j1)
            k0, k1 = max(k - 1, 0), min(k + 1, s2 - 1)
            if i1 > i0:
                _add_cross(slope[m, :, i1, j, k], -1 / (i1 - i0), b0, b1, b2, c0, c1, c2)
                _add_cross(slope[m, :, i0, j, k], 1 / (i1 - i0), b0, b1, b2, c0, c1, c2)
            if j1 > j0:
                _add_cross(slope[m, :, i, j1, k], -1 / (j1 - j0), c0, c1, c2, a0, a1, a2)
                _add_cross(slope[m, :, i, j0, k], 1 / (j1 - j0), c0, c1, c2, a0, a1, a2)
            if k1 > k0:
                _add_cross(slope[m, :, i, j, k1], -1 / (k1 - k0), a0, a1, a2, b0, b1, b2)
                _add_cross(slope[m, :, i, j, k0], 1 / (k1 - k0), a0, a1, a2, b0, b1, b2)


@njit(parallel=True, cache=True)
def shortfall(u, determinant, margin, slope):  # noqa: ANN001, ANN201
    """Slope by u, (b, 3, s0, s1, s2), of the sum of what determinants (b, s0, s1, s2) lack of the margin.

    Every third plane at a time, so that no two threads add to one voxel, and sums have one order.
    """
    b, s0 = u.shape[0], u.shape[2]
    for plane in prange(b * s0):
        slope[plane // s0, :, plane % s0] = 0
    for first in range(3):
        planes = (s0 - first + 2) // 3
        for part in prange(b * planes):
            _push(u, determinant, margin, part // planes, part % planes * 3 + first, slope)
