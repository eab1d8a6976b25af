"""Local contrast: an image whose every neighbourhood has mean 0 and deviation 1."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.features.base import FeaturePyramid, average_pool, one_channel
from dio_lightning.fields import gaussian_average


class LocalContrast(FeaturePyramid):
    """Local contrast of the image at each level, in windows of several widths, and the image itself; no weights.

    Squared differences of locally standardised images are a local correlation whose windows are not computed anew after
    every warp: nearly the accuracy of `LNCC` at the price of squared differences.

    Args:
        levels: down-sampling factors, coarse to fine; an image is averaged to the level before it is described.
        sigmas: widths of the windows in voxels of the level, a channel each.
        eps: deviation, in units of the image, below which contrast is noise; for images in [0, 1].
        intensity: weight of the image as the last channel; 0 leaves it out.

    Raises:
        ValueError: if there is no width, or a width, eps or the weight is out of its range.
    """

    def __init__(
        self,
        levels: Sequence[int] = (4, 2, 1),
        sigmas: Sequence[float] = (1.5,),
        eps: float = 0.02,
        intensity: float = 3.0,
    ) -> None:
        if not sigmas or min(sigmas) <= 0 or eps <= 0 or intensity < 0:
            raise ValueError(
                f"sigmas are {list(sigmas)}, eps {eps} and intensity {intensity}, expected positive widths, "
                "a positive eps and a weight of at least 0"
            )
        super().__init__(levels, channels=len(sigmas) + (intensity > 0))
        self.sigmas, self.eps, self.intensity = tuple(sigmas), eps, intensity

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The descriptor of the image averaged over blocks of each level's size.

        Raises:
            ValueError: if the image has more than one channel.
        """
        image = one_channel(image, self)
        return [self._described(average_pool(image, level)) for level in levels]

    def _described(self, image: Tensor) -> Tensor:
        channels = [local_contrast(image, sigma, self.eps) for sigma in self.sigmas]
        return torch.cat([*channels, *([self.intensity * image] if self.intensity else [])], 1)


def local_contrast(image: Float[Tensor, "b c *s"], sigma: float = 1.5, eps: float = 0.02) -> Float[Tensor, "b c *s"]:
    """(I - m) / √(v + ε²), m and v mean and variance of a channel in a Gaussian window of σ voxels around each voxel.

    What lies outside the image has no part in a window. Adding a constant to the image changes nothing; a factor
    changes nothing where the deviation is well above ε.
    """
    image = image - image.mean(dim=tuple(range(2, image.ndim)), keepdim=True)  # squares of small numbers lose less
    mean = gaussian_average(image, sigma)
    variance = (gaussian_average(image.square(), sigma) - mean.square()).clamp(min=0)
    return (image - mean) / (variance + eps**2).sqrt()
