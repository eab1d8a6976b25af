"""Instance optimisation: a displacement from anywhere, improved on the images of its own pair."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.features import FeaturePyramid, Intensity
from dio_lightning.fields import regrid, resize, spanning
from dio_lightning.implicit import Solution
from dio_lightning.layers import OptimizerLayer, Run
from dio_lightning.pair import Pair


class Refinement(nn.Module):
    """A layer of its own that goes on from a method's displacement, on features without weights.

    What the layer's finest level cannot show of the displacement is kept: the change alone is brought to the full grid.
    For the descent on local correlation that is usual after a network (Balakrishnan et al., VoxelMorph, TMI 2019):
    `ImageDescent(LNCC(5), regularity=0.25)`, `Adam(0.1)`, `Diffeomorphism`, 50 steps.

    Args:
        layer: what is solved; its transformation is one whose parameters are the displacement.
        features: of both images, as many levels as the layer has; by default the images as they are.

    Raises:
        ValueError: if levels and iterations differ in number, the features have weights, or the transformation has
            parameters that are no displacement.
    """

    def __init__(self, layer: OptimizerLayer, features: FeaturePyramid | None = None) -> None:
        super().__init__()
        features = Intensity((1,)) if features is None else features
        if len(layer.iterations) != len(features.levels):
            raise ValueError(
                f"refine.layer.iterations is {list(layer.iterations)}, expected {len(features.levels)} numbers, one "
                f"for each of the levels {list(features.levels)} of refine.features"
            )
        if any(True for _ in self.parameters()) or any(True for _ in features.parameters()):
            raise ValueError(f"refine.features is {type(features).__name__}, expected features without weights")
        if not layer.transformation.direct:
            raise ValueError(
                f"refine.layer.transformation is {type(layer.transformation).__name__}, whose parameters are no "
                "displacement: expected FreeForm or Diffeomorphism"
            )
        self.layer, self.features = layer, features

    def forward(self, pair: Pair, u: Float[Tensor, "b d *s"]) -> tuple[Float[Tensor, "b d *s"], list[Solution]]:
        """The improved displacement on the grid of the pair, both images of which lie there, and the solutions."""
        size = u.shape[2:]
        grids = self.features.grids(size)
        with torch.no_grad():
            images = self.features(pair["fixed"]), self.features(pair["moving"])
            solutions = self.layer(*images, grids, pair, Run(start=u.detach()))
            # u as the levels show it: what comes out of them where nothing is left to improve
            places = [spanning(size, size), *grids, spanning(size, grids[-1].size)]
            before = u.detach()
            for old, new in pairwise(places):
                before = regrid(before, old, new)
            return u + resize(solutions[-1].value - before, size), solutions
