"""Probabilities of structures as features: labels that are softened by what an image does not say."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
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
        beside: a descriptor, whose channels follow the probabilities: it matches what lies within a structure. It may
            be named or left out at test time, where the probabilities are the same.
        weight: of the descriptor: what its channels are multiplied with.

    Raises:
        ValueError: if there is no label, or the descriptor has other levels or no positive weight.
    """

    def __init__(
        self,
        features: FeaturePyramid,
        num_labels: int,
        spatial_dims: int = 3,
        beside: FeaturePyramid | None = None,
        weight: float = 1.0,
    ) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}, expected the largest label, at least 1")
        if weight <= 0:
            raise ValueError(f"weight of the descriptor is {weight}, expected a positive number")
        if beside is not None and beside.levels != features.levels:
            levels = f"{list(beside.levels)} and {list(features.levels)}"
            raise ValueError(f"the descriptor and the network have levels {levels}, expected equal ones")
        super().__init__(features.levels, num_labels + 1 + (0 if beside is None else beside.channels))
        self.features, self.num_labels, self.beside, self.weight = features, num_labels, beside, weight
        self.classifiers = nn.ModuleDict(
            {str(level): conv(spatial_dims, features.channels, num_labels + 1, kernel=1) for level in features.levels}
        )

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        """The probabilities at these levels, the descriptor behind them."""
        raw = zip(levels, self.features(image, levels), strict=True)
        features = [self.classifiers[str(level)](x).float().softmax(1) for level, x in raw]
        if self.beside is None:
            return features
        return [torch.cat([p, self.weight * x], 1) for p, x in zip(features, self.beside(image, levels), strict=True)]

    def probabilities(self, features: Sequence[Tensor]) -> list[Float[Tensor, "b k *_"]]:
        """The probabilities among the features of some levels."""
        return [x[:, : self.num_labels + 1] for x in features]
