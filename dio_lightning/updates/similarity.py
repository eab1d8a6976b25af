"""Steps that see the slope of an image similarity: GraDIRN's update."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.fields import warp
from dio_lightning.implicit.batch import norm, spread
from dio_lightning.losses import slope_of
from dio_lightning.updates.learned import LearnedStep


def similarity_slope(
    similarity: nn.Module,
    fixed: Float[Tensor, "b c *s"],
    moving: Float[Tensor, "b c *s"],
    u: Float[Tensor, "b d *s"],
    normalise: bool = False,
) -> Float[Tensor, "b d *s"]:
    """∂D/∂u of D = similarity(moving ∘ (id + u), fixed), a mean over the batch, times the number of its voxels.

    So a voxel's slope depends neither on the size of the image nor on the batch. `normalise` divides each sample's by
    its root mean square. Where gradients are enabled and u has one, the slope can be differentiated; where they are
    not, in inference mode too, it is computed all the same.
    """
    _, slope = slope_of(lambda at, fixed, moving: similarity(warp(moving, at), fixed), u, fixed, moving)
    slope = slope * len(u)
    if not normalise:
        return slope
    root = norm(slope) / prod(slope.shape[1:]) ** 0.5
    # the floor keeps images that agree from being pushed by their rounding errors
    return slope / spread(root.clamp_min(1e-6), slope)


class SimilarityStep(LearnedStep):
    """f(z) = z - τ s ∂D/∂u + g(u / scale, moving ∘ (id + u), fixed), τ learned (Qiu et al., GraDIRN, MICCAI 2022).

    D is `similarity_slope`'s. The network's sign is free, so it is added here as in `LearnedStep`.

    Args:
        network: (b, d + 2, *s) to (b, d, *s), a step in voxels.
        similarity: (warped, fixed) to a scalar, smaller is better, twice differentiable: `SSD`, `LNCC`.
        rate: τ to start from.
        rate_scale: s, a constant; the optimizer moves the product τ s this many times faster than τ.
        normalise: whether the slope is divided by its root mean square, so that τ s is in voxels.
        scale: displacements enter the network divided by this many voxels.

    Raises:
        ValueError: if scale is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        similarity: nn.Module,
        rate: float = 0.05,
        rate_scale: float = 10.0,
        normalise: bool = False,
        scale: float = 5.0,
    ) -> None:
        super().__init__(network, scale)
        self.similarity, self.rate_scale, self.normalise = similarity, rate_scale, normalise
        self.rate = nn.Parameter(torch.tensor(float(rate)))

    def step(
        self, u: Float[Tensor, "b d *s"], fixed: Float[Tensor, "b c *s"], moving: Float[Tensor, "b c *s"]
    ) -> Float[Tensor, "b d *s"]:
        """The step, in voxels."""
        slope = similarity_slope(self.similarity, fixed, moving, u, self.normalise)
        return super().step(u, fixed, moving) - self.rate * self.rate_scale * slope
