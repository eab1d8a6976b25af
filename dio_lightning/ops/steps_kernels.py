"""The compiled loops of a solver's step, on NumPy arrays (b, n): each passes once over what it reads and writes.

The arithmetic of an element is rounded as PyTorch rounds it; sums of squares are more exact than PyTorch's, whose
norm of ten million numbers in single precision is off by a thousandth.
"""

import numpy as np
from numba import njit, prange

CHUNK = 2**13
"""Elements that one thread takes at a time."""
_BLOCK = 256
"""Elements that lie in the nearest cache from loop to loop; their squares are added in their own precision."""
_SUM, _FUSED = {"reassoc", "nsz"}, {"contract"}


@njit
def _minus(x, y, out):  # noqa: ANN001, ANN202
    for i in range(len(out)):
        out[i] = x[i] - y[i]


@njit(fastmath=_SUM)
def _squares(x):  # noqa: ANN001, ANN202
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * x[i]
    return total


@njit
def _square(x, out):  # noqa: ANN001, ANN202
    for i in range(len(x)):
        out[i] = x[i] * x[i]


@njit(fastmath=_FUSED)
def _approach(x, end, weight):  # noqa: ANN001, ANN202
    """As `torch.lerp`, whose product is not rounded before it is added."""
    if weight < 0.5:
        for i in range(len(x)):
            x[i] = x[i] + weight * (end[i] - x[i])
    else:
        weight = weight - x.dtype.type(1)
        for i in range(len(x)):
            x[i] = end[i] + weight * (end[i] - x[i])


@njit(error_model="numpy")
def _divide(m, size, floor, factor):  # noqa: ANN001, ANN202
    for i in range(len(size)):
        size[i] = m[i] / (size[i] + floor) * factor


@njit(parallel=True, cache=True)
def residual(fz, z, out, squares):  # noqa: ANN001, ANN201
    """The difference fz - z; sums of squares of it and of fz, of each chunk, (b, chunks, 2), in float64."""
    b, n = z.shape
    chunks = squares.shape[1]
    for part in prange(b * chunks):
        row, chunk = part // chunks, part % chunks
        of_out = of_fz = 0.0
        for first in range(chunk * CHUNK, min((chunk + 1) * CHUNK, n), _BLOCK):
            end = min(first + _BLOCK, n)
            line, to = fz[row, first:end], out[row, first:end]
            _minus(line, z[row, first:end], to)
            of_out += _squares(to)
            of_fz += _squares(line)
        squares[row, chunk, 0], squares[row, chunk, 1] = of_out, of_fz


@njit(parallel=True, cache=True)
def average(r, m, s, new1, new2):  # noqa: ANN001, ANN201
    """Averages m and s go on towards r and r², by new1 and new2 (b,) of the way."""
    b, n = r.shape
    chunks = (n + CHUNK - 1) // CHUNK
    for part in prange(b * chunks):
        row, start = part // chunks, part % chunks * CHUNK
        squares = np.empty(_BLOCK, r.dtype)
        for first in range(start, min(start + CHUNK, n), _BLOCK):
            end = min(first + _BLOCK, n)
            line = r[row, first:end]
            _square(line, squares)
            _approach(m[row, first:end], line, new1[row])
            _approach(s[row, first:end], squares, new2[row])


@njit(parallel=True, cache=True)
def divide(m, size, floor, factor):  # noqa: ANN001, ANN201
    """Writes factor m / (size + floor) where size is, with a factor and a floor (b,) of each sample."""
    b, n = m.shape
    chunks = (n + CHUNK - 1) // CHUNK
    for part in prange(b * chunks):
        row, first = part // chunks, part % chunks * CHUNK
        end = min(first + CHUNK, n)
        _divide(m[row, first:end], size[row, first:end], floor[row], factor[row])


@njit(fastmath=_FUSED)
def _add_squares(x, total):  # noqa: ANN001, ANN202
    for i in range(len(x)):
        total[i] += x[i] * x[i]


@njit(fastmath=_SUM)
def _largest(x):  # noqa: ANN001, ANN202
    most, wrong = x.dtype.type(0), 0
    for i in range(len(x)):
        most = x[i] if x[i] > most else most
        wrong += x[i] != x[i]
    return x.dtype.type(np.nan) if wrong else most


@njit(parallel=True, cache=True)
def largest_squares(v, out):  # noqa: ANN001, ANN201
    """Of the vectors of each chunk of (b, d, n) the largest squared length, (b, chunks); NaN where one is."""
    (b, d, n), chunks = v.shape, out.shape[1]
    for part in prange(b * chunks):
        row, start = part // chunks, part % chunks * CHUNK
        total, most = np.empty(_BLOCK, v.dtype), v.dtype.type(0)
        for first in range(start, min(start + CHUNK, n), _BLOCK):
            end = min(first + _BLOCK, n)
            squares = total[: end - first]
            squares[:] = 0
            for c in range(d):
                _add_squares(v[row, c, first:end], squares)
            largest = _largest(squares)
            most = most if most != most or largest <= most else largest
        out[row, part % chunks] = most
