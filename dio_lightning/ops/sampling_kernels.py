"""The compiled loops of linear interpolation, on NumPy arrays: images (n, c, s0 s1 s2), points (b, 3, t0 t1 t2).

One pass over the points, whose coordinates and weights serve all channels. Points are voxels of the image; with
`relative` they are displacements of the voxels of their own grid. One image (n = 1) may serve many rows of points.
Corners are read at unsigned offsets, which spares the question whether an index counts from the end: a fifth of the
time.
"""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST


@njit(fastmath=_FAST)
def _cell(position, extent, zeros, one, missing):  # noqa: ANN001, ANN202
    """Of an axis: both corners, their weights, and their weights' slopes; `missing` where the position is not finite.

    A corner beside the image counts for nothing with `zeros`, else the position is clamped and has no slope there.
    """
    none = one - one
    if not abs(position) < np.inf:
        return 0, 0, missing, missing, none, none
    if zeros:
        if position <= -1 or position >= extent:
            return 0, 0, none, none, none, none
        floor = np.floor(position)
        low = int(floor)
        fraction = position - floor
        lower = one if low >= 0 else none
        upper = one if low + 1 < extent else none
        return max(low, 0), min(low + 1, extent - 1), (one - fraction) * lower, fraction * upper, -lower, upper
    moves = one
    if position <= 0:
        position, moves = none, none
    elif position >= extent - 1:
        position, moves = one * (extent - 1), none
    low = int(position)
    fraction = position - low
    return low, min(low + 1, extent - 1), one - fraction, fraction, -moves, moves


@njit(fastmath=_FAST)
def _place(index, grid):  # noqa: ANN001, ANN202
    """Coordinates of a point in its grid."""
    return index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2]


@njit(fastmath=_FAST)
def _next(i, j, k, grid):  # noqa: ANN001, ANN202
    """Coordinates of the point after this one."""
    k += 1
    if k == grid[2]:
        k, j = 0, j + 1
        if j == grid[1]:
            j, i = 0, i + 1
    return i, j, k


@njit(fastmath=_FAST)
def _offsets(size, i0, i1, j0, j1, k0, k1):  # noqa: ANN001, ANN202
    """Where the lowest corner lies in a volume, and how far it is to the next one along each axis."""
    first = (i0 * size[1] + j0) * size[2] + k0
    across, down = (i1 - i0) * size[1] * size[2], (j1 - j0) * size[2]
    return np.uint64(first), np.uint64(across), np.uint64(down), np.uint64(k1 - k0)


@njit(parallel=True, cache=True, fastmath=_FAST)
def forward(image, points, size, grid, relative, zeros, chunk, out):  # noqa: ANN001, ANN201
    """Values (b, c, t) of the image at the points."""
    (batch, _, count), channels = points.shape, image.shape[1]
    chunks = (count + chunk - 1) // chunk
    number, one = points.dtype.type, points.dtype.type(1)
    for part in prange(batch * chunks):
        m, first = part // chunks, part % chunks * chunk
        row = m if len(image) > 1 else 0
        i, j, k = _place(first, grid)
        for at in range(first, min(first + chunk, count)):
            p0, p1, p2 = points[m, 0, at], points[m, 1, at], points[m, 2, at]
            if relative:
                p0, p1, p2 = p0 + number(i), p1 + number(j), p2 + number(k)
                i, j, k = _next(i, j, k, grid)
            i0, i1, a0, b0, _, _ = _cell(p0, size[0], zeros, one, number(np.nan))
            j0, j1, a1, b1, _, _ = _cell(p1, size[1], zeros, one, number(np.nan))
            k0, k1, a2, b2, _, _ = _cell(p2, size[2], zeros, one, number(np.nan))
            x, d0, d1, d2 = _offsets(size, i0, i1, j0, j1, k0, k1)
            for c in range(channels):
                line = image[row, c]
                x00 = a2 * line[x] + b2 * line[x + d2]
                x01 = a2 * line[x + d1] + b2 * line[x + d1 + d2]
                x10 = a2 * line[x + d0] + b2 * line[x + d0 + d2]
                x11 = a2 * line[x + d0 + d1] + b2 * line[x + d0 + d1 + d2]
                out[m, c, at] = a0 * (a1 * x00 + b1 * x01) + b0 * (a1 * x10 + b1 * x11)


@njit(parallel=True, cache=True, fastmath=_FAST)
def slopes(gradient, image, points, size, grid, relative, zeros, chunk, out):  # noqa: ANN001, ANN201
    """Gradient (b, 3, t) with respect to the points, for a gradient (b, c, t) at the values."""
    (batch, _, count), channels = points.shape, image.shape[1]
    chunks = (count + chunk - 1) // chunk
    number, one = points.dtype.type, points.dtype.type(1)
    for part in prange(batch * chunks):
        m, first = part // chunks, part % chunks * chunk
        row = m if len(image) > 1 else 0
        i, j, k = _place(first, grid)
        for at in range(first, min(first + chunk, count)):
            p0, p1, p2 = points[m, 0, at], points[m, 1, at], points[m, 2, at]
            if relative:
                p0, p1, p2 = p0 + number(i), p1 + number(j), p2 + number(k)
                i, j, k = _next(i, j, k, grid)
            i0, i1, a0, b0, l0, u0 = _cell(p0, size[0], zeros, one, number(0))
            j0, j1, a1, b1, l1, u1 = _cell(p1, size[1], zeros, one, number(0))
            k0, k1, a2, b2, l2, u2 = _cell(p2, size[2], zeros, one, number(0))
            x, d0, d1, d2 = _offsets(size, i0, i1, j0, j1, k0, k1)
            r0 = r1 = r2 = number(0)
            for c in range(channels):
                g, line = gradient[m, c, at], image[row, c]
                x00, y00 = line[x], line[x + d2]
                x01, y01 = line[x + d1], line[x + d1 + d2]
                x10, y10 = line[x + d0], line[x + d0 + d2]
                x11, y11 = line[x + d0 + d1], line[x + d0 + d1 + d2]
                r2 += g * (
                    a0 * (a1 * (l2 * x00 + u2 * y00) + b1 * (l2 * x01 + u2 * y01))
                    + b0 * (a1 * (l2 * x10 + u2 * y10) + b1 * (l2 * x11 + u2 * y11))
                )
                x00, x01 = a2 * x00 + b2 * y00, a2 * x01 + b2 * y01
                x10, x11 = a2 * x10 + b2 * y10, a2 * x11 + b2 * y11
                r0 += g * (l0 * (a1 * x00 + b1 * x01) + u0 * (a1 * x10 + b1 * x11))
                r1 += g * (a0 * (l1 * x00 + u1 * x01) + b0 * (l1 * x10 + u1 * x11))
            out[m, 0, at], out[m, 1, at], out[m, 2, at] = r0, r1, r2


@njit(parallel=True, cache=True, fastmath=_FAST)
def scatter(gradient, points, size, grid, relative, zeros, out):  # noqa: ANN001, ANN201
    """Gradient with respect to the image, for a gradient (b, c, t) at the values; out (copies, b, c, s), zeros.

    Every copy takes its share of the points; their sum is the gradient.
    """
    copies, batch, channels, _ = out.shape
    count = points.shape[2]
    chunk = (count + copies - 1) // copies
    number, one = points.dtype.type, points.dtype.type(1)
    for part in prange(batch * copies):
        m, copy = part // copies, part % copies
        i, j, k = _place(copy * chunk, grid)
        for at in range(copy * chunk, min((copy + 1) * chunk, count)):
            p0, p1, p2 = points[m, 0, at], points[m, 1, at], points[m, 2, at]
            if relative:
                p0, p1, p2 = p0 + number(i), p1 + number(j), p2 + number(k)
                i, j, k = _next(i, j, k, grid)
            i0, i1, a0, b0, _, _ = _cell(p0, size[0], zeros, one, number(0))
            j0, j1, a1, b1, _, _ = _cell(p1, size[1], zeros, one, number(0))
            k0, k1, a2, b2, _, _ = _cell(p2, size[2], zeros, one, number(0))
            x, d0, d1, d2 = _offsets(size, i0, i1, j0, j1, k0, k1)
            for c in range(channels):
                line, g = out[copy, m, c], gradient[m, c, at]
                for near, one_of in ((x, a0 * a1), (x + d1, a0 * b1), (x + d0, b0 * a1), (x + d0 + d1, b0 * b1)):
                    line[near] += g * one_of * a2
                    line[near + d2] += g * one_of * b2
