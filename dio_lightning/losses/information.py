"""Mutual information of two images."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import warp
from dio_lightning.level import Level
from dio_lightning.losses.similarity import Image, Similarity, same_shape
from dio_lightning.losses.term import Energy
from dio_lightning.pair import full_precision

if TYPE_CHECKING:
    from monai.losses.image_dissimilarity import GlobalMutualInformationLoss


class MutualInformation(Similarity):
    """Minus the mutual information of two images, in nats, by MONAI's `GlobalMutualInformationLoss`.

    Gaussian Parzen windows (Qiu et al., MIDL 2021); every image is brought to [0, 1] by its own extremes first. Of two
    images with one channel; it needs bins × voxels numbers of memory for each.

    Args:
        bins: bins of the histogram.
        weight: see `Term`.

    Raises:
        ValueError: if there are fewer than two bins.
    """

    def __init__(self, bins: int = 23, weight: float = 1.0) -> None:
        super().__init__(weight)
        if bins < 2:
            raise ValueError(f"bins is {bins}, expected at least 2")
        self.bins = bins

    def forward(self, warped: Image, fixed: Image) -> Float[Tensor, ""]:
        """Mean over the batch, in float32 at least.

        Raises:
            ValueError: if the images differ in shape, or have no batch and channel axis.
        """
        same_shape(warped, fixed)
        with torch.autocast(warped.device.type, enabled=False):
            images = (_between(x, *_extremes(x)) for x in (full_precision(warped), full_precision(fixed)))
            return self._loss()(*images).mean()

    def on(self, level: Level) -> Energy:
        """The information of each sample, both images scaled before one is warped."""
        loss = self._loss()
        fixed, moving = (_between(full_precision(x), *_extremes(x)) for x in level.images)
        return Energy(lambda u, fixed, moving: loss(warp(moving, u), fixed), fixed, moving)

    def _loss(self) -> "GlobalMutualInformationLoss":
        from monai.losses.image_dissimilarity import GlobalMutualInformationLoss  # importing losses needs no MONAI

        return GlobalMutualInformationLoss(num_bins=self.bins, reduction="none")


def _extremes(image: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each sample and channel, shaped to broadcast."""
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    low, high = image.detach().flatten(2).aminmax(dim=2)
    return low.view(shape), high.view(shape)


def _between(image: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (image - low) / torch.where(high > low, high - low, 1)
