"""Local correlation on the CPU: tensors to the compiled loops and back."""

import numpy as np
import torch
from torch import Tensor

from dio_lightning.ops import correlation_kernels
from dio_lightning.ops.match_numba import _threads

ROWS = 16
"""Rows of a band: as many as keep its sums in the cache, and few enough that every thread has its share."""


def mean(a: Tensor, b: Tensor, window: int, floor: float, signed: bool, both: bool = True) -> tuple[Tensor, Tensor]:
    """Mean correlation, and the slopes of all windows that `gradient` takes; see `ops.local_correlation`.

    An image of two dimensions is a volume of one plane, whose windows are as thick as the plane. Without `both`, the
    slopes are those of a alone.
    """
    x, y, radius = _lift(a), _lift(b), window // 2
    slopes = torch.empty(5 if both else 3, *x.shape, dtype=torch.float64)
    value = torch.empty(len(x) * -(-x.shape[2] // ROWS), dtype=torch.float64)
    _threads()
    settings = radius, (window if a.ndim == 5 else 1, window, window), floor, signed, ROWS
    correlation_kernels.correlations(x.numpy(), y.numpy(), _zeros(x, y), *settings, value.numpy(), slopes.numpy())
    return value.sum() / a.numel(), slopes


def gradient(slopes: Tensor, images: tuple[Tensor, Tensor], place: int, window: int, factor: Tensor) -> Tensor:
    """The derivative of factor times the mean correlation with respect to the image at this place, 0 or 1."""
    x, y = _lift(images[place]), _lift(images[1 - place])
    out, which = torch.empty_like(x), np.array([0, 1 + 2 * place, 2 + 2 * place])
    _threads()
    arrays = slopes.numpy(), which, x.numpy(), y.numpy(), _zeros(x, y)
    correlation_kernels.gradient(*arrays, window // 2, ROWS, float(factor) / x.numel(), out.numpy())
    return out.view(images[place].shape)


def _zeros(*images: Tensor) -> np.ndarray:
    """The mean of every volume, (2, n), from which sums are counted: what is left is its contrast."""
    return np.stack([image.flatten(1).mean(1).double().numpy() for image in images])


def _lift(image: Tensor) -> Tensor:
    """(b, c, *s) as contiguous (b c, s0, s1, s2), a plane as s0 = 1."""
    size = image.shape[2:] if image.ndim == 5 else (1, *image.shape[2:])
    return image.detach().contiguous().view(-1, *size)
