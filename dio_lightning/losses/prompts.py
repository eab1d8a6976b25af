"""Prompts: labels or landmarks of a pair, given to a method that was trained without them."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from dio_lightning.fields import sample
from dio_lightning.level import Level
from dio_lightning.losses.term import Energy, Slope, Term
from dio_lightning.ops import match
from dio_lightning.pair import Pair

Label = Integer[Tensor, "b 1 *s"]
AT_ONCE = 4
"""Masks that are floating-point volumes at the same time."""


class LabelPrompt(Term):
    """Σ_k w_k mean_x (1_k[S_m](ϕ(x)) - 1_k[S_f](x))², 1_k[S] the mask of label k, linearly interpolated.

    w_k is 1 / σ_k, σ_k the standard deviation of the fixed mask over the voxels. With a weight of 1 the slope at the
    border of a structure then outweighs that of the features, more so for a small one, while the energy of a small one
    stays a small part of the sum, which the stop rule looks at. At a coarse level a voxel has its block's share of a
    label.

    Args:
        labels: the labels to align; by default all but 0. One that a map of a sample lacks says nothing there.
        weight: see `Term`.

    Raises:
        ValueError: if labels is empty or has a number below 1.
    """

    def __init__(self, labels: Sequence[int] | None = None, weight: float = 1.0) -> None:
        super().__init__(weight)
        if labels is not None and (not labels or min(labels) < 1):
            raise ValueError(f"labels is {list(labels)}, expected numbers of at least 1, or null for all")
        self.labels = None if labels is None else tuple(labels)

    def on(self, level: Level) -> Energy:
        """The masks on the level's grid.

        Raises:
            ValueError: if the pair has no labels, or a sample none of those that are asked for in both maps.
        """
        if level.pair is None or "fixed_label" not in level.pair or "moving_label" not in level.pair:
            raise ValueError("LabelPrompt needs the labels of both images, which the pair does not have")
        fixed, moving = level.pair["fixed_label"], level.pair["moving_label"]
        present = [_values(f) & _values(m) for f, m in zip(fixed, moving, strict=True)]
        chosen = sorted(set().union(*present)) if self.labels is None else self.labels
        for has in present:
            if not has & set(chosen):
                asked = "a label" if self.labels is None else f"one of the labels {list(chosen)}"
                raise ValueError(f"LabelPrompt needs {asked} that both label maps of the pair have")
        return _Masks(level, fixed, moving, chosen, present)

    def forward(self, fixed_label: Label, moving_label: Label, u: Float[Tensor, "b d *s"]) -> Float[Tensor, ""]:
        """Scalar loss of a displacement on the grid of the labels, the mean over the batch."""
        pair = Pair(fixed=u[:, :1], moving=u[:, :1], fixed_label=fixed_label, moving_label=moving_label)
        return self.value(Level(u[:, :1], u[:, :1], pair=pair), u).mean()


class _Masks(Energy):
    """Labels at a level; masks of the finest level are made anew at every call, those of coarser ones are kept."""

    def __init__(
        self, level: Level, fixed: Tensor, moving: Tensor, labels: Sequence[int], present: Sequence[set[int]]
    ) -> None:
        super().__init__(lambda u: self._closed(u)[0], slope=self._closed)
        dtype = torch.promote_types(level.fixed.dtype, torch.float32)
        self._chunks = [labels[i : i + AT_ONCE] for i in range(0, len(labels), AT_ONCE)]

        def masks(chunk: Sequence[int]) -> tuple[Tensor, Tensor]:
            f, m = (level.carried(torch.cat([x == k for k in chunk], 1).to(dtype)) for x in (fixed, moving))
            has = f.new_tensor([[k in here for k in chunk] for here in present])
            spread = f.flatten(2).std(dim=2)
            root = torch.where(spread > 0, has / spread, 0).sqrt().view(*has.shape, *[1] * (f.ndim - 2))
            return f * root, m * root

        coarse = level.size != tuple(fixed.shape[2:])
        kept = [masks(chunk) for chunk in self._chunks] if coarse else []
        self._masks = (lambda i: kept[i]) if coarse else (lambda i: masks(self._chunks[i]))

    def _closed(self, u: Tensor) -> Slope:
        energy, slope = u.new_zeros(len(u)), torch.zeros_like(u)
        for i, chunk in enumerate(self._chunks):
            fixed, moving = self._masks(i)
            value, pull = match(fixed.to(u.dtype), moving.to(u.dtype), u)
            # match divides by the channels
            energy, slope = energy + len(chunk) * value, slope + len(chunk) * pull
        return energy / prod(u.shape[2:]), slope


class LandmarkPrompt(Term):
    """1/√N Σ_j ‖ϕ(p_j) - q_j‖², p_j the fixed and q_j the moving landmarks, in voxels of a level that has N.

    ϕ is interpolated linearly. A landmark weighs as a `LabelPrompt` of one voxel does, whose mask has the standard
    deviation 1/√N: with a weight of 1 it is obeyed to a fraction of a voxel, while a few of them stay a small part of
    the sum of energies, which the stop rule looks at.
    """

    def on(self, level: Level) -> Energy:
        """The landmarks in voxels of the level.

        Raises:
            ValueError: if the pair has no landmarks, or not as many of both sides.
        """
        if level.pair is None or "fixed_points" not in level.pair or "moving_points" not in level.pair:
            raise ValueError("LandmarkPrompt needs the landmarks of both images, which the pair does not have")
        p, q = level.located(level.pair["fixed_points"]), level.located(level.pair["moving_points"])
        if p.shape != q.shape or not p.numel():
            raise ValueError(
                f"LandmarkPrompt needs as many fixed as moving landmarks and at least one, not {p.shape[-1]} and "
                f"{q.shape[-1]}"
            )
        return Energy(_squared_error, p, q)

    def forward(
        self,
        u: Float[Tensor, "b d *s"],
        fixed_points: Float[Tensor, "b d n"],
        moving_points: Float[Tensor, "b d m"],
        spacing: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Scalar loss in voxels of the grid of u, the mean over the batch; the spacing says nothing here."""
        pair = Pair(fixed=u[:, :1], moving=u[:, :1], fixed_points=fixed_points, moving_points=moving_points)
        return self.value(Level(u[:, :1], u[:, :1], pair=pair), u).mean()


def _squared_error(u: Tensor, p: Tensor, q: Tensor) -> Tensor:
    p, q = p.to(u), q.to(u)
    return (p + sample(u, p) - q).square().sum((1, 2)) / prod(u.shape[2:]) ** 0.5


def _values(label: Tensor) -> set[int]:
    return set(label.unique().tolist()) - {0}
