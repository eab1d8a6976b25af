"""RIIR: a recurrent network that sees the gradient of the similarity and corrects the displacement."""

from collections import deque
from collections.abc import Iterator

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from dio_lightning.fields import warp
from dio_lightning.implicit import Solution
from dio_lightning.layers import Record, Run
from dio_lightning.losses import SSD, Objective
from dio_lightning.modules.base import RegistrationModule
from dio_lightning.modules.refinement import Refinement
from dio_lightning.networks import RecurrentUNet, VxmUNet
from dio_lightning.pair import Pair
from dio_lightning.updates import similarity_slope


class RIIR(RegistrationModule):
    """u ← u + Δu, (Δu, h) = cell([u / scale, ∇_u L_inner(M ∘ (id + u), F), M ∘ (id + u), F], h), from u = 0, h = 0.

    Recurrent Inference Image Registration, at one resolution. We had the paper's equations only from secondary sources:
    inputs, memory at two levels and loss are its own; the layout of the cell is ours (VoxelMorph's U-Net, a ConvGRU of
    3^d kernels at its bottleneck and one before its head), and so is the scaling of the gradient, to a root mean square
    of 1 per sample. Training weighs the objective of every state; validation reports that of the last.

    Args:
        network: (b, 2 d + 2, *s) to (b, d, *s), a step in voxels; it is given the memory.
        inner: (warped, fixed) to scalar, whose gradient the network sees, `SSD` by default, or `LNCC`.
        objective: the training loss of each state.
        optimizer: trains the weights.
        scheduler: its learning rate.
        resolution: see `RegistrationModule`.
        repeats: steps T, 6 in the comparison of DEQReg.
        growth: weight of the last state over that of the first: state t has weight ∝ growth^((t-1) / (T-1)), all
            together 1. A growth of 1 is uniform; γ^(T-t) is a growth of γ^(1-T).
        scale: displacements enter the network divided by this many voxels.
        differentiate_gradient: whether training differentiates the gradient input too; needs second derivatives.
        refine: see `RegistrationModule`.

    Raises:
        ValueError: if the network's channels do not fit, or repeats, growth or scale are out of range.
    """

    def __init__(
        self,
        network: VxmUNet,
        inner: nn.Module | None = None,
        objective: Objective | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        resolution: float = 1.0,
        repeats: int = 6,
        growth: float = 10.0,
        scale: float = 5.0,
        differentiate_gradient: bool = False,
        refine: Refinement | None = None,
    ) -> None:
        super().__init__(objective, optimizer, scheduler, resolution, refine)
        if growth <= 0 or scale <= 0:
            raise ValueError(f"growth is {growth} and scale {scale}, expected positive numbers")
        self.cell, self.inner = RecurrentUNet(network), SSD() if inner is None else inner
        self.growth, self.scale, self.differentiate_gradient = growth, scale, differentiate_gradient
        self.steps = repeats

    @property
    def steps(self) -> int:
        """Steps T."""
        return self._repeats

    @steps.setter
    def steps(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"RIIR's repeats are {steps}, expected at least 1")
        self._repeats = steps

    def align(self, work: Pair, pair: Pair, run: Run = Run()) -> list[Solution]:
        """The last state, as a list of one."""
        count = self.steps if run.steps is None else run.steps
        if count < 1:
            raise ValueError(f"RIIR is asked for {count} steps, expected at least 1")
        ((u, step),) = deque(self._states(work, count, run), maxlen=1)
        return [self._solution(u, step, count)]

    def training_step(self, pair: Pair, index: int) -> Tensor:
        """The weighted loss of all states of one batch."""
        assert self.objective is not None
        work = self.work(pair)
        states = list(self._states(work, self.steps))
        losses = [self.objective(work, u) for u, _ in states]
        weights = self.weights().to(losses[0]["loss"])
        # no matrix product: autocast would round the loss to three digits
        terms = {name: (weights * torch.stack([terms[name] for terms in losses])).sum() for name in losses[0]}
        self._report(terms, [self._solution(*states[-1], self.steps)], "train", len(work["fixed"]))
        return terms["loss"]

    def weights(self) -> Float[Tensor, " t"]:
        """Weight of each state in the training loss; their sum is 1."""
        weights = self.growth ** torch.linspace(0, 1, self.steps, dtype=torch.float64)
        return weights / weights.sum()

    def _states(self, work: Pair, count: int, run: Run = Run()) -> Iterator[tuple[Tensor, Tensor]]:
        """u_1 to u_T (b, d, *s) of T = count steps, each with the step that led to it."""
        fixed, moving = work["fixed"], work["moving"]
        u = fixed.new_zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:]) if run.start is None else run.start
        memory = None, None
        _record(run, 0, u)
        for taken in range(1, count + 1):
            slope = self._slope(u, fixed, moving)
            step, memory = self.cell(torch.cat([u / self.scale, slope, warp(moving, u), fixed], 1), memory)
            u = u + step
            _record(run, taken, u)
            yield u, step

    def _slope(self, u: Tensor, fixed: Tensor, moving: Tensor) -> Float[Tensor, "b d *s"]:
        """The inner loss's gradient, of root mean square 1 a sample."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiate_gradient):
            return similarity_slope(self.inner, fixed, moving, u, normalise=True)

    def _solution(self, u: Tensor, step: Tensor, count: int) -> Solution:
        """The last state; no sample stops early, and one has failed if it is not finite."""
        moved, length = (x.detach().flatten(1).norm(dim=1) for x in (step, u))
        failed = ~(moved + length).isfinite()
        residual = (moved / (length + 1e-9)).nan_to_num(nan=torch.inf, posinf=torch.inf)
        steps = torch.full((len(u),), count, device=u.device)
        return Solution(u, residual, steps, torch.zeros_like(failed), failed)


def _record(run: Run, taken: int, u: Tensor) -> None:
    if run.observe is not None:
        run.observe(Record(0, taken, u.detach(), None, lambda z: z))
