"""DIO's update, preconditioned by each voxel's Gauss-Newton block."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.implicit.batch import spread
from dio_lightning.level import Level
from dio_lightning.losses import FeatureDistance
from dio_lightning.ops import match, match_blocks
from dio_lightning.transformations import Transformation
from dio_lightning.updates.descent import BoundDescent, Descent


@dataclass(frozen=True)
class GaussNewton(Descent):
    """f(z) = z - S_σ (H + (λ var F + κ r²) I)⁻¹ ∂E/∂u, H = 2/C Σ_c ∇M_c ∇M_cᵀ, every vector at most `max_step`.

    The block is held constant when f is differentiated (the Gauss-Newton form of the implicit gradient). A step is in
    voxels whatever the scale of the features, so Picard is its solver. It needs a sixth of Adam's iterations.
    The blocks are those of the feature distance, the slope is that of all terms: strong ones need a solver with a rate.

    Args:
        damping: λ, relative to the variance of the fixed features (times 2, as H is).
        residual_damping: κ, which shortens steps where features disagree whatever the displacement.
        max_step: longest vector of a step, in voxels.
    """

    damping: float = 0.01
    residual_damping: float = 0.1
    max_step: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.normalise or (isinstance(self.distance, FeatureDistance) and not self.distance.normalise):
            raise ValueError("GaussNewton has no scale to leave out: normalise must be true, False is for Descent")
        if self.distance is not None and not isinstance(self.distance, FeatureDistance):
            raise ValueError(f"GaussNewton takes its blocks from FeatureDistance, not {type(self.distance).__name__}")
        if self.masked:
            raise ValueError("GaussNewton leaves no voxels out of its blocks: masked is for Descent")
        if self.damping <= 0 or self.residual_damping < 0 or self.max_step <= 0:
            raise ValueError(
                f"damping is {self.damping}, residual_damping {self.residual_damping}, max_step {self.max_step}: "
                "expected a positive damping and step, and a residual damping of at least 0"
            )

    def on(self, level: Level, transformation: Transformation) -> "BoundGaussNewton":
        """The update for these features.

        Raises:
            ValueError: for a transformation whose parameters are not the displacement, which the blocks belong to.
        """
        if not transformation.direct:
            raise ValueError(
                f"GaussNewton needs a transformation whose parameters are the displacement, not {transformation}"
            )
        return BoundGaussNewton(self, level, transformation)


class BoundGaussNewton(BoundDescent):
    """The preconditioned update for two feature maps."""

    settings: GaussNewton

    @property
    def repeats(self) -> bool:
        """As its terms; the blocks and their solution are the same operations at every call."""
        return super().repeats

    def direction(self, z: Tensor) -> Tensor:
        """The damped Gauss-Newton step, before smoothing."""
        part = self._matched
        value, slope, block, residual = match_blocks(part.fixed, part.moving, z)
        if torch.is_grad_enabled():
            value, slope = match(part.fixed, part.moving, z)
        settings, scale = self.settings, spread(self.scale.detach(), z)
        damping = settings.damping * 2 + settings.residual_damping * residual / scale
        block = block / scale * self.terms[0].weight
        step = -solve_blocks(block, damping, self._total(z, part.scaled(value, slope)))
        length = step.detach().square().sum(1, keepdim=True).sqrt()
        return step * (settings.max_step / length.clamp(min=settings.max_step))


def solve_blocks(
    block: Float[Tensor, "b k *s"], damping: Float[Tensor, "b 1 *s"], right: Float[Tensor, "b d *s"]
) -> Float[Tensor, "b d *s"]:
    """(H + damping I)⁻¹ right at every voxel, H given by its upper triangle; Gauss elimination, any d."""
    d = right.shape[1]
    pairs = [(i, j) for i in range(d) for j in range(i, d)]
    matrix = {pair: block[:, k] for k, pair in enumerate(pairs)}
    for i in range(d):
        matrix[i, i] = matrix[i, i] + damping[:, 0]
    x = list(right.unbind(1))
    for i in range(d):
        for j in range(i + 1, d):
            factor = matrix[i, j] / matrix[i, i]
            for k in range(j, d):
                matrix[j, k] = matrix[j, k] - factor * matrix[i, k]
            x[j] = x[j] - factor * x[i]
    for i in reversed(range(d)):
        for j in range(i + 1, d):
            x[i] = x[i] - matrix[i, j] * x[j]
        x[i] = x[i] / matrix[i, i]
    return torch.stack(x, 1)
