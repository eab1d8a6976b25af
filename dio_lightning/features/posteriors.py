"""Probabilities of structures as features: labels that are softened by what an image does not say."""

from torch import Tensor, nn

from dio_lightning.features.base import FeaturePyramid
from dio_lightning.networks.blocks import conv


class Posteriors(FeaturePyramid):
    """The probability of every structure at every voxel, a channel each, background first; they sum to 1.

    Squared differences of them compare what was recognised and nothing else: within a structure there is nothing to
    match, at its border everything. With label maps in their place a solver would see the truth. `DIO.anatomy` trains
    them by labels.

    Args:
        features: a network; what it says is classified by a convolution of one voxel for each level.
        num_labels: the largest label.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: if there is no label.
    """

    def __init__(self, features: FeaturePyramid, num_labels: int, spatial_dims: int = 3) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}, expected the largest label, at least 1")
        super().__init__(features.levels, num_labels + 1)
        self.features = features
        self.classifiers = nn.ModuleDict(
            {str(level): conv(spatial_dims, features.channels, num_labels + 1, kernel=1) for level in features.levels}
        )

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The probabilities at these levels."""
        features = zip(levels, self.features(image, levels), strict=True)
        return [self.classifiers[str(level)](x).float().softmax(1) for level, x in features]
