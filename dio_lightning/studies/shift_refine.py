"""The instance optimisation of the shift study: the refinement that any method may have, with its usual settings."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from dio_lightning import modules
from dio_lightning.features import Intensity
from dio_lightning.fields import on_one_grid
from dio_lightning.implicit import Adam, Never
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import LNCC
from dio_lightning.pair import Pair
from dio_lightning.transformations import Diffeomorphism, Transformation
from dio_lightning.updates import ImageDescent


@dataclass(frozen=True)
class Refinement:
    """Descends on 1 - LNCC + λ diffusion from a given displacement, with Adam; see `modules.Refinement`.

    Args:
        steps: how many; 0 leaves the displacement as it is.
        window: of LNCC, in voxels.
        regularity: λ, the weight of `Diffusion` ("sum").
        rate: of Adam, in voxels.
        sigma: smoothing of the gradient, in voxels.
        resolution: the grid is this whole factor coarser than the pair's; what it cannot show of u is kept.
        transformation: how a step is applied, `FreeForm` or `Diffeomorphism`.

    Raises:
        ValueError: for steps below 0, a resolution that is no whole number of at least 1, or a transformation with
            other parameters.
    """

    steps: int = 50
    window: int = 5
    regularity: float = 0.25
    rate: float = 0.1
    sigma: float = 1.0
    resolution: float = 1
    transformation: Transformation = field(default_factory=Diffeomorphism)

    def __post_init__(self) -> None:
        if self.steps < 0 or self.resolution < 1 or self.resolution != round(self.resolution):
            raise ValueError(
                f"steps is {self.steps} and resolution {self.resolution}, expected at least 0 and a whole number from 1"
            )
        self.module()

    def module(self) -> modules.Refinement:
        """The layer, with every sample taking all steps."""
        update = ImageDescent(LNCC(self.window), self.sigma, self.regularity)
        layer = OptimizerLayer(
            [self.steps], update, Adam(self.rate), self.transformation, stop=Never(), field_sigma=0.0
        )
        return modules.Refinement(layer, Intensity((round(self.resolution),)))

    def __call__(self, pair: Pair, u: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
        """The displacement on the pair's grid after all steps."""
        return self.module()(on_one_grid(pair), u)[0] if self.steps else u
