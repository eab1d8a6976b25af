"""GraDIRN: unrolled descent on an image similarity, with a learned regulariser."""

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from dio_lightning.losses import SSD, Objective
from dio_lightning.modules.refinement import Refinement
from dio_lightning.modules.unrolling import Unrolling
from dio_lightning.networks.blocks import Precision
from dio_lightning.updates import LearnedStep, PerLevel, SimilarityStep


class GraDIRN(Unrolling):
    """u ← u - τ_l s ∂D(F, M ∘ (id + u))/∂u + N_l(u, F, M ∘ (id + u)) (Qiu et al., GraDIRN, MICCAI 2022).

    The rest is `Unrolling`. Every level learns its own τ_l, from 0.5 / (steps of all levels + 1); s is a constant.

    Args:
        objective: the training loss of the last field.
        optimizer: trains the weights.
        scheduler: its learning rate.
        resolution: see `RegistrationModule`.
        similarity: D, of the steps, not of the objective; `SSD` by default, as in the public code.
        normalise: whether each sample's slope of D is divided by its root mean square, so that τ s is in voxels; such
            steps do not shrink at the optimum, and steps beyond those trained go astray.
        rate_scale: s; 10 suits the squared difference of images in [0, 1], 3 `LNCC`, 1 a normalised slope. One that is
            too large folds the field before training has begun.
        spatial_dims: 2 or 3.
        levels: see `Unrolling`.
        repeats: see `Unrolling`.
        width: see `Unrolling`.
        depth: see `Unrolling`.
        precision: see `Unrolling`.
        scale: see `Unrolling`.
        refine: see `RegistrationModule`.

    Raises:
        ValueError: as `Unrolling`.
    """

    def __init__(
        self,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        resolution: float = 1.0,
        similarity: nn.Module | None = None,
        normalise: bool = False,
        rate_scale: float = 10.0,
        spatial_dims: int = 3,
        levels: Sequence[int] = (4, 2, 1),
        repeats: Sequence[int] = (3, 3, 3),
        width: int = 32,
        depth: int = 5,
        precision: Precision = "float32",
        scale: float = 5.0,
        refine: Refinement | None = None,
    ) -> None:
        super().__init__(
            objective,
            optimizer,
            scheduler,
            resolution,
            spatial_dims,
            levels,
            repeats,
            width,
            depth,
            precision,
            scale,
            refine,
        )
        self.similarity = SSD() if similarity is None else similarity
        rate, update = 0.5 / (sum(repeats) + 1), self.layer.update
        assert isinstance(update, PerLevel)
        update.rules = nn.ModuleList(
            SimilarityStep(rule.network, self.similarity, rate, rate_scale, normalise, scale)
            for rule in update.rules
            if isinstance(rule, LearnedStep)
        )

    @property
    def title(self) -> str:
        """GraDIRN, and the similarity that its steps descend on."""
        return f"GraDIRN ({type(self.similarity).__name__})"
