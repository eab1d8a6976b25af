"""The compiled loops of joint histograms, on NumPy arrays: images (b, n), weights (b, n) or nothing, float64 sums.

Bins and shares of a block of voxels are SIMD loops; only the table is read or written voxel by voxel.
"""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST

_BLOCK = 256
"""Voxels in a block."""


@njit(fastmath=_FAST)
def _windows(image, last, low, share):  # noqa: ANN001, ANN202
    """Lower bins of a block, and shares of the upper ones; a share that is NaN stays so."""
    for t in range(len(image)):
        x = np.float64(image[t])
        position = min(max(x if x == x else 0.0, 0.0), 1.0) * last
        low[t] = min(np.int32(position), np.int32(last - 1))
        share[t] = position - low[t] if x == x else np.nan


@njit(fastmath=_FAST)
def _count(a, b, weights, first, end, table):  # noqa: ANN001, ANN202
    """Adds the voxels from `first` up to before `end` to a table (bins, bins), as one line."""
    bins = np.int64(np.sqrt(len(table)) + 0.5)
    i, j = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    f, g = np.empty(_BLOCK), np.empty(_BLOCK)
    row = np.uint64(bins)
    for start in range(first, end, _BLOCK):
        stop = min(start + _BLOCK, end)
        _windows(a[start:stop], bins - 1, i, f)
        _windows(b[start:stop], bins - 1, j, g)
        for t in range(stop - start):
            w = weights[start + t] if len(weights) else 1.0
            at, upper = np.uint64(i[t] * bins + j[t]), f[t] * w
            lower = w - upper
            table[at] += lower * (1 - g[t])
            table[at + np.uint64(1)] += lower * g[t]
            table[at + row] += upper * (1 - g[t])
            table[at + row + np.uint64(1)] += upper * g[t]


@njit(parallel=True, cache=True, fastmath=_FAST)
def counts(a, b, weights, chunk, out):  # noqa: ANN001, ANN201
    """Counts (batch, chunks, bins * bins) of each chunk of voxels, to be added to zeros."""
    batch, chunks, _ = out.shape
    n = a.shape[1]
    for part in prange(batch * chunks):
        m, first = part // chunks, part % chunks * chunk
        _count(a[m], b[m], weights[m if len(weights) > 1 else 0], first, min(first + chunk, n), out[m, part % chunks])


@njit(fastmath=_FAST)
def _read(a, b, weights, table, last, first, end, out):  # noqa: ANN001, ANN202
    """`slope` of the voxels from `first` up to before `end`."""
    i, j = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
    f, g = np.empty(_BLOCK), np.empty(_BLOCK)
    for start in range(first, end, _BLOCK):
        stop = min(start + _BLOCK, end)
        _windows(a[start:stop], last, i, f)
        _windows(b[start:stop], last, j, g)
        for t in range(stop - start):
            x, at = a[start + t], np.uint64(i[t] * (last + 1) + j[t])
            value = table[at] + g[t] * (table[at + np.uint64(1)] - table[at])
            w = weights[start + t] if len(weights) else 1.0
            out[start + t] = value * w if x >= 0 and x <= 1 else 0.0


@njit(parallel=True, cache=True, fastmath=_FAST)
def slope(a, b, weights, steps, bins, chunk, out):  # noqa: ANN001, ANN201
    """Per voxel of a, a row of steps (batch, (bins - 1) bins), read between the columns beside b; 0 outside [0, 1]."""
    batch, n = a.shape
    chunks = (n + chunk - 1) // chunk
    for part in prange(batch * chunks):
        m, first = part // chunks, part % chunks * chunk
        weight = weights[m if len(weights) > 1 else 0]
        _read(a[m], b[m], weight, steps[m], bins - 1, first, min(first + chunk, n), out[m])
