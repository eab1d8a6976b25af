"""What a solver does at every element of a state, in as few passes over memory as there can be.

Where no gradient is asked, compiled loops take large states and kernels all (`ops.choice`); all else is plain PyTorch.
On the CPU elements come to the same bits.
"""

from functools import reduce
from types import ModuleType

import torch
from torch import Tensor

from dio_lightning.ops.choice import backward_alone, immediate, implementation, tangents

LEAST = 2**14
"""Elements of a sample that are worth the call of a compiled loop; on a GPU kernels always spare launches."""


def residual(fz: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The residual fz - z, (b, ...), differentiable; its norm and that of fz, (b,), in float32 at least, detached."""
    if tangents(fz, z) or _kernels(fz, z) is None:
        return _residual_reference(fz, z)
    return _residual_computed(fz, z) if immediate() else torch.ops.dio.residual(fz, z)


def adam_step(
    r: Tensor, m: Tensor, s: Tensor, factor: Tensor, active: Tensor | None, beta1: float, beta2: float, eps: float
) -> None:
    """Adam's step for the residual r, of a shape (b, ...) with its averages m and s; not differentiable.

    m and s are written, and r becomes the increment: m ← β₁ m + (1 - β₁) r, s ← β₂ s + (1 - β₂) r², and
    r ← factor m / (sqrt(s) + eps rms), rms the root mean square of sqrt(s) over the sample.

    Args:
        r: residuals (b, ...).
        m: averages of residuals.
        s: averages of their squares.
        factor: (b,).
        active: (b,) bool, the samples whose averages change (None: all); r must be 0 for the others.
        beta1: β₁.
        beta2: β₂.
        eps: at least 0.
    """
    backward_alone("Adam's step", r, m, s, factor)
    settings = factor, active, beta1, beta2, eps
    if _kernels(r, m, s, factor) is None:
        _adam_reference(r, m, s, *settings)
    elif immediate():
        _adam_computed(r, m, s, *settings)
    else:
        torch.ops.dio.adam_step(r, m, s, *settings)


def largest_square(v: Tensor) -> Tensor:
    """Largest squared length of a vector of each displacement (b, d, *s), (b,); NaN where one is; differentiable."""
    backward_alone("the longest vector", v)
    if _kernels(v) is None:
        return _largest_reference(v)
    return _largest_computed(v) if immediate() else torch.ops.dio.largest_square(v)


def _residual_reference(fz: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r = fz - z
    kind = torch.promote_types(r.dtype, torch.float32)
    norms = [torch.linalg.vector_norm(x.detach().flatten(1), dim=1, dtype=kind) for x in (r, fz)]
    return r, norms[0], norms[1]


def _adam_reference(
    r: Tensor, m: Tensor, s: Tensor, factor: Tensor, active: Tensor | None, beta1: float, beta2: float, eps: float
) -> None:
    new1: float | Tensor = 1 - beta1
    new2: float | Tensor = 1 - beta2
    if active is not None:
        on = spread(active, r).to(r.dtype)
        new1, new2 = on * new1, on * new2
    m.lerp_(r, new1)
    s.lerp_(r.square_(), new2)
    size = torch.sqrt(s, out=r).add_(spread(_floor(s, eps), r))
    torch.div(m, size, out=size).mul_(spread(factor, r))


def _floor(s: Tensor, eps: float) -> Tensor:
    """What is added to sqrt(s) of each sample, (b,)."""
    return eps * s.flatten(1).mean(1).sqrt() + torch.finfo(s.dtype).tiny


def _largest_reference(v: Tensor) -> Tensor:
    squares = reduce(lambda total, x: torch.addcmul(total, x, x), v[:, 1:].unbind(1), v[:, 0].square())
    return squares.flatten(1).amax(1)


def spread(weight: Tensor, like: Tensor) -> Tensor:
    """A (b,) vector viewed as (b, 1, ..., 1), so that it broadcasts over the fields `like` (b, ...)."""
    return weight.view(-1, *[1] * (like.ndim - 1))


def _kernels(*tensors: Tensor) -> ModuleType | None:
    """They take states (b, ...) of one shape and precision as they lie in memory, and record nothing."""
    first = tensors[0]
    few = first.device.type == "cpu" and first.numel() < LEAST * len(first)
    if few or first.ndim < 2 or first.dtype not in (torch.float32, torch.float64):
        return None
    alike = all(x.dtype == first.dtype and (x.shape == first.shape or x.ndim == 1) for x in tensors)
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if recorded or not alike or not all(x.is_contiguous() for x in tensors):
        return None
    return implementation("steps", first)


def _residual_computed(fz: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(fz, z)
    return (_residual_reference if kernels is None else kernels.residual)(fz, z)


def _adam_computed(
    r: Tensor, m: Tensor, s: Tensor, factor: Tensor, active: Tensor | None, beta1: float, beta2: float, eps: float
) -> None:
    kernels = _kernels(r, m, s, factor)
    (_adam_reference if kernels is None else kernels.adam_step)(r, m, s, factor, active, beta1, beta2, eps)


def _largest_computed(v: Tensor) -> Tensor:
    kernels = _kernels(v)
    return (_largest_reference if kernels is None else kernels.largest_square)(v)


@torch.library.custom_op("dio::residual", mutates_args=())
def _residual(fz: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _residual_computed(fz, z)


@torch.library.custom_op("dio::adam_step", mutates_args=("r", "m", "s"))
def _adam_step(
    r: Tensor, m: Tensor, s: Tensor, factor: Tensor, active: Tensor | None, beta1: float, beta2: float, eps: float
) -> None:
    _adam_computed(r, m, s, factor, active, beta1, beta2, eps)


@torch.library.custom_op("dio::largest_square", mutates_args=())
def _largest_square(v: Tensor) -> Tensor:
    return _largest_computed(v)


@_residual.register_fake
def _residual_fake(fz: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    norm = z.new_empty(len(z), dtype=torch.promote_types(z.dtype, torch.float32))
    return z.new_empty(z.shape), norm, torch.empty_like(norm)


@_adam_step.register_fake
def _adam_step_fake(
    r: Tensor, m: Tensor, s: Tensor, factor: Tensor, active: Tensor | None, beta1: float, beta2: float, eps: float
) -> None:
    return None


@_largest_square.register_fake
def _largest_square_fake(v: Tensor) -> Tensor:
    return v.new_empty(len(v))
