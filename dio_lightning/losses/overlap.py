"""Soft Dice of linearly warped labels."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from dio_lightning import ops
from dio_lightning.pair import full_precision

Label = Integer[Tensor, "b 1 *s"]
_EPS = 1e-6


def soft_dice(
    fixed_label: Label, moving_label: Label, u: Float[Tensor, "b d *s"], num_labels: int | None = None
) -> Float[Tensor, "b k"]:
    """Dice of each label 1..k between the fixed mask f and the linearly warped moving mask m, shape (b, k).

    (2 Σfm + 1e-6) / (Σf + Σm + 1e-6), equal to warping each binary mask with border padding (a label in neither map
    gives 1 and no gradient); see `ops.label_sums`. Differentiable once, in u; NaN where u is not finite.

    Raises:
        ValueError: if a label exceeds num_labels (default: the largest in either map).
    """
    largest = int(max(fixed_label.max(), moving_label.max()))
    count = largest if num_labels is None else num_labels
    if largest > count:
        raise ValueError(f"Labels must be at most num_labels = {count}, found {largest}.")
    u = full_precision(u)
    both, either = ops.label_sums(fixed_label, moving_label, u, count)
    total = ops.label_counts(fixed_label, count) + either
    return ((2 * both + _EPS) / (total + _EPS)).to(u.dtype)


class Dice(nn.Module):
    """1 - soft Dice, averaged over the labels present in the fixed or the moving map of each pair, in [0, 1].

    Labels absent from both maps give no term (their Dice would be the constant 1).
    """

    def __init__(self, num_labels: int | None = None) -> None:
        super().__init__()
        self.num_labels = num_labels

    def forward(self, fixed_label: Label, moving_label: Label, u: Float[Tensor, "b d *s"]) -> Float[Tensor, ""]:
        """Scalar loss; 0 if there is no label at all."""
        scores = soft_dice(fixed_label, moving_label, u, self.num_labels)
        fixed, moving = (ops.label_counts(x, scores.shape[1]) for x in (fixed_label, moving_label))
        present = fixed + moving > 0
        return torch.where(present, 1 - scores, 0).sum() / present.sum().clamp(min=1)
