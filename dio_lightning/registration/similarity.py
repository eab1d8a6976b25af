"""How alike two images are, whatever their contrasts: the score that starts and results are judged by."""

import torch
from jaxtyping import Float
from torch import Tensor

BINS = 32


def normalised_information(
    one: Float[Tensor, "b 1 *s"], two: Float[Tensor, "1 1 *s"], bins: int = BINS
) -> Float[Tensor, " b"]:
    """(H(a) + H(b)) / H(a, b) of intensities in [0, 1], between 1 (independent) and 2 (Studholme et al., 1999)."""
    levels = [(x.flatten(1) * (bins - 1)).round().long().clamp(0, bins - 1) for x in (one, two)]
    joint = torch.stack([torch.bincount(a * bins + levels[1][0], minlength=bins**2) for a in levels[0]])
    p = joint.double().view(len(one), bins, bins) / levels[1].shape[1]
    return (_entropy(p.sum(1)) + _entropy(p.sum(2))) / _entropy(p.flatten(1)).clamp(min=1e-12)


def _entropy(p: Tensor) -> Tensor:
    """-Σ p log p over the last axis."""
    return -torch.special.xlogy(p, p).sum(-1)
