"""How far a displacement and that of the pair the other way round are from being each other's inverse."""

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning.fields import compose
from dio_lightning.pair import full_precision


def inverse_consistency(forth: Float[Tensor, "b d *s"], back: Float[Tensor, "b d *s"]) -> Float[Tensor, ""]:
    """Mean squared length of both round trips, in voxels²: ½ |ϕ ∘ ψ - id|² + ½ |ψ ∘ ϕ - id|²; differentiable.

    Zero where ψ is the inverse of ϕ (Christensen and Johnson, IEEE TMI 2001; Greer et al., "ICON", ICCV 2021).
    Beyond the border a displacement goes on as it is there, so that what moves in from outside counts too.

    Args:
        forth: ϕ - id, of pairs as they are, in voxels of the common grid.
        back: ψ - id, of the same pairs with fixed and moving exchanged.
    """
    ways = torch.cat([forth, back]), torch.cat([back, forth])
    return compose(*map(full_precision, ways)).square().sum(1).mean()
