"""VoxelMorph: the displacement in one step of a network."""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from dio_lightning.fields import resize
from dio_lightning.implicit import Solution
from dio_lightning.layers import Record, Run
from dio_lightning.losses import Objective
from dio_lightning.modules.base import RegistrationModule
from dio_lightning.modules.refinement import Refinement
from dio_lightning.pair import Pair
from dio_lightning.transformations import StationaryVelocity

Variant = Literal["displacement", "diffeomorphic"]


class VoxelMorph(RegistrationModule):
    """u = g(moving, fixed), or exp of it (Balakrishnan et al., IEEE TMI 38, 2019; Dalca et al., MedIA 57, 2019).

    The diffeomorphic variant takes the network's field for a stationary velocity on the grid of half the size, as the
    reference code does; there the objective's regularity is that of the displacement, where theirs is the velocity's.

    Args:
        network: (b, 2, *s) to (b, d, *s), the field in voxels.
        objective: the training loss.
        optimizer: trains the weights.
        scheduler: its learning rate.
        resolution: see `RegistrationModule`.
        variant: "displacement" or "diffeomorphic".
        refine: see `RegistrationModule`.

    Raises:
        ValueError: for any other variant.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        resolution: float = 1.0,
        variant: Variant = "displacement",
        refine: Refinement | None = None,
    ) -> None:
        super().__init__(objective, optimizer, scheduler, resolution, refine)
        if variant not in ("displacement", "diffeomorphic"):
            raise ValueError(f'variant must be "displacement" or "diffeomorphic", not {variant!r}')
        self.network, self.variant = network, variant

    @property
    def title(self) -> str:
        """VoxelMorph, and whether it is the diffeomorphic one."""
        return "VoxelMorph" if self.variant == "displacement" else "VoxelMorph (diffeomorphic)"

    def align(self, work: Pair, pair: Pair, run: Run = Run()) -> list[Solution]:
        """One evaluation of the network; its residual says nothing and is infinite."""
        self.expect_no_steps(run)
        u = self.network(torch.cat([work["moving"], work["fixed"]], 1))
        if self.variant == "diffeomorphic":
            half = [max(min(2, extent), (extent + 1) // 2) for extent in u.shape[2:]]
            u = resize(StationaryVelocity(7).displacement(resize(u, half), half), u.shape[2:])
        if run.observe is not None:
            run.observe(Record(0, 1, u.detach(), None, lambda z: z))
        return [Solution.of_one_step(u)]
