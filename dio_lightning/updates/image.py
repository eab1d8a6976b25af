"""Classical registration by any image similarity: f is one smoothed descent step on it."""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.level import Level
from dio_lightning.transformations import Transformation
from dio_lightning.updates.descent import BoundUpdate, SmoothedRule
from dio_lightning.updates.similarity import similarity_slope


@dataclass(frozen=True)
class ImageDescent(SmoothedRule):
    """f(z) = z - S_σ ∂/∂z [ N D(moving ∘ (id + u(z)), fixed) + λ R(u(z)) ], R the diffusion energy, N the voxels.

    D is a mean over voxels and R a sum, so λ is the weight of `Diffusion` ("sum") beside D in a training objective.
    With `Intensity` features it is registration of the images, by local correlation for `LNCC` (Avants et al., MedIA
    12, 2008). Samples of a batch do not see each other.

    Args:
        similarity: (warped, fixed) to a scalar, smaller is better: `LNCC`, `SSD`.
        sigma: smoothing S_σ of the gradient, in voxels of the level.
        regularity: λ.

    Raises:
        ValueError: if sigma or regularity is negative.
    """

    similarity: nn.Module
    sigma: float = 1.0
    regularity: float = 0.0

    def on(self, level: Level, transformation: Transformation) -> "BoundImageDescent":
        """The update for these images, or feature maps."""
        return BoundImageDescent(self, level, transformation)


class BoundImageDescent(BoundUpdate):
    """The update of `ImageDescent` for two images, or feature maps."""

    settings: ImageDescent

    def slope(self, u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
        """Gradient of the energy with respect to the displacement; keeps the energy."""
        energy, slope = self.plain(self.fixed, self.moving, u)
        return self._with_roughness(u, energy, self.quiet(slope))

    def plain(self, fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and slope of the similarity, each sample on its own."""
        seen = _Seen(self.settings.similarity)
        samples = zip(fixed.split(1), moving.split(1), u.split(1), strict=True)
        slope = torch.cat([similarity_slope(seen, *sample) for sample in samples])
        return torch.stack(seen.values) * prod(u.shape[2:]), slope


class _Seen(nn.Module):
    """A similarity that keeps what it returned: its gradient is asked for elsewhere, the energy here."""

    def __init__(self, similarity: nn.Module) -> None:
        super().__init__()
        self.similarity, self.values = similarity, list[Tensor]()

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        value = self.similarity(warped, fixed)
        self.values.append(value.detach())
        return value
