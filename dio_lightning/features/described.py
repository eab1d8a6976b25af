"""A feature network that sees a descriptor instead of the image."""

from torch import Tensor

from dio_lightning.features.base import FeaturePyramid
from dio_lightning.features.learned import FeatureNetwork


class Described(FeaturePyramid):
    """The network's features of the descriptor of the image, at full resolution: DIO's lungs see MIND-SSC.

    Args:
        descriptor: what the network sees, such as `MIND` with levels [1].
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
        return self.network(self.descriptor(image, (1,))[0], levels)
