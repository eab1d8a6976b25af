"""The compiled loops of normalisation, on NumPy arrays (b, n, c), channels last: bfloat16 as its bits, uint16.

A bfloat16 is the upper half of a float32. Values are widened block by block, so that loops over them are SIMD loops.
"""

from typing import Any

import numpy as np
from numba import njit, prange

from dio_lightning.ops.stencil_kernels import _copy

_FAST = {"reassoc", "contract", "nsz"}
_BLOCK = 2**10
"""Values that are widened at once, whole voxels."""
BLOCKS = 32
"""Blocks that one of many threads takes at a time."""


@njit
def _widen(x, out):  # noqa: ANN001, ANN202
    bits = out.view(np.uint32)
    for i in range(len(x)):
        bits[i] = np.uint32(x[i]) << np.uint32(16)


@njit
def _narrow(x, out):  # noqa: ANN001, ANN202
    """To the nearest, of two equally near ones to the even one; NaN stays NaN."""
    bits = x.view(np.uint32)
    for i in range(len(x)):
        half = np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(bits[i] + half) >> np.uint32(16)
        out[i] = np.uint16(rounded if x[i] == x[i] else np.uint32(0x7FC0))


@njit(fastmath=_FAST)
def _add_products(g, v, bare, product):  # noqa: ANN001, ANN202
    for i in range(len(g)):
        bare[i] += g[i]
        product[i] += g[i] * v[i]


@njit(fastmath=_FAST)
def _combine(g, v, of_g, of_v, shift):  # noqa: ANN001, ANN202
    for i in range(len(g)):
        g[i] = of_g[i] * g[i] + of_v[i] * v[i] + shift[i]


@njit
def _repeated(x, out):  # noqa: ANN001, ANN202
    for i in range(len(out)):
        out[i] = x[i % len(x)]


def _compile_sums(bits: bool) -> Any:  # noqa: ANN401
    @njit(parallel=True, cache=True)
    def kernel(gradient, x, step, number, out):  # noqa: ANN001, ANN202
        b, parts, _, c = out.shape
        for part in prange(b * parts):
            sample, at = part // parts, part % parts * step * BLOCKS
            bare, product = np.zeros(step, number.dtype), np.zeros(step, number.dtype)
            g, v = np.empty(step, number.dtype), np.empty(step, number.dtype)
            for first in range(at, min(at + step * BLOCKS, x.shape[1]), step):
                n = min(step, x.shape[1] - first)
                if bits:
                    _widen(gradient[sample, first : first + n], g)
                    _widen(x[sample, first : first + n], v)
                else:
                    _copy(gradient[sample, first : first + n], g)
                    _copy(x[sample, first : first + n], v)
                _add_products(g[:n], v[:n], bare, product)
            for i in range(step):
                out[sample, part % parts, 0, i % c] += bare[i]
                out[sample, part % parts, 1, i % c] += product[i]

    return kernel


def _compile_combined(bits: bool) -> Any:  # noqa: ANN401
    @njit(parallel=True, cache=True)
    def kernel(gradient, x, step, of_g, of_v, shift, out):  # noqa: ANN001, ANN202
        b = len(of_g)
        parts = (x.shape[1] + step * BLOCKS - 1) // (step * BLOCKS)
        for part in prange(b * parts):
            sample, at = part // parts, part % parts * step * BLOCKS
            numbers, g, v = np.empty((3, step), of_g.dtype), np.empty(step, of_g.dtype), np.empty(step, of_g.dtype)
            _repeated(of_g[sample], numbers[0])
            _repeated(of_v[sample], numbers[1])
            _repeated(shift[sample], numbers[2])
            for first in range(at, min(at + step * BLOCKS, x.shape[1]), step):
                n = min(step, x.shape[1] - first)
                if bits:
                    _widen(gradient[sample, first : first + n], g)
                    _widen(x[sample, first : first + n], v)
                else:
                    _copy(gradient[sample, first : first + n], g)
                    _copy(x[sample, first : first + n], v)
                _combine(g[:n], v[:n], numbers[0], numbers[1], numbers[2])
                if bits:
                    _narrow(g[:n], out[sample, first : first + n])
                else:
                    _copy(g[:n], out[sample, first : first + n])

    return kernel


sums, sums_bits = _compile_sums(False), _compile_sums(True)
combined, combined_bits = _compile_combined(False), _compile_combined(True)


def whole(channels: int) -> int:
    """Values of a block: as many whole voxels as fit, at least one."""
    return max(1, _BLOCK // channels) * channels
