"""The compiled loops of feature matching, on NumPy arrays: features (b, s0, s1, s2, c), fields (b, 3, s0, s1, s2).

One pass over channels-last memory; the channels of a voxel are a SIMD loop. The corners of a cell are written out.
"""

from typing import Any

import numpy as np
from numba import njit, prange

# NaN must stay NaN: a diverged sample has to be seen by the solver. Everything else may be reordered, for SIMD.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
BAND = 16
"""Rows that are passed plane by plane: both planes of a cell are then in the cache, where whole ones do not fit."""
LANES = 16
"""Channels of a loop of constant length, which compilers turn into SIMD without a remainder."""


@njit(inline="always")
def _cell(position: float, extent: int) -> Any:  # noqa: ANN401
    """Lower and upper corner, fraction, and 1 where the border does not clamp the position (else 0)."""
    moves = 1.0
    if not (position > 0):
        moves = 0.0
        if position <= 0:
            position = 0.0
    elif position >= extent - 1:
        position, moves = extent - 1.0, 0.0
    finite = position == position
    low = int(position) if finite else 0
    return low, min(low + 1, extent - 1), position - low, moves


@njit(fastmath=_FAST)
def _cells(start, step, u, extent, stride, scratch, axis):  # noqa: ANN001, ANN202
    """`_cell` along one axis for a row of voxels, whose first one lies at `start` and its neighbours `step` apart.

    Corners are written as offsets in memory, of `stride` values to the next one.
    """
    low, high, fraction, moves = scratch[0][axis], scratch[1][axis], scratch[2][axis], scratch[3][axis]
    last, stride = np.float64(extent - 1), np.int64(stride)
    for k in range(len(u)):
        position = np.float64(start + step * k) + u[k]
        inside = (position > 0) & (position < last)
        position = 0.0 if position <= 0 else position
        position = last if position >= last else position
        corner = np.int32(position) if position == position else np.int32(0)
        low[k], high[k] = corner * stride, min(corner + np.int32(1), np.int32(extent - 1)) * stride
        fraction[k], moves[k] = position - np.float64(corner), 1.0 if inside else 0.0


@njit(fastmath=_FAST)
def _scratch(width, number):  # noqa: ANN001, ANN202
    """What `_cells` writes, for three axes."""
    corners, fraction = np.empty((2, 3, width), np.int64), np.empty((3, width), number)
    return corners[0], corners[1], fraction, np.empty((3, width), number)


@njit(inline="always")
def _corners(low, high, k):  # noqa: ANN001, ANN202
    """Where the features of a cell's eight corners begin; unsigned, so that none is asked whether it counts back."""
    i0, i1, j0, j1 = np.uint64(low[0, k]), np.uint64(high[0, k]), np.uint64(low[1, k]), np.uint64(high[1, k])
    k0, k1 = np.uint64(low[2, k]), np.uint64(high[2, k])
    n00, n01, n10, n11 = i0 + j0, i0 + j1, i1 + j0, i1 + j1
    return n00 + k0, n00 + k1, n01 + k0, n01 + k1, n10 + k0, n10 + k1, n11 + k0, n11 + k1


@njit(inline="always")
def _groups(batch: int, s0: int, s1: int) -> int:
    """Planes of bands: rows of voxels that are passed by one thread."""
    return batch * s0 * -(-s1 // BAND)


@njit(inline="always")
def _rows(group: int, s0: int, s1: int) -> Any:  # noqa: ANN401
    """Sample, plane, first row and the one after the last; a band's planes follow one another."""
    band, bands = group // s0, -(-s1 // BAND)
    first = band % bands * BAND
    return band // bands, group % s0, first, min(first + BAND, s1)


@njit(inline="always")
def _sums(flat, row, starts, here, fractions, first, count, blocks, sums):  # noqa: ANN001, ANN202
    """`sums` with what so many channels from the first one on add: r ∇r, r², and ∇r ∇rᵀ with `blocks`."""
    n000, n001, n010, n011, n100, n101, n110, n111 = starts
    f0, f1, f2 = fractions
    r0, r1, r2, rr, q00, q01, q02, q11, q12, q22 = sums
    for at in range(count):
        c = np.uint64(first + at)
        a = flat[n000 + c]
        e00 = flat[n001 + c] - a
        x00 = a + f2 * e00
        a = flat[n010 + c]
        e01 = flat[n011 + c] - a
        h0 = a + f2 * e01 - x00
        a = flat[n100 + c]
        e10 = flat[n101 + c] - a
        x10 = a + f2 * e10
        a = flat[n110 + c]
        e11 = flat[n111 + c] - a
        h1 = a + f2 * e11 - x10
        y0 = x00 + f1 * h0
        g0 = x10 + f1 * h1 - y0
        g1 = h0 + f0 * (h1 - h0)
        e0 = e00 + f1 * (e01 - e00)
        g2 = e0 + f0 * (e10 + f1 * (e11 - e10) - e0)
        r = y0 + f0 * g0 - row[here + c]
        r0 += r * g0
        r1 += r * g1
        r2 += r * g2
        rr += r * r
        if blocks:
            q00 += g0 * g0
            q01 += g0 * g1
            q02 += g0 * g2
            q11 += g1 * g1
            q12 += g1 * g2
            q22 += g2 * g2
    return r0, r1, r2, rr, q00, q01, q02, q11, q12, q22


def _compile_forward(blocks: bool) -> Any:  # noqa: ANN401
    """Energy per row and gradient per voxel; with `blocks`, six sums of products and r² per voxel in `extra`."""

    @njit(parallel=True, cache=True, fastmath=_FAST)
    def kernel(fixed, moving, u, energy, gradient, extra):  # noqa: ANN001, ANN202
        batch, s0, s1, s2, channels = fixed.shape
        scale, none = u.dtype.type(2.0 / channels), u.dtype.type(0)
        for group in prange(_groups(batch, s0, s1)):
            scratch = _scratch(s2, u.dtype)
            low, high, fraction, moves = scratch
            b, i, begin, end = _rows(group, s0, s1)
            flat, strides = moving[b].reshape(s0 * s1 * s2 * channels), (s1 * s2 * channels, s2 * channels, channels)
            for j in range(begin, end):
                for axis, start in enumerate((i, j, 0)):
                    _cells(start, axis // 2, u[b, axis, i, j], fixed.shape[1 + axis], strides[axis], scratch, axis)
                row, total = fixed[b, i, j].reshape(s2 * channels), 0.0
                for k in range(s2):
                    starts = _corners(low, high, k)
                    here, f = np.uint64(k) * np.uint64(channels), (fraction[0, k], fraction[1, k], fraction[2, k])
                    sums = none, none, none, none, none, none, none, none, none, none
                    # a loop of constant length is a register or two, and one that is short has no remainder
                    if LANES // 2 <= channels < 2 * LANES:
                        for part in range(channels // LANES):
                            sums = _sums(flat, row, starts, here, f, part * LANES, LANES, blocks, sums)
                        rest = channels % LANES
                        sums = _sums(flat, row, starts, here, f, channels - rest, rest, blocks, sums)
                    else:
                        sums = _sums(flat, row, starts, here, f, 0, channels, blocks, sums)
                    r0, r1, r2, rr, q00, q01, q02, q11, q12, q22 = sums
                    m0, m1, m2 = moves[0, k], moves[1, k], moves[2, k]
                    gradient[b, 0, i, j, k] = scale * m0 * r0
                    gradient[b, 1, i, j, k] = scale * m1 * r1
                    gradient[b, 2, i, j, k] = scale * m2 * r2
                    total += rr
                    if blocks:
                        extra[b, 0, i, j, k] = scale * m0 * q00
                        extra[b, 1, i, j, k] = scale * m0 * m1 * q01
                        extra[b, 2, i, j, k] = scale * m0 * m2 * q02
                        extra[b, 3, i, j, k] = scale * m1 * q11
                        extra[b, 4, i, j, k] = scale * m1 * m2 * q12
                        extra[b, 5, i, j, k] = scale * m2 * q22
                        extra[b, 6, i, j, k] = scale * rr
                energy[(b * s0 + i) * s1 + j] = total / channels

    return kernel


forward, forward_blocks = _compile_forward(False), _compile_forward(True)


@njit(inline="always")
def _scatter(target, weight, total, slope, residual):  # noqa: ANN001, ANN202
    for c in range(len(total)):
        target[c] += weight * total[c] + slope * residual[c]


@njit(parallel=True, cache=True, fastmath=_FAST)
def backward(fixed, moving, u, of_value, v, of_fixed, of_moving, of_u) -> None:  # noqa: ANN001
    """Gradients of ⟨of_value, E⟩ + ⟨v, ρ⟩; `of_moving` has a leading axis of private copies, one a thread."""
    batch, s0, s1, s2, channels = fixed.shape
    scale = u.dtype.type(2.0 / channels)
    copies = of_moving.shape[0]
    groups = _groups(batch, s0, s1)
    for copy in prange(copies):
        residual, total = np.empty(channels, u.dtype), np.empty(channels, u.dtype)
        for group in range(copy * groups // copies, (copy + 1) * groups // copies):
            b, i, begin, end = _rows(group, s0, s1)
            target = of_moving[copy, b]
            weight = of_value[b]
            for j in range(begin, end):
                for k in range(s2):
                    i0, i1, f0, m0 = _cell(i + u[b, 0, i, j, k], s0)
                    j0, j1, f1, m1 = _cell(j + u[b, 1, i, j, k], s1)
                    k0, k1, f2, m2 = _cell(k + u[b, 2, i, j, k], s2)
                    f0, f1, f2 = u.dtype.type(f0), u.dtype.type(f1), u.dtype.type(f2)
                    v0 = u.dtype.type(m0) * v[b, 0, i, j, k]
                    v1 = u.dtype.type(m1) * v[b, 1, i, j, k]
                    v2 = u.dtype.type(m2) * v[b, 2, i, j, k]
                    p0, p1, p2 = 1 - f0, 1 - f1, 1 - f2
                    # D w_k of the eight corners, D being the derivative along v
                    d000 = -v0 * p1 * p2 - p0 * v1 * p2 - p0 * p1 * v2
                    d001 = -v0 * p1 * f2 - p0 * v1 * f2 + p0 * p1 * v2
                    d010 = -v0 * f1 * p2 + p0 * v1 * p2 - p0 * f1 * v2
                    d011 = -v0 * f1 * f2 + p0 * v1 * f2 + p0 * f1 * v2
                    d100 = v0 * p1 * p2 - f0 * v1 * p2 - f0 * p1 * v2
                    d101 = v0 * p1 * f2 - f0 * v1 * f2 + f0 * p1 * v2
                    d110 = v0 * f1 * p2 + f0 * v1 * p2 - f0 * f1 * v2
                    d111 = v0 * f1 * f2 + f0 * v1 * f2 + f0 * f1 * v2
                    w000, w001, w010, w011 = p0 * p1 * p2, p0 * p1 * f2, p0 * f1 * p2, p0 * f1 * f2
                    w100, w101, w110, w111 = f0 * p1 * p2, f0 * p1 * f2, f0 * f1 * p2, f0 * f1 * f2
                    u0 = u1 = u2 = u.dtype.type(0)
                    for c in range(channels):
                        a000, a001 = moving[b, i0, j0, k0, c], moving[b, i0, j0, k1, c]
                        a010, a011 = moving[b, i0, j1, k0, c], moving[b, i0, j1, k1, c]
                        a100, a101 = moving[b, i1, j0, k0, c], moving[b, i1, j0, k1, c]
                        a110, a111 = moving[b, i1, j1, k0, c], moving[b, i1, j1, k1, c]
                        e00, e01, e10, e11 = a001 - a000, a011 - a010, a101 - a100, a111 - a110
                        x00, x10 = a000 + f2 * e00, a100 + f2 * e10
                        h0, h1 = a010 + f2 * e01 - x00, a110 + f2 * e11 - x10
                        y0 = x00 + f1 * h0
                        g0 = x10 + f1 * h1 - y0
                        g1 = h0 + f0 * (h1 - h0)
                        e0, e1 = e00 + f1 * (e01 - e00), e10 + f1 * (e11 - e10)
                        g2 = e0 + f0 * (e1 - e0)
                        r = scale * (y0 + f0 * g0 - fixed[b, i, j, k, c])
                        along = scale * (v0 * g0 + v1 * g1 + v2 * g2) + weight * r
                        h01, h02 = h1 - h0, e1 - e0
                        h12 = e01 - e00 + f0 * (e11 - e10 - e01 + e00)
                        u0 += along * g0 + r * (h01 * v1 + h02 * v2)
                        u1 += along * g1 + r * (h01 * v0 + h12 * v2)
                        u2 += along * g2 + r * (h02 * v0 + h12 * v1)
                        residual[c] = r
                        total[c] = along
                    for c in range(channels):
                        of_fixed[b, i, j, k, c] = -total[c]
                    # one corner at a time: at a border two are the same voxel, so together they are no SIMD loop
                    _scatter(target[i0, j0, k0], w000, total, d000, residual)
                    _scatter(target[i0, j0, k1], w001, total, d001, residual)
                    _scatter(target[i0, j1, k0], w010, total, d010, residual)
                    _scatter(target[i0, j1, k1], w011, total, d011, residual)
                    _scatter(target[i1, j0, k0], w100, total, d100, residual)
                    _scatter(target[i1, j0, k1], w101, total, d101, residual)
                    _scatter(target[i1, j1, k0], w110, total, d110, residual)
                    _scatter(target[i1, j1, k1], w111, total, d111, residual)
                    of_u[b, 0, i, j, k] = u.dtype.type(m0) * u0
                    of_u[b, 1, i, j, k] = u.dtype.type(m1) * u1
                    of_u[b, 2, i, j, k] = u.dtype.type(m2) * u2
