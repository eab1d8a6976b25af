"""Distances of the features of a level."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.level import Level
from dio_lightning.losses.similarity import Image, compared
from dio_lightning.losses.term import Energy, Slope, Term
from dio_lightning.ops import match


class FeatureDistance(Term):
    """The distance of `ops.match`, 1/C Σ_c (M_c(ϕ(x)) - F_c(x))², over the variance of the fixed features.

    The variance is differentiated too: without that, an adjoint would spend itself on growing the features.

    Args:
        normalise: divide by the variance, so that nothing depends on the scale of the features.
        weight: see `Term`.
    """

    compares = True

    def __init__(self, normalise: bool = True, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.normalise = normalise

    def on(self, level: Level) -> "Matched":
        """The distance of the level's features."""
        return Matched(level.fixed, level.moving, variance(level.fixed) if self.normalise else None)


class Matched(Energy):
    """The energy of `FeatureDistance`; `scale`, (b,), is what the distance is divided by."""

    def __init__(self, fixed: Image, moving: Image, scale: Float[Tensor, " b"] | None) -> None:
        super().__init__(self._mean, slope=self._closed)
        self.fixed, self.moving = fixed, moving
        self.scale = fixed.new_ones(len(fixed)) if scale is None else scale

    def scaled(self, value: Float[Tensor, " b"], slope: Float[Tensor, "b d *s"]) -> Slope:
        """The energy and slope that `ops.match` gives, as those of the term."""
        return value / self.scale / prod(slope.shape[2:]), slope / self.scale.view(-1, *[1] * (slope.ndim - 1))

    def _mean(self, u: Tensor) -> Tensor:
        return self._closed(u)[0]

    def _closed(self, u: Tensor) -> Slope:
        return self.scaled(*match(self.fixed, self.moving, u))


def variance(features: Image) -> Float[Tensor, " b"]:
    """Variance over the voxels, the mean of the channels; 1 where it is 0."""
    spread = features.flatten(2).var(dim=2).mean(1)
    return torch.where(spread > 0, spread, torch.ones_like(spread))


class FeatureSimilarity(Term):
    """Any similarity, of the features of a level in place of the images.

    Args:
        similarity: (warped, fixed) to a scalar, smaller is better, a mean over voxels: `LNCC`, `SSD`.
        weight: see `Term`.
    """

    compares = True

    def __init__(self, similarity: nn.Module, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.similarity = similarity

    @property
    def rests(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the similarity is at rest where feature maps agree."""
        return bool(getattr(self.similarity, "rests", True))

    def on(self, level: Level) -> Energy:
        """The similarity of the warped moving and the fixed features of each sample on its own."""
        return compared(self.similarity, level.fixed, level.moving)
