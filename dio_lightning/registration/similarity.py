"""How alike two images are, whatever their contrasts: the score that starts and results are judged by."""

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.ops import joint_histogram

BINS = 32


def normalised_information(
    one: Float[Tensor, "b 1 *s"],
    two: Float[Tensor, "#b 1 *s"],
    bins: int = BINS,
    weights: Float[Tensor, "b 1 *s"] | None = None,
) -> Float[Tensor, " b"]:
    """(H(a) + H(b)) / H(a, b) of intensities in [0, 1], between 1 (independent) and 2 (Studholme et al., 1999)."""
    p = joint_histogram(one, two.expand_as(one), bins, weights)
    return (_entropy(p.sum(1)) + _entropy(p.sum(2))) / _entropy(p.flatten(1)).clamp(min=1e-12)


def _entropy(p: Tensor) -> Tensor:
    """-Σ p log p over the last axis."""
    return -torch.special.xlogy(p, p).sum(-1)
