"""Separable Gaussian smoothing."""

from collections.abc import Sequence
from functools import lru_cache
from math import erf, sqrt

import torch
from jaxtyping import Float
from torch import Tensor


def gaussian_smooth(
    x: Float[Tensor, "b c *s"], sigma: float | Sequence[float], truncate: float = 2.0
) -> Float[Tensor, "b c *s"]:
    """Gaussian smoothing with zeros outside; sigma in voxels, one for all axes or one per axis.

    The taps are integrals of the Gaussian over voxels, cut after max(truncate·σ, 0.5) voxels and normalised (FireANTs).
    Along every axis the field is added to itself, shifted: for kernels this short that is several times faster on a CPU
    than a convolution or a banded matrix.
    """
    sigmas = [sigma] * (x.ndim - 2) if isinstance(sigma, int | float) else list(sigma)
    for axis, value in enumerate(sigmas, start=2):
        if value > 0 and x.shape[axis] > 1:  # a field on a plane is not damped across it
            x = _along(x, axis, _taps(float(value), truncate))
    return x


def gaussian_average(x: Float[Tensor, "b c *s"], sigma: float | Sequence[float]) -> Float[Tensor, "b c *s"]:
    """The same smoothing for images, normalised over what lies inside: a constant stays constant up to the border."""
    inside = gaussian_smooth(torch.ones_like(x[:1, :1]), sigma)
    return gaussian_smooth(x, sigma) / inside


def _along(x: Tensor, axis: int, taps: Sequence[float]) -> Tensor:
    """Symmetric correlation along one axis; taps[t] is the weight at distance t."""
    size = x.shape[axis]
    smooth = x * taps[0]
    for shift, weight in enumerate(taps[1:size], start=1):
        kept = size - shift
        smooth.narrow(axis, shift, kept).add_(x.narrow(axis, 0, kept), alpha=weight)
        smooth.narrow(axis, 0, kept).add_(x.narrow(axis, shift, kept), alpha=weight)
    return smooth


@lru_cache(maxsize=64)
def _taps(sigma: float, truncate: float) -> tuple[float, ...]:
    """Weights of the Gaussian at distance 0, 1, …, normalised over both sides."""
    tail = int(max(truncate * sigma, 0.5) + 0.5)
    edge = [erf((t - 0.5) / (sqrt(2) * sigma)) for t in range(tail + 2)]
    taps = [edge[t + 1] - edge[t] for t in range(tail + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    return tuple(tap / total for tap in taps)
