"""Unrolling: a network applied a fixed number of times a level, trained through all of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from dio_lightning.fields import resample, resize
from dio_lightning.implicit import Never, Picard, Solution, UnrolledAdjoint, fixed_point
from dio_lightning.losses import Objective
from dio_lightning.modules.base import RegistrationModule
from dio_lightning.networks import CNN
from dio_lightning.networks.blocks import Precision
from dio_lightning.pair import Pair
from dio_lightning.transformations import FreeForm
from dio_lightning.updates import LearnedStep


class Unrolling(RegistrationModule):
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
    ) -> None:
        super().__init__(objective, optimizer, scheduler, resolution)
        levels, repeats = list(levels), list(repeats)
        if not levels or levels[-1] != 1 or sorted(set(levels), reverse=True) != levels:
            raise ValueError(f"levels is {levels}, expected whole numbers that fall to 1, such as [4, 2, 1]")
        if len(repeats) != len(levels) or min(repeats) < 0:
            raise ValueError(f"repeats is {repeats}, expected {len(levels)} numbers of at least 0, one a level")
        self.levels, self.repeats = levels, repeats
        networks = (CNN(spatial_dims + 2, spatial_dims, None, width, depth, precision) for _ in levels)
        self.updates = nn.ModuleList(LearnedStep(network, scale) for network in networks)

    @property
    def steps(self) -> int:
        """Steps at the finest level."""
        return self.repeats[-1]

    @steps.setter
    def steps(self, steps: int) -> None:
        if steps < 0:
            raise ValueError(f"steps is {steps}, expected at least 0")
        self.repeats[-1] = steps

    def forward(self, fixed: Float[Tensor, "b c *s"], moving: Float[Tensor, "b c *s"]) -> list[Solution]:
        """One solution per level, coarse to fine; every step is taken and none converges."""
        u, solutions = None, []
        for level, repeats, update in zip(self.levels, self.repeats, self.updates, strict=True):
            size = [max(min(2, extent), round(extent / level)) for extent in fixed.shape[2:]]
            assert isinstance(update, LearnedStep)
            solution = fixed_point(
                update.on(resample(fixed, size), resample(moving, size), FreeForm()),
                fixed.new_zeros(len(fixed), len(size), *size) if u is None else resize(u, size),
                Picard(),
                UnrolledAdjoint(),
                max_steps=repeats,
                stop=Never(),
                observe=self.observe if level == 1 else None,
            )
            u = solution.value
            solutions.append(solution)
        return solutions

    def _terms(self, pair: Pair, solutions: Sequence[Solution]) -> dict[str, Tensor]:
        """The objective's terms at the last field."""
        return super()._terms(pair, solutions[-1:])
