"""Local correlation on the CPU: tensors to the compiled loops and back."""

import numpy as np
import torch
from torch import Tensor

from dio_lightning.ops import correlation_kernels
from dio_lightning.ops.match_numba import _threads


def mean(a: Tensor, b: Tensor, window: int, floor: float, signed: bool) -> tuple[Tensor, Tensor]:
    """Mean correlation, and the slopes of all windows that `gradient` takes; see `ops.local_correlation`.

    An image of two dimensions is a volume of one plane, whose windows are as thick as the plane.
    """
    x, y, radius = _lift(a), _lift(b), window // 2
    planes = torch.empty((5, *x.shape), dtype=torch.float64)
    value, slopes = torch.empty(x.shape[0] * x.shape[2], dtype=torch.float64), torch.empty_like(planes)
    _threads()
    zeros, across = (_zero(x), _zero(y)), window if a.ndim == 5 else 1
    correlation_kernels.moments(x.numpy(), y.numpy(), *zeros, radius, planes.numpy())
    settings = (radius, (across, window, window), floor, signed)
    correlation_kernels.correlations(planes.numpy(), *zeros, *settings, value.numpy(), slopes.numpy())
    return value.sum() / a.numel(), slopes


def gradient(slopes: Tensor, images: tuple[Tensor, Tensor], place: int, window: int, factor: float) -> Tensor:
    """The derivative of factor times the mean correlation with respect to the image at this place, 0 or 1."""
    x, y, radius = _lift(images[place]), _lift(images[1 - place]), window // 2
    planes, out = slopes.new_empty(3, *x.shape), torch.empty_like(x)
    _threads()
    which = torch.tensor([0, 1 + place, 3 + place])
    correlation_kernels.spread(slopes.numpy(), which.numpy(), radius, planes.numpy())
    factor /= x.numel()
    correlation_kernels.gradient(planes.numpy(), x.numpy(), y.numpy(), _zero(x), _zero(y), radius, factor, out.numpy())
    return out.view(images[place].shape)


def _zero(image: Tensor) -> np.ndarray:
    """The mean of every volume, from which sums are counted: what is left is its contrast."""
    return image.flatten(1).mean(1, dtype=torch.float64).numpy()


def _lift(image: Tensor) -> Tensor:
    """(b, c, *s) as contiguous (b c, s0, s1, s2), a plane as s0 = 1."""
    size = image.shape[2:] if image.ndim == 5 else (1, *image.shape[2:])
    return image.detach().contiguous().view(-1, *size)
