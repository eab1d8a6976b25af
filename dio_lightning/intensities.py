"""What is black and what is white of an image: the one rule of data modules and registration."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LOW, HIGH = 0.005, 0.995
"""Shares of the values at which black and white lie."""


def limits(values: NDArray, foreground: bool = False) -> tuple[float, float]:
    """The values at 0.5 % and 99.5 %; the least and the largest one where those two are equal.

    They are equal in an image of a few voxels above a background, such as a map of vessels, whose contrast lies beyond
    them. Of a constant image both limits are its value.

    Args:
        values: finite, at least one.
        foreground: the upper one is that of the values above the lower one, so that background has no say in it.
    """
    low, high = (float(limit) for limit in np.quantile(values, [LOW, HIGH]))
    if foreground and (above := values[values > low]).size:
        high = float(np.quantile(above, [HIGH])[0])
    return (low, high) if high > low else (float(values.min()), float(values.max()))


def between(image: Tensor, low: float, high: float) -> Tensor:
    """The image from 0 at the one limit to 1 at the other, and no further; 0 everywhere where they are equal."""
    return ((image - low) / (high - low)).clamp(0, 1) if high > low else image * 0
