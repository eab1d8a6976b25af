"""How contractive an update is at a point: diagnostics, and penalties that make it so."""

import torch
from torch import Tensor

from dio_lightning.implicit.batch import norm, spread
from dio_lightning.implicit.solution import Update


def jacobian_energy(z: Tensor, fz: Tensor, probe: Tensor | None = None) -> Tensor:
    """Hutchinson's estimate of ||J||_F² / n for each sample, J = df/dz at z (b, ...), n its entries: shape (b,).

    ||J^T v||² / n with v standard normal, unless given (Bai et al., "Stabilizing equilibrium models by Jacobian
    regularization", ICML 2021). fz = f(z) must hold a graph to z; differentiable where gradients are enabled.
    """
    v = torch.randn_like(fz) if probe is None else probe
    (back,) = torch.autograd.grad(fz, z, v, create_graph=torch.is_grad_enabled(), retain_graph=True)
    return back.flatten(1).square().mean(1)


def spectral_radius(update: Update, z: Tensor, steps: int = 50, generator: torch.Generator | None = None) -> Tensor:
    """Largest |eigenvalue| of df/dz at z (b, ...) for each sample, by the power method on J^T: shape (b,).

    The geometric mean of the growth over the second half of the steps, since a complex pair makes it oscillate.
    Below 1, Picard's iteration converges near z. Raises ValueError for fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"spectral_radius needs at least 2 steps, got {steps}.")
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        fz = update(z)
    v = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    logs: list[Tensor] = []
    for _ in range(steps):
        v = v / spread(norm(v).clamp_min(torch.finfo(v.dtype).tiny), v)
        (v,) = torch.autograd.grad(fz, z, v, retain_graph=True, materialize_grads=True)
        logs.append(norm(v).log())
    return torch.stack(logs[steps // 2 :]).mean(0).exp()
