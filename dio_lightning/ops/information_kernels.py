"""The compiled loops of joint histograms, on NumPy arrays: images (b, n), weights (b, n) or nothing, float64 sums."""

import numpy as np
from numba import njit, prange

from dio_lightning.ops.match_kernels import _FAST


@njit(inline="always")
def _window(x, last):  # noqa: ANN001, ANN202
    """Lower bin, the share of the upper one, and whether x lies in [0, 1]; NaN stays in the share."""
    inside = x >= 0 and x <= 1
    position = x * last
    if x <= 0:
        position = 0.0
    elif x >= 1:
        position = float(last)
    low = min(int(position), last - 1) if x == x else 0
    return low, position - low, inside


@njit(parallel=True, cache=True, fastmath=_FAST)
def counts(a, b, weights, chunk, out):  # noqa: ANN001, ANN201
    """Counts (batch, chunks, bins, bins) of each chunk of voxels, to be added to zeros."""
    batch, chunks, bins, _ = out.shape
    n = a.shape[1]
    for part in prange(batch * chunks):
        m, first = part // chunks, part % chunks * chunk
        table = np.zeros((bins, bins))
        for k in range(first, min(first + chunk, n)):
            i, f, _ = _window(np.float64(a[m, k]), bins - 1)
            j, g, _ = _window(np.float64(b[m, k]), bins - 1)
            w = weights[m, k] if len(weights) else 1.0
            upper = f * w
            lower = w - upper
            table[i, j] += lower * (1 - g)
            table[i, j + 1] += lower * g
            table[i + 1, j] += upper * (1 - g)
            table[i + 1, j + 1] += upper * g
        out[m, part % chunks] = table


@njit(parallel=True, cache=True, fastmath=_FAST)
def slope(a, b, weights, steps, out):  # noqa: ANN001, ANN201
    """Per voxel of a, a row of steps (batch, bins - 1, bins), read between the columns beside b; 0 outside [0, 1]."""
    batch, n = a.shape
    last = steps.shape[1]
    for row in prange(batch * n):
        m, k = row // n, row % n
        i, _, inside = _window(np.float64(a[m, k]), last)
        j, g, _ = _window(np.float64(b[m, k]), last)
        value = steps[m, i, j] + g * (steps[m, i, j + 1] - steps[m, i, j])
        w = weights[m, k] if len(weights) else 1.0
        out[m, k] = value * w if inside else 0.0
