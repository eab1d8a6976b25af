"""Composition of displacements in one pass by a loop or a kernel where no gradient is asked, else in plain PyTorch."""

from types import ModuleType

import torch
from torch import Tensor

from dio_lightning.ops.choice import backward_alone, immediate, implementation
from dio_lightning.ops.sampling import LARGEST, interpolate


def compose(u: Tensor, v: Tensor, factor: Tensor | None = None) -> Tensor:
    """The displacement of ϕ_u ∘ (id + factor v), which is factor v(x) + u(x + factor v(x)), (b, d, *s); differentiable.

    Args:
        u: displacements (b, d, *s) in voxels, continued beyond the border as they are there.
        v: displacements on the same grid, in the same precision.
        factor: (b,), by default 1.
    """
    backward_alone("composition", u, v, factor)
    if _kernels(u, v, factor) is not None:
        factor = v.new_ones(len(v)) if factor is None else factor
        return _composed(u, v, factor) if immediate() else torch.ops.dio.compose(u, v, factor)
    return reference(u, v, factor)


def reference(u: Tensor, v: Tensor, factor: Tensor | None = None) -> Tensor:
    """`compose` in plain PyTorch around `interpolate`."""
    step = v if factor is None else v * factor.view(-1, *[1] * (v.ndim - 1))
    warped = interpolate(u, step, relative=True)
    return step + warped if torch.is_grad_enabled() else warped.add_(step)


@torch.library.custom_op("dio::compose", mutates_args=())
def _compose(u: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    return _composed(u, v, factor)


def _composed(u: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    kernels = _kernels(u, v, factor)
    return reference(u, v, factor) if kernels is None else kernels.compose(u, v, factor)


@_compose.register_fake
def _compose_fake(u: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    return v.new_empty(v.shape)


def _kernels(u: Tensor, v: Tensor, factor: Tensor | None) -> ModuleType | None:
    """Loops or kernels that take fields of one grid and one precision, and record nothing."""
    fields = (u, v) if factor is None else (u, v, factor)
    if torch.is_grad_enabled() and any(x.requires_grad for x in fields):
        return None
    fits = u.shape == v.shape and u.ndim in (4, 5) and all(x.dtype == u.dtype for x in fields)
    if not (fits and u.dtype in (torch.float32, torch.float64)) or u.shape[2:].numel() > LARGEST:
        return None
    return implementation("sampling", u)
