"""The optimizer layer: update, solver and adjoint meet at one level; a pyramid of them is a registration."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.fields import Grid, regrid, spanning
from dio_lightning.implicit import (
    Adam,
    Adjoint,
    Never,
    Observe,
    PhantomAdjoint,
    Solution,
    Solver,
    Stagnation,
    StopRule,
    fixed_point,
)
from dio_lightning.implicit.graphs import repeats
from dio_lightning.layers.problem import Observer, Problem, Record, Run
from dio_lightning.level import Level
from dio_lightning.pair import Pair, expect_batch
from dio_lightning.transformations import FreeForm, Transformation
from dio_lightning.updates import Descent, UpdateRule


class OptimizerLayer(nn.Module):
    """Aligns two feature pyramids, coarse to fine, and differentiates through the solution (Jena et al., DIO, 2024).

    Each level starts from the finer grid's copy of the level above. Solver state is not carried over: a level's
    gradients have another scale. All of it may be changed at test time; the only weights that it can hold are those of
    a learned update or similarity, which are its parameters like those of any module.

    Args:
        iterations: solver steps per level, coarse to fine; as many as the feature pyramid has levels.
        update: the update map f and its smoothing, `Descent` or `GaussNewton`.
        solver: how f's fixed point is found, e.g. `Adam`, `GradientDescent`, `Picard`.
        transformation: what a step does to the displacement, e.g. `FreeForm`, `Diffeomorphism`, `Affine`.
        adjoint: how gradients pass the solution; `PhantomAdjoint(1)` is the paper's Jacobian-free backward.
        stop: when a sample leaves a level early, per sample.
        field_sigma: Gaussian smoothing of the field after every step, in voxels of the level (σ_warp).
        clamp_quantile: gradients arriving at the finest field are clamped to ± this quantile of their size; 1 = never.
        through_levels: whether gradients pass from a level to the one above, with an adjoint that lets them
            (`UnrolledAdjoint`); otherwise they reach the features of a level through its own solution only.
        graphs: whether a GPU records a step of a solve and replays it, which spares the host (`implicit.graphs`), where
            update and transformation say that they do the same operations at every call. Not yet run on a GPU.

    Raises:
        ValueError: if a setting is out of its range.
    """

    update: UpdateRule

    def __init__(
        self,
        iterations: Sequence[int] = (100, 60, 30),
        update: UpdateRule = Descent(),
        solver: Solver = Adam(),
        transformation: Transformation = FreeForm(),
        adjoint: Adjoint = PhantomAdjoint(),
        stop: StopRule = Stagnation(),
        field_sigma: float = 0.5,
        clamp_quantile: float = 0.98,
        through_levels: bool = False,
        graphs: bool = False,
    ) -> None:
        super().__init__()
        if not iterations or min(iterations) < 0:
            raise ValueError(f"iterations are {list(iterations)}, expected one number of at least 0 per level")
        if field_sigma < 0 or not 0 < clamp_quantile <= 1:
            raise ValueError(
                f"field_sigma is {field_sigma} and clamp_quantile {clamp_quantile}, expected at least 0 and in (0, 1]"
            )
        self.iterations, self.update, self.solver = tuple(iterations), update, solver
        self.transformation, self.adjoint, self.stop = transformation, adjoint, stop
        self.field_sigma, self.clamp_quantile, self.through_levels = field_sigma, clamp_quantile, through_levels
        self.graphs = graphs
        # settings are values, not modules; a module in one of them may have weights all the same
        parts = (update, solver, transformation, adjoint, stop)
        values = [value for part in parts if not isinstance(part, nn.Module) for value in vars(part).values()]
        lists = [value if isinstance(value, list | tuple) else [value] for value in values]
        self.inner = nn.ModuleList(m for entries in lists for m in entries if isinstance(m, nn.Module))

    def forward(
        self,
        fixed: Sequence[Float[Tensor, "b c ..."]],
        moving: Sequence[Float[Tensor, "b c ..."]],
        grids: Sequence[Grid] | None = None,
        pair: Pair | None = None,
        run: Run = Run(),
    ) -> list[Solution]:
        """Feature pyramids, coarse to fine, to one `Solution` a level, whose value is the displacement there.

        Features lie on `grids` over the image of the pair (`FeaturePyramid.grids`); without a pair the finest level is
        the image, and without grids they have their ends in common. Displacements are those of grids from end to end of
        the image: on as many voxels as the level has.

        Raises:
            ValueError: if the features are not tensors (b, c, *s) or do not lie on the grids, or if the run starts from
                a displacement that does not lie on the image, or that the transformation cannot start from.
        """
        size = fixed[-1].shape[2:] if pair is None else pair["fixed"].shape[2:]
        levels = pyramid(fixed, moving, grids, size, pair)
        solutions = [
            replace(solution, value=problem.displacement(solution.value))
            for problem, solution in self._solutions(levels, size, run)
        ]
        finest = solutions[-1].value
        if finest.requires_grad and self.clamp_quantile < 1:
            finest.register_hook(lambda gradient: clamp_to_quantile(gradient, self.clamp_quantile))
        return solutions

    def finest(self, levels: Sequence[Level], size: Sequence[int]) -> tuple[Problem, Float[Tensor, "b d ..."]]:
        """The problem of the last level of an image of this size, and where the levels before it have ended."""
        z = self._start(levels[0], size, None)
        for _, solution in self._solutions(levels[:-1], size, Run()):
            z = solution.value
        if len(levels) > 1:
            z = self._carried(z, levels[-2], levels[-1])
        return self.problem(levels[-1], size), z

    def _solutions(self, levels: Sequence[Level], size: Sequence[int], run: Run) -> Iterator[tuple[Problem, Solution]]:
        """The problem of every level, and its solution in parameters of the transformation."""
        z, before = torch.empty(0), None
        for level, steps in zip(levels, self.iterations, strict=False):
            z = self._start(level, size, run.start) if before is None else self._carried(z, before, level)
            problem, stop, before = self.problem(level, size), self.stop, level
            if level is levels[-1] and run.steps is not None:
                steps, stop = run.steps, Never()
            solution = self.solve(problem, z, steps, stop=stop, observe=_records(problem, level.index, run.observe))
            z = solution.value
            yield problem, solution

    def problem(self, level: Level, size: Sequence[int] | None = None) -> Problem:
        """What is solved at one level of an image of this size (default: the level's own)."""
        model, place = self.transformation, level.place
        end = spanning(level.size if size is None else size, level.size)

        def smoothed(z: Tensor, step: Tensor) -> Tensor:
            return model.smooth(model.retract(z, step), self.field_sigma)

        update = self.update.on(level, model)
        return Problem(
            update,
            smoothed if self.field_sigma > 0 else model.retract,
            lambda z: regrid(model.displacement(z, place.size), place, end),
            repeats(update) and repeats(model),
        )

    def solve(
        self,
        problem: Problem,
        z: Float[Tensor, "b d ..."],
        steps: int,
        adjoint: Adjoint | None = None,
        stop: StopRule | None = None,
        observe: Observe | None = None,
    ) -> Solution:
        """The solution of a problem from z, by the layer's solver; its value holds parameters of the transformation.

        Adjoint and stop rule are the layer's unless they are given.
        """
        return fixed_point(
            problem.update,
            z,
            self.solver,
            self.adjoint if adjoint is None else adjoint,
            max_steps=steps,
            stop=self.stop if stop is None else stop,
            advance=problem.advance,
            observe=observe,
            graphs=self.graphs and problem.repeats,
        )

    def _carried(self, z: Tensor, old: Level, new: Level) -> Tensor:
        """Parameters of one level on the grid of the next."""
        return self.transformation.regrid(z if self.through_levels else z.detach(), old.place, new.place)

    def _start(self, level: Level, size: Sequence[int], u: Tensor | None) -> Tensor:
        """Parameters at the coarsest level of a displacement on the image, or of the identity."""
        if u is None:
            return self.transformation.initial(level.fixed)
        if u.shape != (expected := (len(level.fixed), len(size), *size)):
            raise ValueError(f"the displacement to start from has shape {tuple(u.shape)}, expected {expected}")
        return self.transformation.parameters(regrid(u, spanning(size, size), level.place))


def pyramid(
    fixed: Sequence[Float[Tensor, "b c ..."]],
    moving: Sequence[Float[Tensor, "b c ..."]],
    grids: Sequence[Grid] | None,
    size: Sequence[int],
    pair: Pair | None,
) -> list[Level]:
    """The levels of two feature pyramids over an image of this size; see `OptimizerLayer.forward`.

    Raises:
        ValueError: if the features are not tensors (b, c, *s), or do not lie on the grids.
    """
    for f, m in zip(fixed, moving, strict=True):
        expect_batch(f, "a level of the fixed features")
        expect_batch(m, "a level of the moving features")
    ends = [spanning(size, f.shape[2:]) for f in fixed]
    grids = ends if grids is None else grids
    if [grid.size for grid in grids] != [end.size for end in ends]:
        raise ValueError(f"features on {[e.size for e in ends]} voxels, expected {[grid.size for grid in grids]}")
    return [Level(f, m, grid, pair, i) for i, (f, m, grid) in enumerate(zip(fixed, moving, grids, strict=True))]


def _records(problem: Problem, level: int, observe: Observer | None) -> Observe | None:
    """What the loop calls with each state, so that the observer is given a `Record`."""
    if observe is None:
        return None
    return lambda step, z, evaluation: observe(Record(level, step, z, evaluation, problem.displacement))


def clamp_to_quantile(gradient: Tensor, quantile: float) -> Tensor:
    """Clamps each sample's gradient to ± the quantile of its absolute values (methods of DIO's official training)."""
    flat = gradient.abs().flatten(1)
    rank = max(1, round(quantile * flat.shape[1]))
    bound = flat.kthvalue(rank, dim=1).values.view(-1, *[1] * (gradient.ndim - 1))
    return torch.minimum(torch.maximum(gradient, -bound), bound)
