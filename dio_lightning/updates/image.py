"""Classical registration by any image similarity: f is one smoothed descent step on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from dio_lightning.level import Level
from dio_lightning.losses import FeatureSimilarity, Term
from dio_lightning.transformations import Transformation
from dio_lightning.updates.descent import BoundDescent, Descent, SmoothedRule


@dataclass(frozen=True)
class ImageDescent(SmoothedRule):
    """`Descent` whose distance is a similarity of the level's features: E = D(moving ∘ (id + u), fixed).

    D is a mean over voxels, so λ is the weight of `Diffusion` ("sum") beside D in a training objective. With
    `Intensity` features it is registration of the images, by local correlation for `LNCC` (Avants et al., MedIA 12,
    2008). Samples of a batch do not see each other.

    Args:
        similarity: (warped, fixed) to a scalar, smaller is better: `LNCC`, `SSD`.
        sigma: smoothing S_σ of the gradient, in voxels of the level.
        regularity: λ.
        terms: what is descended on besides; see `Descent`.
        masked: see `Descent`.

    Raises:
        ValueError: if sigma or regularity is negative.
    """

    similarity: nn.Module
    sigma: float = 1.0
    regularity: float = 0.0
    terms: Sequence[Term] = ()
    masked: bool = field(default=False, kw_only=True)

    def on(self, level: Level, transformation: Transformation) -> BoundDescent:
        """The update for these images, or feature maps."""
        return self.descent.on(level, transformation)

    @property
    def descent(self) -> Descent:
        """The same as a `Descent`."""
        distance = FeatureSimilarity(self.similarity)
        return Descent(self.sigma, self.regularity, terms=self.terms, distance=distance, masked=self.masked)
