"""Joint histograms on the CPU: tensors to the compiled loops and back."""

import numpy as np
import torch
from torch import Tensor

from dio_lightning.ops import information_kernels
from dio_lightning.ops.match_numba import _threads

LARGEST = 2**15
"""Bins up to which the loops count: a bin's number has 32 bits."""
_CHUNK = 2**15
"""Voxels that share a private histogram."""


def joint_counts(a: Tensor, b: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """See `ops.information._counts`: images (b, n), result (b, bins, bins) float64."""
    parts = np.zeros((len(a), -(-a.shape[1] // _CHUNK), bins * bins))
    _threads()
    information_kernels.counts(_array(a), _array(b), _weights(weights), _CHUNK, parts)
    return torch.from_numpy(parts.sum(1)).view(-1, bins, bins)


def slope(a: Tensor, b: Tensor, steps: Tensor, weights: Tensor | None) -> Tensor:
    """See `ops.information._slope`: images (b, n), steps (b, bins - 1, bins) float64."""
    out = torch.empty_like(a, memory_format=torch.contiguous_format)
    _threads()
    arrays = _array(a), _array(b), _weights(weights), steps.flatten(1).numpy()
    information_kernels.slope(*arrays, steps.shape[2], _CHUNK, out.numpy())
    return out


def _array(image: Tensor) -> np.ndarray:
    return image.detach().contiguous().numpy()


def _weights(weights: Tensor | None) -> np.ndarray:
    """As they are, or one row of none."""
    return np.empty((1, 0)) if weights is None else weights.contiguous().numpy()
