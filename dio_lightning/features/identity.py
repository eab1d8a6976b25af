"""The image itself as features: classical registration."""

from collections.abc import Sequence

from torch import Tensor

from dio_lightning.features.base import FeaturePyramid, average_pool


class Intensity(FeaturePyramid):
    """Raw intensities, averaged to each level; no weights. `channels` must equal those of the image."""

    def __init__(self, levels: Sequence[int] = (4, 2, 1), channels: int = 1) -> None:
        super().__init__(levels, channels)

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The image averaged over blocks of each level's size."""
        return [average_pool(image, level) for level in levels]
