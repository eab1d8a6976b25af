"""Several pyramids side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dio_lightning.features.base import FeaturePyramid


class Joined(FeaturePyramid):
    """The channels of several pyramids of one image, one pyramid after the other.

    Args:
        pyramids: one or more, of equal levels.
        weights: what the channels of each are multiplied with; 1 by default.

    Raises:
        ValueError: if there is no pyramid, their levels differ, or there is not one positive weight for each.
    """

    def __init__(self, pyramids: list[FeaturePyramid], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(pyramids) if weights is None else list(weights)
        if not pyramids or len({pyramid.levels for pyramid in pyramids}) > 1:
            levels = [list(pyramid.levels) for pyramid in pyramids]
            raise ValueError(f"joined pyramids have levels {levels}, expected one or more pyramids of equal levels")
        if len(weights) != len(pyramids) or min(weights) <= 0:
            raise ValueError(f"weights are {weights}, expected a positive one for each of {len(pyramids)} pyramids")
        super().__init__(pyramids[0].levels, sum(pyramid.channels for pyramid in pyramids))
        self.pyramids, self.weights = nn.ModuleList(pyramids), tuple(weights)

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The channels of all pyramids at each level."""
        parts = [
            [w * x for x in pyramid(image, levels)] for pyramid, w in zip(self.pyramids, self.weights, strict=True)
        ]
        return [torch.cat(of_level, 1) for of_level in zip(*parts, strict=True)]
