"""A feature network that sees a descriptor instead of the image."""

from torch import Tensor

from dio_lightning.features.base import FeaturePyramid, average_pool
from dio_lightning.features.learned import FeatureNetwork


class Described(FeaturePyramid):
    """The network's features of the descriptor of the image, at full resolution: DIO's lungs see MIND-SSC.

    Args:
        descriptor: what the network sees, at level 1, such as `MIND` with levels [1]. A residual start at a level is
            the descriptor there; at a level that the descriptor does not have, its level 1 averaged over blocks.
        network: its `in_channels` must equal the descriptor's channels. With as many features and a residual start,
            training starts from registration by the descriptor itself.

    Raises:
        ValueError: if the descriptor has no level 1, or another number of channels than the network takes.
    """

    def __init__(self, descriptor: FeaturePyramid, network: FeatureNetwork) -> None:
        super().__init__(network.levels, network.channels)
        if 1 not in descriptor.levels:
            raise ValueError(f"the descriptor has levels {list(descriptor.levels)}, expected level 1 among them.")
        if descriptor.channels != network.in_channels:
            raise ValueError(
                f"network.in_channels is {network.in_channels}, expected {descriptor.channels}, the channels of "
                f"{type(descriptor).__name__}."
            )
        self.descriptor, self.network = descriptor, network

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The network's features of the descriptor."""
        own = self.descriptor.levels if self.network.residual else (1,)
        asked = sorted({1, *levels} & {*own}, reverse=True)
        described = dict(zip(asked, self.descriptor(image, asked), strict=True))
        starts = [described[n] if n in described else average_pool(described[1], n) for n in levels]
        return [x.float() for x in self.network.started(described[1], levels, starts)]
