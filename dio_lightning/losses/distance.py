"""Distances of the features of a level."""

from math import prod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dio_lightning import ops
from dio_lightning.fields import warp
from dio_lightning.implicit.graphs import repeats
from dio_lightning.level import Level, Masks
from dio_lightning.losses.similarity import Image, compared
from dio_lightning.losses.term import Energy, Slope, Term


class FeatureDistance(Term):
    """The distance of `ops.match`, 1/C Σ_c (M_c(ϕ(x)) - F_c(x))², over the variance of the fixed features.

    The variance is differentiated too: without that, an adjoint would spend itself on growing the features.

    Args:
        normalise: divide by the variance, so that nothing depends on the scale of the features.
        weight: see `Term`.

    Of a masked level the voxels that count are summed, and the variance is theirs.
    """

    compares = True
    maskable = True
    repeats = True

    def __init__(self, normalise: bool = True, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.normalise = normalise

    def on(self, level: Level) -> "Matched":
        """The distance of the level's features."""
        masks = level.masks
        counts = None if masks is None else masks.fixed
        return Matched(level.fixed, level.moving, variance(level.fixed, counts) if self.normalise else None, masks)


class Matched(Energy):
    """The energy of `FeatureDistance`; `scale`, (b,), is what the distance is divided by."""

    def __init__(
        self, fixed: Image, moving: Image, scale: Float[Tensor, " b"] | None, masks: Masks | None = None
    ) -> None:
        super().__init__(self._mean, slope=self._closed)
        self.fixed, self.moving, self.masks = fixed, moving, masks
        self.scale = fixed.new_ones(len(fixed)) if scale is None else scale

    def scaled(self, value: Float[Tensor, " b"], slope: Float[Tensor, "b d *s"]) -> Slope:
        """What `ops.match` gives, as energy and slope of the term; overwrites the slope where gradients are off."""
        scale = self.scale.view(-1, *[1] * (slope.ndim - 1))
        if torch.is_grad_enabled() or scale.dtype != slope.dtype:
            slope = slope / scale
        else:
            slope.div_(scale)
        return value / self.scale / prod(slope.shape[2:]), slope

    def _mean(self, u: Tensor) -> Tensor:
        return self._closed(u)[0]

    def _closed(self, u: Tensor) -> Slope:
        value, slope = ops.match(self.fixed, self.moving, u)
        if self.masks is not None:
            weights = self.masks.weights(u)
            squares = (warp(self.moving, u) - self.fixed).square().mean(1, keepdim=True)
            value, slope = (weights * squares).flatten(1).sum(1), weights * slope
        return self.scaled(value, slope)


def variance(features: Image, counts: Bool[Tensor, "b 1 *s"] | None = None) -> Float[Tensor, " b"]:
    """Variance over the voxels that count, by default over all, the mean of the channels; 1 where it is 0."""
    if counts is None:
        spread = ops.variances(features).mean(1)
    else:
        weights, flat = counts.flatten(2).to(features), features.flatten(2)
        number = weights.sum(2, keepdim=True)
        centred = flat - (weights * flat).sum(2, keepdim=True) / number.clamp(min=1)
        spread = ((weights * centred.square()).sum(2) / (number[:, :, 0] - 1).clamp(min=1)).mean(1)
    return torch.where(spread > 0, spread, torch.ones_like(spread))


class FeatureSimilarity(Term):
    """Any similarity, of the features of a level in place of the images.

    Args:
        similarity: (warped, fixed) to a scalar, smaller is better, a mean over voxels: `LNCC`, `SSD`. With masks it is
            called with the weights of the voxels too.
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

    @property
    def maskable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the similarity takes weights."""
        return bool(getattr(self.similarity, "maskable", False))

    @property
    def repeats(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the similarity does the same operations at every call."""
        return repeats(self.similarity)

    def on(self, level: Level) -> Energy:
        """The similarity of the warped moving and the fixed features of each sample on its own."""
        return compared(self.similarity, level.fixed, level.moving, level.masks)
