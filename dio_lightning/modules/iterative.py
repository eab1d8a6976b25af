"""What every method with a solving layer shares: features of both images, and the layer that brings them together."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import Grid
from dio_lightning.implicit import Solution
from dio_lightning.layers import OptimizerLayer, Problem, Run
from dio_lightning.layers.optimizer import pyramid
from dio_lightning.modules.base import RegistrationModule
from dio_lightning.pair import Pair


class Pyramids(NamedTuple):
    """What a layer aligns: features of both images, coarse to fine, and the grids on which they lie."""

    fixed: Sequence[Tensor]
    moving: Sequence[Tensor]
    grids: Sequence[Grid] | None = None


class IterativeModule(RegistrationModule):
    """Features and a layer: a subclass says what the features are, and builds the layer."""

    layer: OptimizerLayer

    @abstractmethod
    def pyramids(self, work: Pair, pair: Pair) -> Pyramids:
        """Features of a pair on the working grid; `pair` is what it was made from."""

    @property
    def steps(self) -> int:
        """Steps at the finest level; may be set to other than was trained.

        Raises:
            ValueError: when set, to a number below 0.
        """
        return self.layer.iterations[-1]

    @steps.setter
    def steps(self, steps: int) -> None:
        if steps < 0:
            raise ValueError(f"steps is {steps}, expected at least 0")
        self.layer.iterations = (*self.layer.iterations[:-1], steps)

    def align(self, work: Pair, pair: Pair, run: Run = Run()) -> list[Solution]:
        """One solution a level, coarse to fine."""
        return self.layer(*self.pyramids(work, pair), work, run)

    def problem(self, pair: Pair) -> tuple[Problem, Float[Tensor, "b d ..."]]:
        """The fixed-point problem of the finest level, and its start: where the coarser levels have ended.

        Its update holds the graph of the features, where gradients are enabled.
        """
        work = self.work(pair)
        levels = pyramid(*self.pyramids(work, pair), work["fixed"].shape[2:], work)
        return self.layer.finest(levels, work["fixed"].shape[2:])
