"""The optimizer layer: update, solver and adjoint meet at one level; a pyramid of them is a registration."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

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
from dio_lightning.pair import expect_batch
from dio_lightning.transformations import FreeForm, Transformation
from dio_lightning.updates import Descent, UpdateRule


class OptimizerLayer(nn.Module):
    """Aligns two feature pyramids, coarse to fine, and differentiates through the solution (Jena et al., DIO, 2024).

    Each level starts from the finer grid's copy of the level above, detached: gradients reach the features of a level
    through its own solution only. Solver state is not carried over: a level's gradients have another scale. All of it
    may be changed at test time; the only weights that it can hold are those of a learned update or similarity, which
    are its parameters like those of any module.

    Args:
        iterations: solver steps per level, coarse to fine; as many as the feature pyramid has levels.
        update: the update map f and its smoothing, `Descent` or `GaussNewton`.
        solver: how f's fixed point is found, e.g. `Adam`, `GradientDescent`, `Picard`.
        transformation: what a step does to the displacement, e.g. `FreeForm`, `Diffeomorphism`, `Affine`.
        adjoint: how gradients pass the solution; `PhantomAdjoint(1)` is the paper's Jacobian-free backward.
        stop: when a sample leaves a level early, per sample.
        field_sigma: Gaussian smoothing of the field after every step, in voxels of the level (σ_warp).
        clamp_quantile: gradients arriving at the finest field are clamped to ± this quantile of their size; 1 = never.

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
        self.field_sigma, self.clamp_quantile = field_sigma, clamp_quantile
        # settings are values, not modules; a module in one of them may have weights all the same
        parts = (update, solver, transformation, adjoint, stop)
        self.inner = nn.ModuleList(m for part in parts for m in vars(part).values() if isinstance(m, nn.Module))

    def forward(
        self,
        fixed: Sequence[Float[Tensor, "b c ..."]],
        moving: Sequence[Float[Tensor, "b c ..."]],
        observe: Observe | None = None,
        grids: Sequence[Grid] | None = None,
        size: Sequence[int] | None = None,
    ) -> list[Solution]:
        """Feature pyramids, coarse to fine, to one `Solution` a level, whose value is the displacement there.

        Features lie on `grids` over an image of this size (`FeaturePyramid.grids`), by default on grids that have their
        ends in common. Displacements are those of the latter: on as many voxels as the level has, from end to end.
        `observe` sees the displacement after every step of the finest level, where then no sample stops early.

        Raises:
            ValueError: if the features are not tensors (b, c, *s), or do not lie on the grids.
        """
        for f, m in zip(fixed, moving, strict=True):
            expect_batch(f, "a level of the fixed features")
            expect_batch(m, "a level of the moving features")
        full = fixed[-1].shape[2:] if size is None else size
        ends = [spanning(full, f.shape[2:]) for f in fixed]
        grids = ends if grids is None else grids
        if [grid.size for grid in grids] != [end.size for end in ends]:
            raise ValueError(f"features on {[e.size for e in ends]} voxels, expected {[grid.size for grid in grids]}")
        solutions: list[Solution] = []
        z = self.transformation.initial(fixed[0])
        levels = zip(fixed, moving, self.iterations[: len(fixed)], grids, ends, strict=True)
        for level, (f, m, steps, grid, end) in enumerate(levels):
            z = self.transformation.regrid(z.detach(), grids[max(level - 1, 0)], grid)
            see = partial(_on, observe, grid, end) if observe is not None and level == len(fixed) - 1 else None
            solution = self.solve(f, m, z, steps, see)
            z = solution.value
            u = self.transformation.displacement(z, grid.size)
            solutions.append(replace(solution, value=regrid(u, grid, end)))
        finest = solutions[-1].value
        if finest.requires_grad and self.clamp_quantile < 1:
            finest.register_hook(lambda gradient: clamp_to_quantile(gradient, self.clamp_quantile))
        return solutions

    def solve(
        self,
        fixed: Float[Tensor, "b c *s"],
        moving: Float[Tensor, "b c *s"],
        z0: Float[Tensor, "b d ..."],
        steps: int,
        observe: Observe | None = None,
    ) -> Solution:
        """The solution at one level, from parameters z0; its value holds parameters of the transformation."""

        def advance(z: Tensor, step: Tensor) -> Tensor:
            return self.transformation.smooth(self.transformation.retract(z, step), self.field_sigma)

        def watch(z: Tensor) -> None:
            if observe is not None:
                observe(self.transformation.displacement(z, fixed.shape[2:]))

        return fixed_point(
            self.update.on(fixed, moving, self.transformation),
            z0,
            self.solver,
            self.adjoint,
            max_steps=steps,
            stop=self.stop if observe is None else Never(),
            advance=advance,
            observe=None if observe is None else watch,
        )


def _on(observe: Observe, grid: Grid, end: Grid, u: Tensor) -> None:
    observe(regrid(u, grid, end))


def clamp_to_quantile(gradient: Tensor, quantile: float) -> Tensor:
    """Clamps each sample's gradient to ± the quantile of its absolute values (methods of DIO's official training)."""
    flat = gradient.abs().flatten(1)
    rank = max(1, round(quantile * flat.shape[1]))
    bound = flat.kthvalue(rank, dim=1).values.view(-1, *[1] * (gradient.ndim - 1))
    return torch.minimum(torch.maximum(gradient, -bound), bound)
