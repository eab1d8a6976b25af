"""Similarities of a warped and a fixed image; smaller is better."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import warp
from dio_lightning.level import Level
from dio_lightning.losses.term import Energy, Term
from dio_lightning.ops import local_correlation
from dio_lightning.pair import expect_batch, full_precision

Image = Float[Tensor, "b c *s"]


class Similarity(Term):
    """A term of two images: of those of the level's pair on the level's grid, or of its features without a pair."""

    compares = True

    def on(self, level: Level) -> Energy:
        """The similarity of the warped moving and the fixed image of each sample on its own."""
        return compared(self, *level.images)


def compared(similarity: Callable[[Tensor, Tensor], Tensor], fixed: Image, moving: Image) -> Energy:
    """The energy similarity(moving ∘ (id + u), fixed) of each sample on its own."""

    def value(u: Tensor, fixed: Tensor, moving: Tensor) -> Tensor:
        samples = zip(warp(moving, u).split(1), fixed.split(1), strict=True)
        return torch.stack([similarity(warped, image) for warped, image in samples])

    return Energy(value, fixed, moving)


class SSD(Similarity):
    """Mean squared difference, as a scalar."""

    def forward(self, warped: Image, fixed: Image) -> Float[Tensor, ""]:
        """Mean over batch, channels and voxels, in float32.

        Raises:
            ValueError: if the images differ in shape, or have no batch and channel axis.
        """
        same_shape(warped, fixed)
        return (full_precision(warped) - full_precision(fixed)).square().mean()


class LNCC(Similarity):
    """1 - local normalised cross-correlation, in [0, 1] (signed: [0, 2]).

    Over windows of `window`^d voxels, zero outside the image: cross = Σab - ΣaΣb / window^d, likewise the variances
    (at least 1e-5); cc = cross² / (var_a var_b + 1e-5), or signed cross / √(var_a var_b + 1e-5). A window where an
    image is constant counts as uncorrelated, cc = 0; the bound on what is constant is meant for images in [0, 1]
    or of larger numbers, wherever their zero is. Sums are taken in float64 (`ops.local_correlation`).

    Args:
        window: odd edge length in voxels.
        signed: keep the sign of the correlation, so that inverted contrast is penalised.
        weight: see `Term`.

    Raises:
        ValueError: if the window is even or below 3.
    """

    def __init__(self, window: int = 7, signed: bool = False, weight: float = 1.0) -> None:
        super().__init__(weight)
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3 voxels, not {window}.")
        self.window, self.signed = window, signed

    def forward(self, warped: Image, fixed: Image) -> Float[Tensor, ""]:
        """Mean over batch, channels and voxels, in float32 at least.

        Raises:
            ValueError: if the images differ in shape, or have no batch and channel axis.
        """
        same_shape(warped, fixed)
        with torch.autocast(warped.device.type, enabled=False):
            return 1 - local_correlation(full_precision(warped), full_precision(fixed), self.window, self.signed)


def same_shape(warped: Tensor, fixed: Tensor) -> None:
    """Raises ValueError unless both are batches of images (b, c, *s) of one shape."""
    for image, name in ((warped, "the warped image"), (fixed, "the fixed image")):
        expect_batch(image, name)
    if warped.shape != fixed.shape:
        raise ValueError(f"the warped image has shape {tuple(warped.shape)}, the fixed one {tuple(fixed.shape)}")
