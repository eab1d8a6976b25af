"""The update that a network proposes: DEQReg's f, and the step of every unrolled method."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dio_lightning.fields import warp
from dio_lightning.implicit import Update
from dio_lightning.implicit.graphs import repeats
from dio_lightning.level import Level
from dio_lightning.transformations import Transformation
from dio_lightning.updates.descent import UpdateRule


class LearnedStep(nn.Module, UpdateRule):
    """f(z) = (1 - leak) z + g(u / scale, moving ∘ (id + u), fixed), u the displacement of z (DEQReg, eq. 3: no leak).

    What the step does to the displacement is the transformation's business: addition for `FreeForm`, as in the paper,
    composition for `Diffeomorphism`. The input tuple is missing in the text available; this is the one of GraDIRN.

    Args:
        network: (b, d + 2, *s) to (b, d, *s), a step in voxels; without the state (b, 2, *s).
        scale: displacements enter the network divided by this many voxels.
        state_in_input: whether the network sees u itself.
        leak: share of the state that every step forgets; 0 in the paper. Where the images say nothing, g hardly depends
            on u, df/du is the identity, and what little g is off by adds up for ever: the residual falls like 1/k and
            folds go on growing. Forgetting bounds it, and the fixed point is one that g must hold up.

    Raises:
        ValueError: if scale is not positive, or leak not in [0, 1).
    """

    def __init__(self, network: nn.Module, scale: float = 5.0, state_in_input: bool = True, leak: float = 0.0) -> None:
        super().__init__()
        if scale <= 0 or not 0 <= leak < 1:
            raise ValueError(f"scale is {scale} and leak {leak}, expected a positive number and one in [0, 1)")
        self.network, self.scale, self.state_in_input, self.leak = network, scale, state_in_input, leak

    def on(self, level: Level, transformation: Transformation) -> Update:
        """The update for these images.

        Raises:
            ValueError: if the transformation's parameters are no field.
        """
        fixed, moving = level.fixed, level.moving
        if not transformation.dense:
            raise ValueError(f"a network proposes a field, {type(transformation).__name__} has no field to step on")

        return BoundStep(self, transformation, fixed, moving)

    @property
    def repeats(self) -> bool:
        """Whether the network does the same operations at every call, and nobody watches its layers."""
        watched = any(part._forward_hooks or part._forward_pre_hooks for part in self.network.modules())
        return repeats(self.network) and not watched

    def step(
        self, u: Float[Tensor, "b d *s"], fixed: Float[Tensor, "b c *s"], moving: Float[Tensor, "b c *s"]
    ) -> Float[Tensor, "b d *s"]:
        """g, in voxels."""
        images = [warp(moving, u), fixed]
        return self.network(torch.cat([u / self.scale, *images] if self.state_in_input else images, 1))


class BoundStep:
    """The update of `LearnedStep` for two images."""

    def __init__(self, rule: LearnedStep, transformation: Transformation, fixed: Tensor, moving: Tensor) -> None:
        self.rule, self.transformation, self.fixed, self.moving = rule, transformation, fixed, moving

    def __call__(self, z: Float[Tensor, "b d *s"]) -> Float[Tensor, "b d *s"]:
        """What is left of the state, and the network's step."""
        u = self.transformation.displacement(z, self.fixed.shape[2:])
        step = self.rule.step(u, self.fixed, self.moving)
        return (z if self.rule.leak == 0 else (1 - self.rule.leak) * z) + step

    @property
    def repeats(self) -> bool:
        """Whether it does the same operations at every call, so that a GPU may record them."""
        return repeats(self.rule)


class PerLevel(nn.Module, UpdateRule):
    """A rule of its own for every level of a pyramid.

    Args:
        rules: one a level, coarse to fine.
    """

    def __init__(self, rules: Sequence[LearnedStep]) -> None:
        super().__init__()
        self.rules = nn.ModuleList(rules)

    def on(self, level: Level, transformation: Transformation) -> Update:
        """The update of this level's rule."""
        rule = self.rules[level.index]
        assert isinstance(rule, UpdateRule)
        return rule.on(level, transformation)
