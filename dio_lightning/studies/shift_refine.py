"""Instance optimisation: a displacement from anywhere, improved on the images of its own pair."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import on_one_grid, resize
from dio_lightning.implicit import Adam, Never
from dio_lightning.layers import OptimizerLayer, Run
from dio_lightning.losses import LNCC, at_size
from dio_lightning.pair import Pair
from dio_lightning.transformations import Diffeomorphism, Transformation
from dio_lightning.updates import ImageDescent


@dataclass(frozen=True)
class Refinement:
    """Descends on 1 - LNCC + λ diffusion from a given displacement, with Adam.

    Args:
        steps: how many; 0 leaves the displacement as it is.
        window: of LNCC, in voxels.
        regularity: λ, the weight of `Diffusion` ("sum").
        rate: of Adam, in voxels.
        sigma: smoothing of the gradient, in voxels.
        resolution: the grid is this factor coarser than the pair's; what such a grid cannot show of u is kept.
        transformation: how a step is applied, `FreeForm` or `Diffeomorphism`.

    Raises:
        ValueError: for steps below 0, a resolution below 1, or a transformation with other parameters.
    """

    steps: int = 50
    window: int = 5
    regularity: float = 0.25
    rate: float = 0.1
    sigma: float = 1.0
    resolution: float = 1.0
    transformation: Transformation = field(default_factory=Diffeomorphism)

    def __post_init__(self) -> None:
        if self.steps < 0 or self.resolution < 1:
            raise ValueError(f"steps is {self.steps} and resolution {self.resolution}, expected at least 0 and 1")
        if not self.transformation.direct:
            raise ValueError(f"{self.transformation} has parameters that are no displacement, expected FreeForm")

    def __call__(self, pair: Pair, u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
        """The displacement on the pair's grid after all steps; every sample takes all of them."""
        if self.steps == 0:
            return u
        size = [max(min(2, extent), round(extent / self.resolution)) for extent in u.shape[2:]]
        work, start = at_size(on_one_grid(pair), size), resize(u, size)
        update = ImageDescent(LNCC(self.window), self.sigma, self.regularity)
        layer = OptimizerLayer(
            [self.steps], update, Adam(self.rate), self.transformation, stop=Never(), field_sigma=0.0
        )
        with torch.no_grad():
            found = layer([work["fixed"]], [work["moving"]], pair=work, run=Run(start=start))[-1].value
        return found if self.resolution == 1 else u + resize(found - start, u.shape[2:])
