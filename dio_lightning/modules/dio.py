"""Deep implicit optimisation: learned features, then the displacement that best aligns them."""

from collections.abc import Sequence
from math import inf
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from dio_lightning.features import FeaturePyramid, Intensity, Posteriors
from dio_lightning.fields import alike_voxels, downsample, fixed_to_moving, seen_from, spanning
from dio_lightning.implicit import Solution
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import Objective, at_size, inverse_consistency
from dio_lightning.modules.iterative import IterativeModule, Pyramids
from dio_lightning.modules.refinement import Refinement
from dio_lightning.pair import Pair, both_ways
from dio_lightning.transformations import Affine

EPS = 1e-6
"""Added to probabilities before their logarithm."""


class DIO(IterativeModule):
    """A feature pyramid per image, shared weights, and an optimizer layer that aligns them (Jena et al., 2024).

    With `Intensity` or `MIND` features it is image-space optimisation; with zero iterations, no registration.

    Args:
        features: the pyramid.
        layer: update, solver, transformation and adjoint, the same in training, validation and test.
        objective: the training loss, taken at every open level.
        optimizer: trains the weights.
        scheduler: its learning rate.
        resolution: see `RegistrationModule`.
        opens: optimizer step of the training at which each level opens, coarse to fine; levels not yet open are neither
            computed nor scored. All are open from the start by default.
        refine: see `RegistrationModule`.
        anatomy: a loss of (logarithm of the features, label) at every open level, for features that are probabilities
            (`Posteriors`): `DiceCrossEntropy`, or MONAI's `DiceCELoss` with `to_onehot_y` and `softmax`. Without an
            objective it trains alone, and training solves nothing.
        anatomy_weight: its weight beside the objective.
        symmetric: every training step registers its pairs both ways; the features are computed once.
        consistency: weight of `inverse_consistency` of the two ways beside the objective, at every level, in training:
            validation solves one way, and its loss is that of the objective whatever this weight is.
        level_weights: what the objective counts for at each level, coarse to fine; the mean over the open levels by
            default.
        voxel, max_voxel: see `RegistrationModule`.

    Raises:
        ValueError: if iterations, levels, opens and weights differ in number, or opens does not start at 0 and rise, or
            a weight is below 0 or that of the finest level 0, or features that are no `Posteriors` have a loss, or
            consistency is below 0, or above it without symmetric.
    """

    open_levels: Tensor

    def __init__(
        self,
        features: FeaturePyramid,
        layer: OptimizerLayer,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        resolution: float = 1.0,
        opens: Sequence[int] | None = None,
        refine: Refinement | None = None,
        anatomy: nn.Module | None = None,
        anatomy_weight: float = 1.0,
        symmetric: bool = False,
        consistency: float = 0.0,
        level_weights: Sequence[float] | None = None,
        voxel: float | None = None,
        max_voxel: float | None = None,
    ) -> None:
        super().__init__(objective, optimizer, scheduler, resolution, refine, voxel, max_voxel)
        levels = features.levels
        if len(layer.iterations) != len(levels):
            raise ValueError(
                f"layer.iterations {list(layer.iterations)} has {len(layer.iterations)} entries, expected "
                f"{len(levels)}, one for each of features.levels {list(levels)}"
            )
        opens = [0] * len(levels) if opens is None else list(opens)
        if len(opens) != len(levels) or opens[0] != 0 or sorted(opens) != opens:
            raise ValueError(
                f"opens is {opens}, expected {len(levels)} rising steps that start at 0, one for each of "
                f"features.levels {list(levels)}"
            )
        weights = [1.0] * len(levels) if level_weights is None else list(level_weights)
        if len(weights) != len(levels) or min(weights) < 0 or weights[-1] == 0:
            raise ValueError(
                f"level_weights is {weights}, expected {len(levels)} numbers of at least 0, one for each of "
                f"features.levels {list(levels)}, the finest above 0"
            )
        if anatomy is not None and not isinstance(features, Posteriors):
            raise ValueError(
                f"features are {type(features).__name__}, expected Posteriors, as they have a loss (anatomy)"
            )
        if not 0 <= consistency < inf or (consistency and not symmetric):
            raise ValueError(f"consistency is {consistency}, expected at least 0, and above it with symmetric alone")
        self.features, self.layer, self.opens = features, layer, opens
        self.anatomy, self.anatomy_weight, self.symmetric = anatomy, anatomy_weight, symmetric
        self.consistency, self.level_weights = consistency, weights
        # kept in the checkpoint: what training never opened, a test must not use
        self.register_buffer("open_levels", torch.tensor(opens.count(0)))

    @property
    def title(self) -> str:
        """DIO, or the features where nothing is learned; identity without iterations, affine for raw intensities."""
        if not any(self.layer.iterations):
            return "identity"
        if isinstance(self.features, Intensity) and isinstance(self.layer.transformation, Affine):
            return "affine"
        return "DIO" if any(True for _ in self.features.parameters()) else type(self.features).__name__

    @property
    def steps(self) -> int:
        """Iterations of the finest open level.

        Raises:
            ValueError: when set, if no level has any: that is no registration.
        """
        return self.layer.iterations[int(self.open_levels) - 1]

    @steps.setter
    def steps(self, steps: int) -> None:
        if not any(self.layer.iterations):
            raise ValueError(f"{self.title} has no iterations at any level, it cannot take {steps} steps")
        iterations = list(self.layer.iterations)
        iterations[int(self.open_levels) - 1] = steps
        self.layer.iterations = tuple(iterations)

    def keeps_grid(self, pair: Pair) -> bool:
        """True if both images of all pairs have the same axes and, to a tenth, the same voxels, wherever they lie.

        Learned features are neither equivariant nor blind to the size of a voxel: of two images with unlike voxels they
        would be unlike too (experiments/README.md has the numbers), so such a moving image is resampled.
        """
        return bool(alike_voxels(pair).all())

    def pyramids(self, work: Pair, pair: Pair) -> Pyramids:
        """Features at the open levels; those of a moving image that keeps its grid are brought to the fixed one."""
        levels = self.features.levels[: int(self.open_levels)]
        grids = self.features.grids(work["fixed"].shape[2:], levels)
        matrix, kept = fixed_to_moving(pair), alike_voxels(pair)
        if matrix is None or not bool(kept.any()):
            return Pyramids(*self._of_both(work, levels), grids)
        image = downsample(pair["moving"], self._size(pair["moving"], pair.get("spacing")))
        of_fixed, of_moving = (
            spanning(x.shape[2:], small.shape[2:]).matrix().to(matrix)
            for x, small in ((pair["fixed"], work["fixed"]), (pair["moving"], image))
        )
        between = of_moving.inverse() @ matrix @ of_fixed
        theirs = self.features.grids(image.shape[2:], levels)
        moving = [
            seen_from(m, b.matrix().inverse().to(matrix) @ between @ a.matrix().to(matrix), a.size, padding="border")
            for m, a, b in zip(self.features(image, levels), grids, theirs, strict=True)
        ]
        if not bool(kept.all()):
            both = zip(moving, self.features(work["moving"], levels), strict=True)
            moving = [torch.where(kept.view(-1, *[1] * (own.ndim - 1)), own, other) for own, other in both]
        return Pyramids(self.features(work["fixed"], levels), moving, grids)

    def check_trainable(self) -> None:
        """See `RegistrationModule`; a loss of the features is enough to train with."""
        if self.anatomy is None:
            super().check_trainable()

    def _learn(self, pair: Pair) -> tuple[dict[str, Tensor], list[Solution]]:
        """The objective's terms and the solutions, of both directions if symmetric, and the loss of the features.

        Without an objective nothing is solved.
        """
        work = self.work(pair)
        pyramids = self.pyramids(work, pair)
        features = {} if self.anatomy is None else {"features": self._anatomy(self.anatomy, pyramids, work)}
        if self.objective is None:
            return {"loss": self.anatomy_weight * features["features"], **features}, []
        if self.symmetric:
            sides = list(zip(pyramids.fixed, pyramids.moving, strict=True))
            pyramids = Pyramids([torch.cat(x) for x in sides], [torch.cat(x[::-1]) for x in sides], pyramids.grids)
            work = both_ways(work)
        solutions = self.layer(*pyramids, work)
        terms = self._terms(work, solutions, self.symmetric)
        for value in features.values():
            terms["loss"] = terms["loss"] + self.anatomy_weight * value
        return terms | features, solutions

    def _terms(self, pair: Pair, solutions: Sequence[Solution], twofold: bool = False) -> dict[str, Tensor]:
        """The objective's terms, averaged over the open levels by their weights; of a pair that is `both_ways` more."""
        assert self.objective is not None
        levels = [self.objective(at_size(pair, s.value.shape[2:]), s.value) for s in solutions]
        if self.consistency and twofold:
            for terms, solution in zip(levels, solutions, strict=True):
                terms["consistency"] = inverse_consistency(*solution.value.chunk(2))
                terms["loss"] = terms["loss"] + self.consistency * terms["consistency"]
        weights = self.level_weights[: len(levels)]
        if sum(weights) == 0:  # the levels that count are not yet open
            weights = [1.0] * len(levels)
        return {
            name: torch.stack([w * terms[name] for w, terms in zip(weights, levels, strict=True)]).sum() / sum(weights)
            for name in levels[0]
        }

    def _anatomy(self, loss: nn.Module, pyramids: Pyramids, work: Pair) -> Tensor:
        """The loss of the features' logarithms beside the labels, the mean over both images and the levels.

        Raises:
            ValueError: if the pair has no labels.
        """
        if "fixed_label" not in work or "moving_label" not in work:
            raise ValueError("The loss of the features needs labels, but the pair has no fixed_label and moving_label.")
        assert isinstance(self.features, Posteriors)
        losses, sides = [], [self.features.probabilities(x) for x in (pyramids.fixed, pyramids.moving)]
        for fixed, moving, grid in zip(*sides, pyramids.grids or (), strict=True):
            matrix = grid.matrix().to(fixed.device).expand(len(fixed), 4, 4)
            for features, label in ((fixed, work["fixed_label"]), (moving, work["moving_label"])):
                at_level = seen_from(label, matrix, grid.size, "nearest", "border")
                losses.append(loss((features + EPS).log(), at_level))
        return torch.stack(losses).mean()

    def _of_both(self, work: Pair, levels: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Features of both images of one grid; in training as one batch, which is faster and needs no more memory."""
        images = work["fixed"], work["moving"]
        if not torch.is_grad_enabled():
            return self.features(images[0], levels), self.features(images[1], levels)
        both = [x.chunk(2) for x in self.features(torch.cat(images), levels)]
        return [fixed for fixed, _ in both], [moving for _, moving in both]

    def setup(self, stage: str) -> None:
        """Levels that open late have weights without a gradient, which `ddp` must be told."""
        strategy = self.trainer.strategy
        if stage == "fit" and self.opens[-1] > 0 and isinstance(strategy, DDPStrategy):
            strategy._ddp_kwargs["find_unused_parameters"] = True

    def on_fit_start(self) -> None:
        """Raises ValueError for a moving average that would average the number of open levels too."""
        averages = [x for x in cast(Any, self.trainer).callbacks if isinstance(x, WeightAveraging)]
        if self.opens[-1] > 0 and any(getattr(x, "_use_buffers", True) for x in averages):
            raise ValueError(
                "the moving average of the weights has use_buffers true, expected false: levels open in time, and an "
                "average of how many are open would keep the last ones shut"
            )

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Opens the levels whose step has come."""
        self.open_levels.fill_(sum(step <= self.global_step for step in self.opens))
