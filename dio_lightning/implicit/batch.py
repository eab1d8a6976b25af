"""Per-sample arithmetic on batches of fields: axis 0 is the batch, every other axis is summed over."""

import torch
from torch import Tensor

from dio_lightning.ops.steps import spread


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample of x (b, ...), shape (b,), in float32 at least."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.promote_types(x.dtype, torch.float32))


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of each sample of x and y (b, ...), shape (b,), in the precision of x and y.

    No `vecdot`: that is a matrix product, which autocast and TF32 round to three digits.
    """
    return (x * y).flatten(1).sum(1)


def accumulate(total: Tensor, weight: Tensor, field: Tensor) -> Tensor:
    """`total` + weight (b,) x field; overwrites `total` where no graph can be recorded."""
    factor = spread(weight, field).to(field.dtype)
    if torch.is_grad_enabled():
        return torch.addcmul(total, factor, field)
    return total.addcmul_(factor, field)


def finite(x: Tensor) -> Tensor:
    """Whether each sample of x (b, ...) holds neither NaN nor infinity, shape (b,) bool."""
    return x.detach().flatten(1).sum(1).abs() < torch.inf
