"""What a solve at one level is about, how it is asked for, and what an observer sees of it."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dio_lightning.implicit import Advance, Evaluation, Update


@dataclass(frozen=True, eq=False)
class Problem:
    """z = f(z) at one level: any solver and any adjoint of `implicit` may be brought to it."""

    update: Update
    """f, of parameters (b, d, ...)."""
    advance: Advance
    """The parameters after a step: the transformation's retraction, smoothed."""
    displacement: Callable[[Tensor], Tensor]
    """z to u (b, d, *s) in voxels, on as many voxels as the level has, from end to end of the image."""
    repeats: bool = False
    """Whether `update` and `advance` do the same operations at every call, so that a GPU may record a step."""


@dataclass(frozen=True, eq=False)
class Record:
    """One state of a solve; every state is recorded, from the start on."""

    level: int
    """Coarse to fine, from 0."""
    step: int
    """Steps that were taken at this level."""
    state: Tensor
    """z (b, d, ...), parameters of the transformation; not to be changed."""
    evaluation: Evaluation | None
    """What f showed at this state; None for the last where the steps ran out, as f was not asked there."""
    to_displacement: Callable[[Tensor], Tensor]

    @property
    def displacement(self) -> Float[Tensor, "b d *s"]:
        """The displacement of the state, in voxels of the level's end-to-end grid; computed when asked for."""
        return self.to_displacement(self.state)


Observer = Callable[[Record], None]
"""Sees every state of every level, and changes nothing."""


@dataclass(frozen=True, eq=False)
class Run:
    """How one registration is run, beside the settings of its method.

    Args:
        start: a displacement (b, d, *s) in voxels of the image to start from; by default the identity.
        steps: exactly this many steps at the finest level, where no sample stops early then.
        observe: is given a `Record` of every state.
    """

    start: Float[Tensor, "b d *s"] | None = None
    steps: int | None = None
    observe: Observer | None = None
