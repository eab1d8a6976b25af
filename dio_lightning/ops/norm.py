"""Group normalisation: torch's, but where its kernels wait for themselves.

Its slope on a CPU takes ten times as long with channels last as with channels first, which is how convolutions like
them: there loops sum the channels (`ops.choice`). On CUDA one block of threads sums a group: large groups are
normalised from the moments of channels, which all threads sum.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dio_lightning.ops.choice import implementation, tangents

MANY = 2**19
"""Values of a group from which on torch's kernel for CUDA waits for itself."""
PIECE = 2**13
"""Voxels whose squares are summed at a time."""
LEAST = 2**16
"""Values from which on loops are worth their call."""


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`torch.group_norm` of (b, c, *s), weight and bias (c,); a group of one value is 0 before them."""
    if _many(x, groups) or tangents(x, weight, bias):  # torch's forward mode wants channels first
        return normalised(x, groups, weight, bias, eps)
    recorded = torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad))
    if not recorded or not _lies_last(x):
        return torch.group_norm(x, groups, weight, bias, eps)
    if _kernels(x) is not None:
        return _GroupNorm.apply(x, groups, weight, bias, eps)
    if x.requires_grad:
        return torch.group_norm(x, groups, weight, bias, eps)
    # torch 2.13's backward ends the process on CPUs for channels-last inputs that need no gradient
    return torch.group_norm(x.contiguous(), groups, weight, bias, eps)


def normalised(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`group_norm` from the moments of channels, in float32 at least."""
    kept = x.dtype if x.dtype == torch.float64 else torch.float32
    x = x.to(kept)
    of_channel, means = torch.var_mean(x.flatten(2), 2, correction=0)
    means, of_channel = (y.unflatten(1, (groups, -1)) for y in (means, of_channel))
    mean = means.mean(2, keepdim=True)
    variance = (of_channel + (means - mean).square()).mean(2, keepdim=True)
    scale = (variance + eps).rsqrt().expand_as(means).flatten(1)
    scale = scale if weight is None else scale * weight.to(kept)
    shift = -scale * mean.expand_as(means).flatten(1)
    shift = shift if bias is None else shift + bias.to(kept)
    scale, shift = (y[(..., *[None] * (x.ndim - 2))] for y in (scale, shift))
    return torch.addcmul(shift, x, scale)


def variances(x: Tensor) -> Tensor:
    """Unbiased variance over the voxels of each channel of (b, c, *s), (b, c); of one voxel 0. Differentiable.

    On a CPU in pieces that fit into its cache: torch's takes ten times as long where channels are last.
    """
    flat = x.flatten(2)
    if flat.shape[2] < 2:
        return torch.zeros_like(flat[:, :, 0])
    return flat.var(2) if flat.is_cuda or tangents(x) else _Variances.apply(flat)


def _many(x: Tensor, groups: int) -> bool:
    return x.is_cuda and x[0].numel() // groups >= MANY


def _lies_last(x: Tensor) -> bool:
    """Whether channels are fastest in memory, and there is more than one."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    return last is not None and x.shape[1] > 1 and x.is_contiguous(memory_format=last) and not x.is_contiguous()


def _kernels(x: Tensor) -> ModuleType | None:
    """Of volumes and planes on the CPU; float16 is not among what loops read."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32, torch.float64) or x.numel() < LEAST:
        return None
    return implementation("norm", x)


class _Variances(Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(flat)
        mean = flat.mean(2, keepdim=True)
        parts = [(piece - mean).square().sum(2) for piece in flat.split(PIECE, 2)]
        return torch.stack(parts).sum(0) / (flat.shape[2] - 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        (flat,) = ctx.saved_tensors
        return (flat - flat.mean(2, keepdim=True)) * (2 / (flat.shape[2] - 1) * gradients[0][..., None])


class _GroupNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        groups: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        (b, c), n = x.shape[:2], x.shape[2:].numel()
        y, mean, scale = torch.native_group_norm(x, weight, bias, b, c, n, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.groups, ctx.eps = groups, eps
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, bias, mean, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # of a gradient that is itself differentiated, torch has the formulas
            inputs = [y for y in (x, weight, bias) if y is not None and y.requires_grad]
            y = torch.group_norm(x.contiguous(), ctx.groups, weight, bias, ctx.eps)
            parts = iter(torch.autograd.grad(y, inputs, gradients[0], create_graph=True))
            of = [next(parts) if y is not None and y.requires_grad else None for y in (x, weight, bias)]
            return of[0], None, of[1], of[2], None
        of_x, of_weight, of_bias = torch.ops.dio.group_norm_backward(gradients[0], x, weight, mean, scale)
        needs = ctx.needs_input_grad
        return of_x if needs[0] else None, None, of_weight if needs[2] else None, of_bias if needs[3] else None, None


@torch.library.custom_op("dio::group_norm_backward", mutates_args=())
def _group_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the weight and of the bias, from those of the result; mean and 1/deviation are (b, groups)."""
    kernels = _kernels(x)
    assert kernels is not None  # else there is no such node in the graph
    wide = torch.float64
    per = x.shape[1] // mean.shape[1]
    mean, scale = (y.to(wide).repeat_interleave(per, 1) for y in (mean, scale))
    bare, product = kernels.channel_sums(gradient, x)  # (b, c): Σ g and Σ g x
    product = scale * (product - mean * bare)  # Σ g x̂
    factor = torch.ones_like(bare) if weight is None else weight.to(wide).expand_as(bare)
    values = per * x.shape[2:].numel()
    of_mean, of_scale = (
        (factor * y).unflatten(1, (-1, per)).sum(2).div(values).repeat_interleave(per, 1) for y in (bare, product)
    )
    slope = -scale.square() * of_scale
    of_x = kernels.combined(gradient, x, scale * factor, slope, -scale * of_mean - slope * mean)
    kept = mean.dtype if weight is None else weight.dtype
    return of_x, product.sum(0).to(kept), bare.sum(0).to(kept)


@_group_norm_backward.register_fake
def _group_norm_backward_fake(
    gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.float64 if weight is None else weight.dtype
    return torch.empty_like(x), x.new_empty(x.shape[1], dtype=kept), x.new_empty(x.shape[1], dtype=kept)
