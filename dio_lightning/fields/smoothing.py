"""Separable Gaussian smoothing."""

from collections.abc import Sequence
from functools import lru_cache
from math import erf, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.ops import correlate


def gaussian_smooth(
    x: Float[Tensor, "b c *s"], sigma: float | Sequence[float], truncate: float = 2.0
) -> Float[Tensor, "b c *s"]:
    """Gaussian smoothing with zeros outside; sigma in voxels, one for all axes or one per axis.

    The taps are integrals of the Gaussian over voxels, cut after max(truncate·σ, 0.5) voxels and normalised (FireANTs).
    """
    sigmas = (sigma,) * (x.ndim - 2) if isinstance(sigma, int | float) else tuple(sigma)
    taps = _along_axes(sigmas, tuple(x.shape[2:]), truncate)
    return x if taps is None else correlate(x, taps)


def gaussian_average(x: Float[Tensor, "b c *s"], sigma: float | Sequence[float]) -> Float[Tensor, "b c *s"]:
    """The same smoothing for images, normalised over what lies inside: a constant stays constant up to the border."""
    inside = gaussian_smooth(torch.ones_like(x[:1, :1]), sigma)
    return gaussian_smooth(x, sigma) / inside


@lru_cache(maxsize=256)
def _along_axes(
    sigmas: tuple[float, ...], size: tuple[int, ...], truncate: float
) -> tuple[tuple[float, ...], ...] | None:
    """Weights along each axis of a grid; None where no axis is smoothed."""
    # a field on a plane is not damped across it
    axes = [value > 0 and extent > 1 for value, extent in zip(sigmas, size, strict=True)]
    if not any(axes):
        return None
    return tuple(_taps(float(v), truncate) if on else (1.0,) for v, on in zip(sigmas, axes, strict=True))


@lru_cache(maxsize=64)
def _taps(sigma: float, truncate: float) -> tuple[float, ...]:
    """Weights of the Gaussian at distance 0, 1, …, normalised over both sides."""
    tail = int(max(truncate * sigma, 0.5) + 0.5)
    edge = [erf((t - 0.5) / (sqrt(2) * sigma)) for t in range(tail + 2)]
    taps = [edge[t + 1] - edge[t] for t in range(tail + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    return tuple(tap / total for tap in taps)
