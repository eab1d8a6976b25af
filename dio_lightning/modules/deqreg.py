"""Deep equilibrium registration: a weight-tied network, applied until the displacement stops changing."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from dio_lightning.features import FeaturePyramid
from dio_lightning.implicit import (
    Adjoint,
    Never,
    PhantomAdjoint,
    Picard,
    Residual,
    Solution,
    Solver,
    StopRule,
    Update,
    jacobian_energy,
    piecewise_sum,
    spectral_radius,
)
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses import Objective
from dio_lightning.modules.iterative import IterativeModule, Pyramids
from dio_lightning.modules.refinement import Refinement
from dio_lightning.pair import Pair
from dio_lightning.processes import of_all
from dio_lightning.transformations import FreeForm, Transformation
from dio_lightning.updates import LearnedStep

LAST = "dio_lightning_last_states"
"""Key of a checkpoint under which the last batch and state of every process lie, by rank."""


class DEQReg(IterativeModule):
    """u with g(u, moving ∘ (id + u), fixed) = 0, by any solver; trained by phantom gradients (DEQReg, eq. 1 to 9).

    Training sees `states` of the solve, at equal intervals: each is differentiated on its own, by the adjoint, and
    freed before the solve goes on from it, so that memory is that of one adjoint, however many steps and states there
    are. Their losses are weighted by `decay` to the number of states that follow. The solver starts anew after each
    state and the steps of the adjoint come on top of its own. `PhantomAdjoint(1)` at one state is JFB.

    Args:
        update: the network and what it sees.
        objective: the training loss of each state.
        optimizer: trains the weights.
        scheduler: its learning rate.
        resolution: see `RegistrationModule`.
        solver: how the fixed point is found, `Picard`, `Anderson` or `Broyden`.
        adjoint: how gradients pass each state.
        stop: when a sample leaves early in validation, test and prediction; training takes every step.
        max_steps: steps of the solver, 48 in the paper, 12 for DEQReg-12.
        states: how many states of the solve are trained; 1 is the last alone.
        decay: γ.
        transformation: what a step does to the displacement; the paper adds.
        replay: probability that a training step takes the last batch again and goes on from its last state, so that
            what lies beyond `max_steps` is trained too, at no cost. Not in the paper; starting points of several kinds
            make an equilibrium independent of the path (Anil et al., NeurIPS 2022).
        residual_weight: of the mean squared residual, in voxels, at the last state; not in the paper.
        jacobian_weight: of Hutchinson's estimate of ||df/du||_F² / n at the last state; one more graph in memory.
        spectral_steps: steps of the power method by which validation logs the spectral radius of df/du; 0: not.
        late_adjoint: takes the adjoint's place after `warm_up`, say `ImplicitAdjoint`; an untrained network has g near
            0, where the exact implicit system is singular.
        warm_up: optimizer steps before `replay` and `late_adjoint` set in.
        ramp: optimizer steps over which training goes from a quarter of `train_steps` to all of them: an untrained
            network has no equilibrium worth the search.
        refine: see `RegistrationModule`.
        features: a descriptor without weights, at level 1 alone, such as `LocalContrast`; the network sees it of both
            images in their place. Not in the paper: the loss, local correlation, looks at local contrast too.
        train_steps: steps of a training solve, `max_steps` by default. With `replay` a fraction of them is enough, as
            solves go on from one update to the next.

    Raises:
        ValueError: if a setting is out of its range, or the features have weights or other levels.
    """

    def __init__(
        self,
        update: LearnedStep,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        resolution: float = 1.0,
        solver: Solver = Picard(),
        adjoint: Adjoint = PhantomAdjoint(),
        stop: StopRule = Residual(1e-3),
        max_steps: int = 48,
        states: int = 3,
        decay: float = 0.8,
        transformation: Transformation = FreeForm(),
        replay: float = 0.0,
        residual_weight: float = 0.0,
        jacobian_weight: float = 0.0,
        spectral_steps: int = 0,
        late_adjoint: Adjoint | None = None,
        warm_up: int = 0,
        ramp: int = 0,
        refine: Refinement | None = None,
        features: FeaturePyramid | None = None,
        train_steps: int | None = None,
    ) -> None:
        super().__init__(objective, optimizer, scheduler, resolution, refine)
        trained = max_steps if train_steps is None else train_steps
        if not 1 <= states <= trained or not 0 < decay <= 1 or not 0 <= replay < 1:
            raise ValueError(
                f"states is {states}, max_steps {max_steps}, train_steps {trained}, decay {decay} and replay {replay}, "
                "expected 1 <= states <= train_steps, a decay in (0, 1] and a replay in [0, 1)"
            )
        if features is not None and (features.levels != (1,) or any(True for _ in features.parameters())):
            raise ValueError(
                f"features are {type(features).__name__} of levels {features.levels}, expected a descriptor without "
                "weights whose levels are [1]"
            )
        if min(residual_weight, jacobian_weight, spectral_steps, warm_up, ramp) < 0 or spectral_steps == 1:
            raise ValueError(
                f"residual_weight is {residual_weight}, jacobian_weight {jacobian_weight}, spectral_steps "
                f"{spectral_steps}, warm_up {warm_up} and ramp {ramp}, expected at least 0, and not 1 power step"
            )
        self.layer = OptimizerLayer(
            [max_steps], update, solver, transformation, adjoint, stop, field_sigma=0.0, clamp_quantile=1.0
        )
        self.states, self.decay, self.replay = states, decay, replay
        self.features, self.train_steps = features, train_steps
        self.residual_weight, self.jacobian_weight = residual_weight, jacobian_weight
        self.spectral_steps, self.late_adjoint, self.warm_up, self.ramp = spectral_steps, late_adjoint, warm_up, ramp
        self._last: tuple[Pair, Tensor] | None = None
        self._saved: list[tuple[Pair, Tensor] | None] = []

    @property
    def title(self) -> str:
        """DEQReg, with the number of steps where it is not the paper's 48."""
        return "DEQReg" if self.steps == 48 else f"DEQReg-{self.steps}"

    def pyramids(self, work: Pair, pair: Pair) -> Pyramids:
        """The images, or what describes them, at one level."""
        if self.features is None:
            return Pyramids([work["fixed"]], [work["moving"]])
        return Pyramids(self.features(work["fixed"]), self.features(work["moving"]))

    def training_step(self, pair: Pair, index: int) -> Tensor:
        """The weighted loss of all states; they are differentiated by the time it returns."""
        work, z = self._start(pair)
        states: list[tuple[Solution, dict[str, Tensor]]] = []
        parameters = [p for p in self.parameters() if p.requires_grad]
        loss = piecewise_sum(self._losses(work, z, states), parameters)
        self._last = (work, states[-1][0].value) if self.replay else None
        terms = states[-1][1]
        self._report({**terms, "loss": loss}, [s for s, _ in states], "train", len(work["fixed"]))
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds, with `replay`, the last batch of every process and the state from which a step may go on."""
        super().on_save_checkpoint(checkpoint)
        if self.replay:
            checkpoint[LAST] = of_all(None if self._last is None else _plain(*self._last))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up, if the run has as many processes."""
        super().on_load_checkpoint(checkpoint)
        self._saved = checkpoint.get(LAST, [])

    def on_train_start(self) -> None:
        """The device and the rank are settled by now."""
        saved, self._saved = self._saved, []
        if self.replay and len(saved) == self.trainer.world_size:
            self._last = move_data_to_device(saved[self.trainer.global_rank], self.device)

    def on_skipped_step(self) -> None:
        """The last state is of the batch that was not finite: no step goes on from it."""
        self._last = None

    def validation_step(self, pair: Pair, index: int) -> dict[str, Tensor]:
        """The displacement of one batch and its loss; logs the spectral radius if asked."""
        outputs = super().validation_step(pair, index)
        if self.spectral_steps:
            problem, start = self.problem(pair)
            solution = self.layer.solve(problem, start, self.steps)
            generator = torch.Generator().manual_seed(0)
            radius = spectral_radius(problem.update, solution.value, self.spectral_steps, generator)
            size = self._weight(pair, "val", index)
            self.log("val/spectral_radius", radius.mean(), batch_size=size, sync_dist=True)
        return outputs

    def _start(self, pair: Pair) -> tuple[Pair, Tensor]:
        """The pair that is trained, on the working grid, and the parameters from which its solve starts."""
        if self._last is not None and self.global_step >= self.warm_up and float(torch.rand(())) < self.replay:
            return self._last
        work = self.work(pair)
        return work, self.layer.transformation.initial(work["fixed"])

    def _losses(self, work: Pair, z: Tensor, states: list[tuple[Solution, dict[str, Tensor]]]) -> Iterator[Tensor]:
        """Weighted loss of each state; `states` takes the solutions and the terms, without graph."""
        assert self.objective is not None
        (fixed,), (moving,), _ = self.pyramids(work, work)
        problem, total = self.layer.problem(Level(fixed, moving, pair=work)), self._training_steps()
        for j in range(1, self.states + 1):
            steps = total * j // self.states - total * (j - 1) // self.states
            solution = self.layer.solve(problem, z, steps, self._adjoint(), Never())
            terms = self.objective(work, problem.displacement(solution.value))
            loss = self.decay ** (self.states - j) * terms["loss"]
            z = solution.value.detach()
            if j == self.states and (self.residual_weight or self.jacobian_weight):
                penalties = self._penalties(problem.update, z)
                loss, terms = loss + penalties["penalty"], {**terms, **penalties}
            states.append((replace(solution, value=z), {name: value.detach() for name, value in terms.items()}))
            yield loss

    def _training_steps(self) -> int:
        """Steps of a training solve now."""
        done = min(1.0, self.global_step / self.ramp) if self.ramp else 1.0
        return max(self.states, round((self.train_steps or self.steps) * (0.25 + 0.75 * done)))

    def _penalties(self, update: Update, z: Tensor) -> dict[str, Tensor]:
        """What is asked of f at the last state, and their weighted sum, "penalty"."""
        z = z.detach().requires_grad_(self.jacobian_weight > 0)
        fz = update(z)
        terms = {"residual_squared": (fz - z).square().sum(1).mean()}
        penalty = self.residual_weight * terms["residual_squared"]
        if self.jacobian_weight:
            terms["jacobian"] = jacobian_energy(z, fz).mean()
            penalty = penalty + self.jacobian_weight * terms["jacobian"]
        return {**terms, "penalty": penalty}

    def _adjoint(self) -> Adjoint:
        """How gradients pass a state now."""
        late = self.late_adjoint is not None and self.global_step >= self.warm_up
        return self.late_adjoint if late and self.late_adjoint is not None else self.layer.adjoint


def _plain(pair: Pair, state: Tensor) -> tuple[Pair, Tensor]:
    """A batch and a state on the CPU, the tensors alone: a solve needs no names."""
    tensors = {key: value.cpu() for key, value in pair.items() if isinstance(value, Tensor)}
    return cast(Pair, tensors), state.cpu()
