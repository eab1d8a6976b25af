"""Mutual information of two images."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dio_lightning.fields import warp
from dio_lightning.level import Level
from dio_lightning.losses.similarity import Image, Similarity, Weights, same_shape
from dio_lightning.losses.term import Energy
from dio_lightning.ops import mutual_information
from dio_lightning.pair import full_precision


class MutualInformation(Similarity):
    """Minus the mutual information of two images, in nats (`ops.mutual_information`).

    Every image is brought to [0, 1] by its own extremes first, those of what counts of it. Of two images with one
    channel. Windows are linear, not Gaussian as in MONAI's `GlobalMutualInformationLoss`, whose time and memory are
    bins × voxels. Images that agree are a peak of it, not a summit: interpolation costs information at once.

    Args:
        bins: bins of the histogram along each axis.
        weight: see `Term`.

    Raises:
        ValueError: if there are fewer than two bins.
    """

    rests = False
    maskable = True

    def __init__(self, bins: int = 32, weight: float = 1.0) -> None:
        super().__init__(weight)
        if bins < 2:
            raise ValueError(f"bins is {bins}, expected at least 2")
        self.bins = bins

    def forward(self, warped: Image, fixed: Image, weights: Weights | None = None) -> Float[Tensor, ""]:
        """Mean over the batch, in float32 at least; a voxel counts by its weight, and 0 is what none of them say.

        Raises:
            ValueError: if the images differ in shape, have several channels, or no batch and channel axis.
        """
        same_shape(warped, fixed)
        with torch.autocast(warped.device.type, enabled=False):
            counts = None if weights is None else weights > 0
            return -_information(_scaled(warped, counts), _scaled(fixed, counts), self.bins, weights).mean()

    def on(self, level: Level) -> Energy:
        """The information of each sample, both images scaled before one is warped."""
        masks = level.masks
        images = zip(level.images, (None, None) if masks is None else masks, strict=True)

        def value(u: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
            return -_information(warp(moving, u), fixed, self.bins, None if masks is None else masks.weights(u))

        return Energy(value, *(_scaled(image, counts) for image, counts in images))


def _information(warped: Image, fixed: Image, bins: int, weights: Weights | None) -> Float[Tensor, " b"]:
    """The information of what counts; 0 for a sample of which nothing does."""
    if weights is None:
        return mutual_information(warped, fixed, bins)
    some = weights.flatten(1).sum(1) > 0
    weights = torch.where(some.view(-1, *[1] * (weights.ndim - 1)), weights, 1)
    return torch.where(some, mutual_information(warped, fixed, bins, weights), 0)


def _scaled(image: Image, counts: Bool[Tensor, "b 1 *s"] | None = None) -> Float[Tensor, "b 1 *s"]:
    """The image in float32 at least, between 0 and 1 by the extremes of what counts of each sample."""
    if image.shape[1] != 1:
        raise ValueError(f"images have {image.shape[1]} channels, expected 1 for their mutual information")
    image = full_precision(image)
    low, high = _extremes(image if counts is None else torch.where(counts, image, _some(image, counts)))
    return (image - low) / torch.where(high > low, high - low, 1)


def _some(image: Tensor, counts: Tensor) -> Tensor:
    """A value of each sample that counts, shaped to broadcast."""
    first = counts.flatten(1).to(torch.uint8).argmax(1, keepdim=True)
    return image.flatten(1).gather(1, first).view(-1, *[1] * (image.ndim - 1))


def _extremes(image: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each sample and channel, shaped to broadcast."""
    shape = (*image.shape[:2], *[1] * (image.ndim - 2))
    low, high = image.detach().flatten(2).aminmax(dim=2)
    return low.view(shape), high.view(shape)
