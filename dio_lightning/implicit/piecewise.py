"""A loss of many parts in the memory of one."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def piecewise_sum(parts: Iterable[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Σ parts (scalars), each differentiated with respect to the parameters, and freed, before the next is asked for.

    The sum's own backward hands those gradients on, multiplied by what arrives: gradient scaling, accumulation,
    clipping and the gradient averaging of several processes see one ordinary loss. Parameters without gradient get
    zero. Without gradients enabled it is the plain sum. Raises ValueError if there is no part.
    """
    leaves = [p for p in parameters if p.requires_grad] if torch.is_grad_enabled() else []
    total: Tensor | None = None
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    for part in parts:
        if leaves and part.requires_grad:
            for gradient, new in zip(gradients, torch.autograd.grad(part, leaves, allow_unused=True), strict=True):
                if new is not None:
                    gradient += new
        total = part.detach() if total is None else total + part.detach()
        del part
    if total is None:
        raise ValueError("piecewise_sum needs at least one part.")
    return _Known.apply(total, gradients, *leaves) if leaves else total


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx, value: Tensor, gradients: list[Tensor], *leaves: Tensor) -> Tensor:  # noqa: ANN001
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
        return None, None, *(grads[0] * gradient for gradient in ctx.gradients)
