"""Maps as elements of a group: composition, exponential, inverse."""

import torch
from jaxtyping import Float
from torch import Tensor

from dio_lightning import ops
from dio_lightning.fields.grid import one_precision, warp
from dio_lightning.implicit import Anderson, PhantomAdjoint, Residual, Solution, Solver, fixed_point


def compose(
    u: Float[Tensor, "#b d *t"], v: Float[Tensor, "#b d *s"], factor: Float[Tensor, " b"] | None = None
) -> Float[Tensor, "b d *s"]:
    """ϕ_u ∘ ϕ_v, that is v(x) + u(x + v(x)): first along v, then along u.

    With a factor of each sample v is that many times longer.
    """
    if u.shape == v.shape and one_precision(u, v):
        return ops.compose(u, v, factor)
    v = v if factor is None else v * factor.view(-1, *[1] * (v.ndim - 1))
    warped = warp(u, v)
    return v + warped if torch.is_grad_enabled() else warped.add_(v)


def exponential(v: Float[Tensor, "b d *s"], squarings: int = 7) -> Float[Tensor, "b d *s"]:
    """Exp(v) of a stationary velocity in voxels, by scaling and squaring (Arsigny et al., MICCAI 2006)."""
    u = v / 2**squarings
    for _ in range(squarings):
        u = compose(u, u)
    return u


def inverse(
    u: Float[Tensor, "b d *s"], solver: Solver | None = None, max_steps: int = 100, rtol: float = 1e-5
) -> Solution:
    """The displacement v with x + v(x) + u(x + v(x)) = x: the fixed point of v = -u(x + v(x)), with its residual.

    It converges where u is a contraction (no folds, ‖∇u‖ < 1 along the iterates); the `Solution` says whether it did.
    """
    return fixed_point(
        lambda v: -warp(u, v),
        torch.zeros_like(u),
        solver or Anderson(window=4),
        PhantomAdjoint(),
        max_steps=max_steps,
        stop=Residual(rtol),
    )
