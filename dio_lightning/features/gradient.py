"""Gradient magnitude, relative to its neighbourhood: where an image has edges, whatever side is the brighter."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.features.base import FeaturePyramid, average_pool, one_channel
from dio_lightning.fields import gaussian_average


class GradientMagnitude(FeaturePyramid):
    """Magnitude of the image's gradient at each level, one channel a window; no weights.

    Inverting the contrast changes nothing, so that T1- and T2-weighted images have edges in common.

    Args:
        levels: down-sampling factors, coarse to fine; an image is averaged to the level before it is described.
        sigmas: widths of the windows in voxels of the level, a channel each.
        eps: slope, in units of the image a voxel, below which an edge is noise; for images in [0, 1].

    Raises:
        ValueError: if there is no width, or a width or eps is not positive.
    """

    def __init__(self, levels: Sequence[int] = (4, 2, 1), sigmas: Sequence[float] = (3.0,), eps: float = 0.02) -> None:
        if not sigmas or min(sigmas) <= 0 or eps <= 0:
            raise ValueError(f"sigmas are {list(sigmas)} and eps {eps}, expected one or more positive widths and eps")
        super().__init__(levels, channels=len(sigmas))
        self.sigmas, self.eps = tuple(sigmas), eps

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The descriptor of the image averaged over blocks of each level's size.

        Raises:
            ValueError: if the image has more than one channel.
        """
        small = [average_pool(one_channel(image, self), level) for level in levels]
        return [torch.cat([gradient_magnitude(x, sigma, self.eps) for sigma in self.sigmas], 1) for x in small]


def gradient_magnitude(
    image: Float[Tensor, "b c *s"], sigma: float = 3.0, eps: float = 0.02
) -> Float[Tensor, "b c *s"]:
    """(√(g² + ε²) - ε) / √(m + ε²), g the length of a channel's gradient, m the mean of g² in a window of σ voxels.

    Central differences, one-sided at the border, per voxel. What lies outside the image has no part in a window. A
    factor and a constant change nothing where g is well above ε, a negative factor no more than a positive one.
    """
    axes = [axis for axis in range(2, image.ndim) if image.shape[axis] > 1]
    squared = torch.zeros_like(image)
    for axis in axes:
        squared = squared + torch.gradient(image, dim=axis)[0].square()
    return ((squared + eps**2).sqrt() - eps) / (gaussian_average(squared, sigma) + eps**2).sqrt()
