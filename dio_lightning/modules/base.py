"""What every method shares: a pair in, a displacement out, one step for training and evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Self

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor

from dio_lightning.errors import times
from dio_lightning.fields import on_one_grid, resize
from dio_lightning.implicit import Solution
from dio_lightning.implicit.solution import expect_solutions
from dio_lightning.layers import Run
from dio_lightning.losses import Objective, at_size
from dio_lightning.modules.refinement import Refinement
from dio_lightning.modules.reporting import ReportedSteps
from dio_lightning.modules.restoring import migrate, restored
from dio_lightning.pair import Pair


class RegistrationModule(ReportedSteps):
    """Pair in, displacement out; a subclass's `forward` says how it is found.

    What is not finite never reaches a weight (`FiniteSteps`).

    Args:
        objective: the training loss; evaluation logs it too where the pair has what it needs.
        optimizer: trains the weights.
        scheduler: its learning rate, stepped once an epoch.
        resolution: the method works on images and labels whose grid is this factor coarser; its displacement is
            brought to the full grid, where every score is taken.
        refine: instance optimisation that goes on from the method's displacement in test and prediction, on the full
            grid; not in training, nor in validation, which says how far the training is.
        voxel: in place of a resolution, the size in mm of the voxels that the method works on, along every axis: those
            it was trained on, whatever the images' own are. Images without a spacing are taken to have them.
        max_voxel: in place of either, the longest side in mm of a voxel that the method works on: thick slices are
            divided, finer images stay as they are.

    Raises:
        ValueError: if the resolution is below 1, a voxel's side not positive, or more than one of the three given.
    """

    def __init__(
        self,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        resolution: float = 1.0,
        refine: Refinement | None = None,
        voxel: float | None = None,
        max_voxel: float | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= resolution < torch.inf:
            raise ValueError(f"resolution is {resolution}, expected a factor of at least 1")
        sides = [side for side in (voxel, max_voxel) if side is not None]
        if not all(0 < side < torch.inf for side in sides) or len(sides) + (resolution != 1) > 1:
            raise ValueError(
                f"voxel is {voxel}, max_voxel {max_voxel} and resolution {resolution}, expected one of them, above 0"
            )
        self.objective, self.optimizer, self.scheduler = objective, optimizer, scheduler
        self.resolution, self.refine, self.voxel, self.max_voxel = resolution, refine, voxel, max_voxel
        self.register_load_state_dict_pre_hook(migrate)

    def forward(self, fixed: Float[Tensor, "b c *s"], moving: Float[Tensor, "b c *s"]) -> list[Solution]:
        """Solutions coarse to fine, each with a displacement in voxels of its own grid; the last is the answer."""
        pair = Pair(fixed=fixed, moving=moving)
        return self.align(pair, pair)

    def align(self, work: Pair, pair: Pair, run: Run = Run()) -> list[Solution]:
        """The solutions, coarse to fine, for a pair on the working grid; `pair` is what it was made from.

        A subclass has this, or a `forward` of its own.

        Raises:
            ValueError: for a run that the method cannot be given: steps or a start where it takes no steps.
        """
        if type(self).forward is RegistrationModule.forward:
            raise NotImplementedError(f"{type(self).__name__} has neither align nor forward")
        self.expect_no_steps(run)
        return self(work["fixed"], work["moving"])

    @property
    def title(self) -> str:
        """What tables call this method."""
        return type(self).__name__

    @property
    def steps(self) -> int:
        """Steps at the finest level; may be set to other than was trained.

        Raises:
            ValueError: when set, if the method takes no steps.
        """
        return 1

    @steps.setter
    def steps(self, steps: int) -> None:
        raise ValueError(f"{self.title} finds its displacement in one step, it cannot take {steps}")

    def expect_no_steps(self, run: Run) -> None:
        """Raises ValueError if a run asks a method that takes no steps for some, or for a start."""
        if run.start is not None or run.steps is not None:
            asked = "start from a displacement" if run.start is not None else f"take {run.steps} steps"
            raise ValueError(f"{self.title} finds its displacement in one step, it cannot {asked}")

    def keeps_grid(self, pair: Pair) -> bool:
        """Whether the moving image is registered on its own grid; where it is not the fixed one, it is resampled."""
        return "moving_affine" not in pair

    def register(self, pair: Pair, run: Run = Run()) -> Float[Tensor, "b d *s"]:
        """The displacement on the pair's grid, refined where there is a refinement.

        Raises:
            ValueError: as `align`.
        """
        return self._refined(pair, self._solve(pair, run))[1]

    def work(self, pair: Pair) -> Pair:
        """The pair on the working grid, on which the moving image lies too."""
        return at_size(on_one_grid(pair), self._size(pair["fixed"], pair.get("spacing")))

    @_restricted_classmethod  # as Lightning's: called on a module, it would leave that module untrained
    def load_from_checkpoint(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        checkpoint_path: str | PathLike[str],
        map_location: Any = None,  # noqa: ANN401
        *,
        strict: bool = True,
        weights_only: bool = True,
        **arguments: Any,  # noqa: ANN401
    ) -> Self:
        """The trained module, built from the config that the checkpoint carries.

        Args:
            checkpoint_path: a checkpoint that `fit` or a Trainer wrote.
            map_location: where its tensors go, as `torch.load` takes it; on the CPU by default.
            strict: whether weights may neither be missing nor unknown.
            weights_only: whether the file may hold plain data alone; one that may hold objects may run any program.
            **arguments: of the constructor, in place of the config's; all of them if there is no config.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a whole checkpoint, one of another method, or one without config and not all arguments.
        """
        return restored(cls, checkpoint_path, map_location or "cpu", strict, weights_only, arguments)

    def examine(self, data: LightningDataModule, stage: str) -> None:
        """Look at what a command needs besides its data; the command line asks before it writes anything.

        Raises:
            FileNotFoundError, ValueError: if something is missing or not as expected.
        """

    def check_trainable(self) -> None:
        """Raises ValueError if there is nothing to train, or nothing to train it with."""
        if not any(p.requires_grad for p in self.parameters()):
            raise ValueError(f"{type(self).__name__} has no weights to train: run test or predict instead of fit")
        if self.objective is None:
            raise ValueError(f"{type(self).__name__} has no objective to train with: set model.objective")

    def training_step(self, pair: Pair, index: int) -> Tensor:
        """The loss of one batch."""
        terms, solutions = self._learn(pair)
        self._report(terms, solutions, "train", len(pair["fixed"]))
        return terms["loss"]

    def validation_step(self, pair: Pair, index: int) -> dict[str, Tensor]:
        """The displacement of one batch, and its loss."""
        return self._evaluate(pair, "val", index)

    def test_step(self, pair: Pair, index: int) -> dict[str, Tensor]:
        """The displacement of one batch."""
        return self._evaluate(pair, "test", index)

    def predict_step(self, pair: Pair, index: int) -> Float[Tensor, "b d *s"]:
        """The displacement of one batch, on its own grid."""
        return self.register(pair).detach()

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """The optimizer, and the scheduler where there is one."""
        self.check_trainable()
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}

    def _learn(self, pair: Pair) -> tuple[dict[str, Tensor], list[Solution]]:
        """The terms of the training loss of one batch, and its solutions."""
        work, solutions, _ = self._solve(pair)
        return self._terms(work, solutions), solutions

    def _solve(self, pair: Pair, run: Run = Run()) -> tuple[Pair, list[Solution], Tensor]:
        """The pair on the working grid, the solutions there, and the displacement on the pair's own grid."""
        work = self.work(pair)
        if run.start is not None:
            run = replace(run, start=resize(run.start, work["fixed"].shape[2:]))
        solutions = expect_solutions(self.align(work, pair, run), type(self).__name__)
        return work, solutions, resize(solutions[-1].value, pair["fixed"].shape[2:])

    def _refined(self, pair: Pair, solved: tuple[Pair, list[Solution], Tensor]) -> tuple[list[Solution], Tensor]:
        """Solutions and displacement of a solve, those of the refinement after them."""
        _, solutions, displacement = solved
        if self.refine is None:
            return solutions, displacement
        displacement, more = self.refine(on_one_grid(pair), displacement)
        return [*solutions, *more], displacement

    def _size(self, image: Tensor, spacing: Tensor | None) -> list[int]:
        """Extents at the working resolution; spacing (b, d) in mm. Raises ValueError if the images' own ones differ."""
        factors, voxels = [[self.resolution] * (image.ndim - 2)], [[1.0]]
        if spacing is not None and (side := self.voxel or self.max_voxel):
            coarsest, voxels = 1.0 if self.max_voxel else torch.inf, spacing.float().tolist()
            factors = [[min(side / own, coarsest) for own in row] for row in voxels]
        axes = [list(zip(image.shape[2:], row, strict=True)) for row in factors]
        sizes = [[1 if n == 1 else max(2, round(n / f)) for n, f in own] for own in axes]  # one voxel is not divided
        for voxel, size in zip(voxels, sizes, strict=True):
            if size != sizes[0]:
                raise ValueError(
                    f"images with voxels of {times(voxels[0])} and {times(voxel)} mm cannot share a batch: their "
                    f"working grids have {times(sizes[0])} and {times(size)} voxels, expected one; set batch_size to 1"
                )
        return sizes[0]

    def _evaluate(self, pair: Pair, stage: str, index: int = 0) -> dict[str, Tensor]:
        work, solutions, displacement = solved = self._solve(pair)
        terms = {}
        if stage == "val" and self.objective is not None:
            terms = self._terms(work, solutions)
        if stage == "test":
            solutions, displacement = self._refined(pair, solved)
        self._report(terms, solutions, stage, self._weight(pair, stage, index))
        return {
            "displacement": displacement.detach(),
            "steps": torch.stack([s.steps for s in solutions]).sum(0),
            "residual": solutions[-1].residual,
            "converged": solutions[-1].converged,
        }

    def _terms(self, pair: Pair, solutions: Sequence[Solution]) -> dict[str, Tensor]:
        """The objective's terms, averaged over the levels that were solved."""
        assert self.objective is not None
        levels = [self.objective(at_size(pair, s.value.shape[2:]), s.value) for s in solutions]
        return {name: torch.stack([terms[name] for terms in levels]).mean() for name in levels[0]}
