"""Local correlation on the CPU: tensors to the compiled loops and back."""

import threading

import numpy as np
import torch
from torch import Tensor

from dio_lightning.ops import correlation_kernels
from dio_lightning.ops.match_numba import _threads

_KEPT = 2**25
"""Most numbers of the memory that is kept from call to call, in which the sums of planes lie: new pages cost more."""
_memory = threading.local()


def mean(a: Tensor, b: Tensor, window: int, floor: float, signed: bool, both: bool = True) -> tuple[Tensor, Tensor]:
    """Mean correlation, and the slopes of all windows that `gradient` takes; see `ops.local_correlation`.

    An image of two dimensions is a volume of one plane, whose windows are as thick as the plane. Without `both`, the
    slopes are those of a alone.
    """
    x, y, radius = _lift(a), _lift(b), window // 2
    planes, slopes = _planes(5, x), torch.empty(5 if both else 3, *x.shape, dtype=torch.float64)
    value = torch.empty(x.shape[0] * x.shape[2], dtype=torch.float64)
    _threads()
    zeros, across = (_zero(x), _zero(y)), window if a.ndim == 5 else 1
    correlation_kernels.moments(x.numpy(), y.numpy(), *zeros, radius, planes)
    settings = (radius, (across, window, window), floor, signed)
    correlation_kernels.correlations(planes, *zeros, *settings, value.numpy(), slopes.numpy())
    return value.sum() / a.numel(), slopes


def gradient(slopes: Tensor, images: tuple[Tensor, Tensor], place: int, window: int, factor: float) -> Tensor:
    """The derivative of factor times the mean correlation with respect to the image at this place, 0 or 1."""
    x, y, radius = _lift(images[place]), _lift(images[1 - place]), window // 2
    planes, out = _planes(3, x), torch.empty_like(x)
    _threads()
    which = torch.tensor([0, 1 + 2 * place, 2 + 2 * place])
    correlation_kernels.spread(slopes.numpy(), which.numpy(), radius, planes)
    factor /= x.numel()
    correlation_kernels.gradient(planes, x.numpy(), y.numpy(), _zero(x), _zero(y), radius, factor, out.numpy())
    return out.view(images[place].shape)


def _zero(image: Tensor) -> np.ndarray:
    """The mean of every volume, from which sums are counted: what is left is its contrast."""
    return image.flatten(1).mean(1).double().numpy()


def _planes(count: int, image: Tensor) -> np.ndarray:
    """Memory for float64 volumes (count, n, s0, s1, s2), whatever it holds."""
    size = count * image.numel()
    kept: np.ndarray | None = getattr(_memory, "kept", None)
    if kept is None or len(kept) < size:
        kept = np.empty(size)
        if size <= _KEPT:
            _memory.kept = kept
    return kept[:size].reshape(count, *image.shape)


def _lift(image: Tensor) -> Tensor:
    """(b, c, *s) as contiguous (b c, s0, s1, s2), a plane as s0 = 1."""
    size = image.shape[2:] if image.ndim == 5 else (1, *image.shape[2:])
    return image.detach().contiguous().view(-1, *size)
