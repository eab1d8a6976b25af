"""The compiled loops of linear interpolation, on NumPy arrays: images (n, c, s0 s1 s2), points (b, 3, t0 t1 t2).

Points are voxels of the image; with `relative` they are displacements of the voxels of their own grid. One image
(n = 1) may serve many rows of points. Points are taken in blocks: cells and weights of a block are SIMD loops over
lines that stay in the nearest cache, and serve all channels; only corners are read point by point, at unsigned
offsets, which spares the question whether an index counts from the end. They have 32 bits: twice as many in a register.
"""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST

_BLOCK = 256
"""Points in a block."""


# reordered, they would be rounded in the one or the other order, as a compilation likes
@njit(fastmath=_FAST - {"reassoc"})
def _positions(points, at, first, count, grid, relative, out):  # noqa: ANN001, ANN202
    """Where in the image the points from the first one on lie: (3, count); `points` has the first one at `at`."""
    number, done = points.dtype.type, 0
    i, j, k = first // (grid[1] * grid[2]), first // grid[2] % grid[1], first % grid[2]
    while done < count:
        end = min(count, done + grid[2] - k) if relative else count
        for axis, start in enumerate((i, j, k)):
            line, source = out[axis][done:end], points[axis][at + done : at + end]
            start, step = (number(start), number(axis // 2)) if relative else (number(0), number(0))
            for t in range(end - done):
                line[t] = source[t] + (start + step * number(np.int32(t)))
        done, k, j = end, 0, j + 1
        if j == grid[1]:
            i, j = i + 1, 0


@njit(fastmath=_FAST)
def _weigh(position, count, extent, zeros, missing, lower, upper, stride, offsets):  # noqa: ANN001, ANN202
    """Of an axis: the weights of both corners of each cell; offsets move on to the lower one.

    Voxel v weighs max(0, 1 - |p - v|) at p, which is first clamped to the image if what lies beside it is no zero. Both
    corners always lie in the image. Where the position is not finite, weights are `missing`.
    """
    number = position.dtype.type
    none, one, second = number(0), number(1), number(min(extent - 1, 1))
    lowest, highest = (number(-2), number(extent + 1)) if zeros else (none, number(extent - 1))
    top = np.int32(max(extent - 2, 0))
    for t in range(count):
        finite = abs(position[t]) < np.inf
        p = min(max(position[t] if finite else none, lowest), highest)
        low = min(max(np.int32(p), np.int32(0)), top)
        beyond = p - number(low)
        lower[t] = max(one - abs(beyond), none) if finite else missing
        upper[t] = max(one - abs(beyond - one), none) * second if finite else missing
        offsets[t] += low * np.int32(stride)


@njit(fastmath=_FAST)
def _rise(position, count, extent, zeros, lower, upper):  # noqa: ANN001, ANN202
    """Of an axis: the slopes of both weights, at a whole voxel those of the cell above; 0 where clamped."""
    number = position.dtype.type
    none, one, second = number(0), number(1), number(min(extent - 1, 1))
    lowest, highest = (number(-1), number(extent)) if zeros else (none, number(extent - 1))
    top = np.int32(max(extent - 2, 0))
    for t in range(count):
        moves = (position[t] > lowest) & (position[t] < highest)
        p = position[t] if moves else none
        beyond = p - number(min(max(np.int32(p), np.int32(0)), top))
        below, above = (one if beyond < none else none), (one if beyond >= one else none)
        inside = one - below - above
        lower[t] = below - inside if moves else none
        upper[t] = (inside - above) * second if moves else none


@njit(fastmath=_FAST)
def _cells(points, first, count, size, grid, relative, zeros, missing, positions, w, offsets):  # noqa: ANN001, ANN202
    """Positions (3, n), weights (6, n) and lowest corners (n) of the points from the first one on."""
    _positions(points, first, first, count, grid, relative, positions)
    _corners(count, size, zeros, missing, positions, w, offsets)


@njit(fastmath=_FAST)
def _corners(count, size, zeros, missing, positions, w, offsets):  # noqa: ANN001, ANN202
    """Weights (6, n) and lowest corners (n) at positions (3, n)."""
    offsets[:] = 0
    _weigh(positions[0], count, size[0], zeros, missing, w[0], w[1], size[1] * size[2], offsets)
    _weigh(positions[1], count, size[1], zeros, missing, w[2], w[3], size[2], offsets)
    _weigh(positions[2], count, size[2], zeros, missing, w[4], w[5], 1, offsets)


@njit(fastmath=_FAST)
def _scratch(size, number):  # noqa: ANN001, ANN202
    """Positions, weights and lowest corners of a block, and how far it is to the next corner along each axis.

    Along an axis of one voxel the next corner is the same.
    """
    first, second = (size[1] * size[2] if size[0] > 1 else 0), (size[2] if size[1] > 1 else 0)
    steps = np.uint64(first), np.uint64(second), np.uint64(1 if size[2] > 1 else 0)
    return np.empty((3, _BLOCK), number), np.empty((6, _BLOCK), number), np.empty(_BLOCK, np.int32), steps


@njit(fastmath=_FAST)
def _read(line, offsets, w, steps, out):  # noqa: ANN001, ANN202
    """Values (n) of one channel."""
    d0, d1, d2 = steps
    w0, w1, w2, w3, w4, w5 = w[0], w[1], w[2], w[3], w[4], w[5]
    for t in range(len(out)):
        x, a1, b1, a2, b2 = np.uint64(offsets[t]), w2[t], w3[t], w4[t], w5[t]
        x00 = a2 * line[x] + b2 * line[x + d2]
        x01 = a2 * line[x + d1] + b2 * line[x + d1 + d2]
        x10 = a2 * line[x + d0] + b2 * line[x + d0 + d2]
        x11 = a2 * line[x + d0 + d1] + b2 * line[x + d0 + d1 + d2]
        out[t] = w0[t] * (a1 * x00 + b1 * x01) + w1[t] * (a1 * x10 + b1 * x11)


@njit(fastmath=_FAST)
def _descend(gradient, line, offsets, w, r, steps, out0, out1, out2):  # noqa: ANN001, ANN202
    """Adds the gradient with respect to the points that comes from one channel."""
    d0, d1, d2 = steps
    w0, w1, w2, w3, w4, w5 = w[0], w[1], w[2], w[3], w[4], w[5]
    r0, r1, r2, r3, r4, r5 = r[0], r[1], r[2], r[3], r[4], r[5]
    for t in range(len(gradient)):
        x, g, a0, b0, a1, b1 = np.uint64(offsets[t]), gradient[t], w0[t], w1[t], w2[t], w3[t]
        a2, b2, l2, u2 = w4[t], w5[t], r4[t], r5[t]
        x00, y00 = line[x], line[x + d2]
        x01, y01 = line[x + d1], line[x + d1 + d2]
        x10, y10 = line[x + d0], line[x + d0 + d2]
        x11, y11 = line[x + d0 + d1], line[x + d0 + d1 + d2]
        near = a1 * (l2 * x00 + u2 * y00) + b1 * (l2 * x01 + u2 * y01)
        far = a1 * (l2 * x10 + u2 * y10) + b1 * (l2 * x11 + u2 * y11)
        out2[t] += g * (a0 * near + b0 * far)
        x00, x01 = a2 * x00 + b2 * y00, a2 * x01 + b2 * y01
        x10, x11 = a2 * x10 + b2 * y10, a2 * x11 + b2 * y11
        out1[t] += g * (r2[t] * (a0 * x00 + b0 * x10) + r3[t] * (a0 * x01 + b0 * x11))
        out0[t] += g * (r0[t] * (a1 * x00 + b1 * x01) + r1[t] * (a1 * x10 + b1 * x11))


@njit(fastmath=_FAST)
def _spread(gradient, offsets, w, steps, line):  # noqa: ANN001, ANN202
    """Adds what one channel's gradient (n) gives the voxels around its points."""
    d0, d1, d2 = steps
    w0, w1, w2, w3, w4, w5 = w[0], w[1], w[2], w[3], w[4], w[5]
    for t in range(len(gradient)):
        x, g, a1, b1, a2, b2 = np.uint64(offsets[t]), gradient[t], w2[t], w3[t], w4[t], w5[t]
        for near, weight in ((x, w0[t] * a1), (x + d1, w0[t] * b1), (x + d0, w1[t] * a1), (x + d0 + d1, w1[t] * b1)):
            line[near] += g * weight * a2
            line[near + d2] += g * weight * b2


# each rounded for itself, as PyTorch would
@njit
def _scale(x, factor, out):  # noqa: ANN001, ANN202
    for t in range(len(x)):
        out[t] = factor * x[t]


@njit
def _add(x, out):  # noqa: ANN001, ANN202
    for t in range(len(out)):
        out[t] += x[t]


@njit(parallel=True, cache=True, fastmath=_FAST)
def forward(image, points, factor, size, grid, relative, zeros, chunk, out):  # noqa: ANN001, ANN201
    """Values (b, c, t) of the image at the points; NaN at points that are not finite.

    With a factor of each sample, (b,), which may be empty, points are displacements, which are multiplied by it and
    added to the values, of which there are as many as axes.
    """
    (batch, _, count), number = points.shape, points.dtype.type
    chunks = (count + chunk - 1) // chunk
    for part in prange(batch * chunks):
        m, start = part // chunks, part % chunks * chunk
        lines = image[m if len(image) > 1 else 0]
        end, steps = min(start + chunk, count), factor[m : m + 1]
        _forward(lines, points[m], steps, start, size, grid, relative, zeros, end, number, out[m])


@njit(fastmath=_FAST)
def _forward(lines, points, factor, start, size, grid, relative, zeros, end, number, out):  # noqa: ANN001, ANN202
    positions, weights, offsets, steps = _scratch(size, number)
    composed, missing = len(factor) > 0, number(np.nan)
    scaled = np.empty((3, _BLOCK), number)
    for first in range(start, end, _BLOCK):
        n, source, at = min(_BLOCK, end - first), points, first
        if composed:
            for axis in range(3):
                _scale(points[axis][first : first + n], factor[0], scaled[axis])
            source, at = scaled, 0
        _positions(source, at, first, n, grid, relative, positions)
        _corners(n, size, zeros, missing, positions, weights, offsets)
        for c in range(len(lines)):
            line = out[c][first : first + n]
            _read(lines[c], offsets, weights, steps, line)
            if composed:
                _add(scaled[3 - len(lines) + c], line)


@njit(parallel=True, cache=True, fastmath=_FAST)
def slopes(gradient, image, points, size, grid, relative, zeros, chunk, out):  # noqa: ANN001, ANN201
    """Gradient (b, 3, t) with respect to the points, for a gradient (b, c, t) at the values."""
    (batch, _, count), number = points.shape, points.dtype.type
    chunks = (count + chunk - 1) // chunk
    for part in prange(batch * chunks):
        m, start = part // chunks, part % chunks * chunk
        lines, end = image[m if len(image) > 1 else 0], min(start + chunk, count)
        _backward(gradient[m], lines, points[m], start, size, grid, relative, zeros, end, number, out[m])


@njit(fastmath=_FAST)
def _backward(gradient, lines, points, start, size, grid, relative, zeros, end, number, out):  # noqa: ANN001, ANN202
    positions, weights, offsets, steps = _scratch(size, number)
    rises = np.empty((6, _BLOCK), number)
    for first in range(start, end, _BLOCK):
        n = min(_BLOCK, end - first)
        _cells(points, first, n, size, grid, relative, zeros, number(0), positions, weights, offsets)
        for axis in range(3):
            _rise(positions[axis], n, size[axis], zeros, rises[2 * axis], rises[2 * axis + 1])
        x, y, z = out[0][first : first + n], out[1][first : first + n], out[2][first : first + n]
        x[:], y[:], z[:] = number(0), number(0), number(0)
        for c in range(len(lines)):
            _descend(gradient[c][first : first + n], lines[c], offsets, weights, rises, steps, x, y, z)


@njit(parallel=True, cache=True, fastmath=_FAST)
def scatter(gradient, points, size, grid, relative, zeros, out):  # noqa: ANN001, ANN201
    """Gradient with respect to the image, for a gradient (b, c, t) at the values; out (copies, b, c, s), zeros.

    Every copy takes its share of the points; their sum is the gradient.
    """
    (copies, batch, _, _), count, number = out.shape, points.shape[2], points.dtype.type
    chunk = (count + copies - 1) // copies
    for part in prange(batch * copies):
        m, copy = part // copies, part % copies
        end = min((copy + 1) * chunk, count)
        _scatter(gradient[m], points[m], copy * chunk, size, grid, relative, zeros, end, number, out[copy, m])


@njit(fastmath=_FAST)
def _scatter(gradient, points, start, size, grid, relative, zeros, end, number, lines):  # noqa: ANN001, ANN202
    positions, weights, offsets, steps = _scratch(size, number)
    for first in range(start, end, _BLOCK):
        n = min(_BLOCK, end - first)
        _cells(points, first, n, size, grid, relative, zeros, number(0), positions, weights, offsets)
        for c in range(len(lines)):
            _spread(gradient[c][first : first + n], offsets, weights, steps, lines[c])
