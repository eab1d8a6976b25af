"""Unrolling: a network applied a fixed number of times a level, trained through all of them."""

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from dio_lightning.fields import resample
from dio_lightning.implicit import Never, Picard, Solution, UnrolledAdjoint
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import Objective
from dio_lightning.modules.iterative import IterativeModule, Pyramids
from dio_lightning.modules.refinement import Refinement
from dio_lightning.networks import CNN
from dio_lightning.networks.blocks import Precision
from dio_lightning.pair import Pair
from dio_lightning.transformations import FreeForm
from dio_lightning.updates import LearnedStep, PerLevel


class Unrolling(IterativeModule):
    """u ← u + N_l(u, F, M ∘ (id + u)), a few times on each level of an image pyramid: GraDIRN without its similarity.

    The pyramid is by linear interpolation; u starts at 0 on the coarsest grid. A level repeats one network, each level
    has its own. Gradients pass through every step, and only the last field is trained.

    Args:
        objective: the training loss of the last field.
        optimizer: trains the weights.
        scheduler: its learning rate.
        resolution: see `RegistrationModule`.
        spatial_dims: 2 or 3.
        levels: how many times coarser each grid is, coarse to fine, the last 1.
        repeats: steps at each level.
        width: channels of the networks (`CNN`).
        depth: convolutions of each network.
        precision: of the convolutions, "float32" or "bfloat16".
        scale: displacements enter the networks divided by this many voxels of the level.
        refine: see `RegistrationModule`.

    Raises:
        ValueError: if levels do not fall to 1, or repeats do not match them; as `CNN` and `LearnedStep`.
    """

    def __init__(
        self,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        resolution: float = 1.0,
        spatial_dims: int = 3,
        levels: Sequence[int] = (4, 2, 1),
        repeats: Sequence[int] = (3, 3, 3),
        width: int = 32,
        depth: int = 5,
        precision: Precision = "float32",
        scale: float = 5.0,
        refine: Refinement | None = None,
    ) -> None:
        super().__init__(objective, optimizer, scheduler, resolution, refine)
        levels, repeats = list(levels), list(repeats)
        if not levels or levels[-1] != 1 or sorted(set(levels), reverse=True) != levels:
            raise ValueError(f"levels is {levels}, expected whole numbers that fall to 1, such as [4, 2, 1]")
        if len(repeats) != len(levels) or min(repeats) < 0:
            raise ValueError(f"repeats is {repeats}, expected {len(levels)} numbers of at least 0, one a level")
        self.levels = levels
        networks = (CNN(spatial_dims + 2, spatial_dims, None, width, depth, precision) for _ in levels)
        self.layer = OptimizerLayer(
            repeats,
            PerLevel([LearnedStep(network, scale) for network in networks]),
            Picard(),
            FreeForm(),
            UnrolledAdjoint(),
            Never(),
            field_sigma=0.0,
            clamp_quantile=1.0,
            through_levels=True,
        )

    def pyramids(self, work: Pair, pair: Pair) -> Pyramids:
        """Both images at every level."""
        extents = work["fixed"].shape[2:]
        sizes = [[max(min(2, extent), round(extent / level)) for extent in extents] for level in self.levels]
        fixed, moving = ([resample(image, size) for size in sizes] for image in (work["fixed"], work["moving"]))
        return Pyramids(fixed, moving)

    def _terms(self, pair: Pair, solutions: Sequence[Solution]) -> dict[str, Tensor]:
        """The objective's terms at the last field."""
        return super()._terms(pair, solutions[-1:])
