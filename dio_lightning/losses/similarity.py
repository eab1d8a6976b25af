"""Similarities of a warped and a fixed image; smaller is better."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.fields import warp
from dio_lightning.level import Level, Masks
from dio_lightning.losses.term import Energy, Term
from dio_lightning.ops import local_correlation, weighted_correlation
from dio_lightning.pair import expect_batch, full_precision

Image = Float[Tensor, "b c *s"]
Weights = Float[Tensor, "b 1 *s"]


class Similarity(Term):
    """A term of two images: of those of the level's pair on the level's grid, or of its features without a pair."""

    compares = True

    def on(self, level: Level) -> Energy:
        """The similarity of the warped moving and the fixed image of each sample on its own."""
        return compared(self, *level.images, level.masks)


def compared(similarity: nn.Module, fixed: Image, moving: Image, masks: Masks | None = None) -> Energy:
    """The energy similarity(moving ∘ (id + u), fixed) of each sample on its own.

    With masks it is similarity(moving ∘ (id + u), fixed, weights), the weights being those of `Masks`.
    """

    def value(u: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
        samples = [warp(moving, u), fixed] if masks is None else [warp(moving, u), fixed, masks.weights(u)]
        return torch.stack([similarity(*one) for one in zip(*(x.split(1) for x in samples), strict=True)])

    return Energy(value, fixed, moving)


class SSD(Similarity):
    """Mean squared difference, as a scalar."""

    maskable = True
    repeats = True

    def forward(self, warped: Image, fixed: Image, weights: Weights | None = None) -> Float[Tensor, ""]:
        """Mean over batch, channels and voxels, in float32; a voxel counts by its weight, between 0 and 1.

        Raises:
            ValueError: if the images differ in shape, or have no batch and channel axis.
        """
        same_shape(warped, fixed)
        squares = (full_precision(warped) - full_precision(fixed)).square()
        return (squares if weights is None else squares * weights.detach()).mean()


class LNCC(Similarity):
    """1 - local normalised cross-correlation, in [0, 1] (signed: [0, 2]).

    Over windows of `window`^d voxels, zero outside the image: cross = Σab - ΣaΣb / window^d, likewise the variances
    (at least 1e-5); cc = cross² / (var_a var_b + 1e-5), or signed cross / √(var_a var_b + 1e-5). A window where an
    image is constant counts as uncorrelated, cc = 0; the bound on what is constant is meant for images in [0, 1]
    or of larger numbers, wherever their zero is. Sums are taken in float64 (`ops.local_correlation`). Where voxels are
    left out, the sums are those over the others (`ops.weighted_correlation`): a window has the share in the mean that
    counts of it, and none below a quarter.

    Images that agree are not at rest: windows of little contrast count as uncorrelated, so that more contrast is
    better, and images that are far apart may have no larger a slope than that. The value says whether they agree.

    Args:
        window: odd edge length in voxels.
        signed: keep the sign of the correlation, so that inverted contrast is penalised.
        weight: see `Term`.

    Raises:
        ValueError: if the window is even or below 3.
    """

    rests = False
    maskable = True
    repeats = True

    def __init__(self, window: int = 7, signed: bool = False, weight: float = 1.0) -> None:
        super().__init__(weight)
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3 voxels, not {window}.")
        self.window, self.signed = window, signed

    def forward(self, warped: Image, fixed: Image, weights: Weights | None = None) -> Float[Tensor, ""]:
        """Mean over batch, channels and voxels, in float32 at least; a voxel counts by its weight, between 0 and 1.

        Raises:
            ValueError: if the images differ in shape, or have no batch and channel axis.
        """
        same_shape(warped, fixed)
        with torch.autocast(warped.device.type, enabled=False):
            warped, fixed = full_precision(warped), full_precision(fixed)
            if weights is None:
                return 1 - local_correlation(warped, fixed, self.window, self.signed)
            weighted = weighted_correlation(warped, fixed, weights, self.window, self.signed)
            return (weighted.share - weighted.correlation).to(torch.promote_types(warped.dtype, fixed.dtype))


def same_shape(warped: Tensor, fixed: Tensor) -> None:
    """Raises ValueError unless both are batches of images (b, c, *s) of one shape."""
    for image, name in ((warped, "the warped image"), (fixed, "the fixed image")):
        expect_batch(image, name)
    if warped.shape != fixed.shape:
        raise ValueError(f"the warped image has shape {tuple(warped.shape)}, the fixed one {tuple(fixed.shape)}")
