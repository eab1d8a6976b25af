"""Mutual information of two images."""

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import warp
from dio_lightning.level import Level
from dio_lightning.losses.similarity import Image, Similarity, same_shape
from dio_lightning.losses.term import Energy
from dio_lightning.ops import mutual_information
from dio_lightning.pair import full_precision


class MutualInformation(Similarity):
    """Minus the mutual information of two images, in nats (`ops.mutual_information`).

    Every image is brought to [0, 1] by its own extremes first. Of two images with one channel. Windows are linear,
    not Gaussian as in MONAI's `GlobalMutualInformationLoss`, whose time and memory are bins × voxels. Images that agree
    are a peak of it, not a summit: interpolation costs information at once.

    Args:
        bins: bins of the histogram along each axis.
        weight: see `Term`.

    Raises:
        ValueError: if there are fewer than two bins.
    """

    rests = False

    def __init__(self, bins: int = 32, weight: float = 1.0) -> None:
        super().__init__(weight)
        if bins < 2:
            raise ValueError(f"bins is {bins}, expected at least 2")
        self.bins = bins

    def forward(self, warped: Image, fixed: Image) -> Float[Tensor, ""]:
        """Mean over the batch, in float32 at least.

        Raises:
            ValueError: if the images differ in shape, have several channels, or no batch and channel axis.
        """
        same_shape(warped, fixed)
        with torch.autocast(warped.device.type, enabled=False):
            return -mutual_information(_scaled(warped), _scaled(fixed), self.bins).mean()

    def on(self, level: Level) -> Energy:
        """The information of each sample, both images scaled before one is warped."""
        fixed, moving = map(_scaled, level.images)
        return Energy(lambda u, fixed, moving: -mutual_information(warp(moving, u), fixed, self.bins), fixed, moving)


def _scaled(image: Image) -> Float[Tensor, "b 1 *s"]:
    """The image in float32 at least, between 0 and 1 by the extremes of each sample."""
    if image.shape[1] != 1:
        raise ValueError(f"images have {image.shape[1]} channels, expected 1 for their mutual information")
    image = full_precision(image)
    low, high = _extremes(image)
    return (image - low) / torch.where(high > low, high - low, 1)


def _extremes(image: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each sample and channel, shaped to broadcast."""
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    low, high = image.detach().flatten(2).aminmax(dim=2)
    return low.view(shape), high.view(shape)
