"""A solver's step on the CPU: tensors, contiguous, to the compiled loops and back, on as many threads as torch has."""

import torch
from torch import Tensor

from dio_lightning.ops import steps_kernels
from dio_lightning.ops.match_numba import _threads
from dio_lightning.ops.memory import empty_like
from dio_lightning.ops.steps import _floor


def residual(fz: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `dio_lightning.ops.steps.residual`."""
    out, (left, right) = empty_like(z), (x.detach().flatten(1) for x in (fz, z))
    squares = torch.empty(len(z), -(-left.shape[1] // steps_kernels.CHUNK), 2, dtype=torch.float64)
    _threads()
    steps_kernels.residual(left.numpy(), right.numpy(), out.flatten(1).numpy(), squares.numpy())
    of_out, of_fz = squares.sum(1).sqrt().to(z.dtype).unbind(1)
    return out, of_out.clone(), of_fz.clone()  # an operator's results share no memory


def adam_step(
    r: Tensor, m: Tensor, s: Tensor, factor: Tensor, active: Tensor | None, beta1: float, beta2: float, eps: float
) -> None:
    """See `dio_lightning.ops.steps.adam_step`."""
    on = r.new_ones(len(r)) if active is None else active.to(r.dtype)
    weights = (on * (1 - beta1)).numpy(), (on * (1 - beta2)).numpy()
    flat = r.flatten(1).numpy(), m.flatten(1).numpy(), s.flatten(1).numpy()
    _threads()
    steps_kernels.average(*flat, *weights)
    torch.sqrt(s, out=r)  # PyTorch's own root is not rounded as that of compiled loops is
    steps_kernels.divide(flat[1], flat[0], _floor(s, eps).numpy(), factor.numpy())


def largest_square(v: Tensor) -> Tensor:
    """See `dio_lightning.ops.steps.largest_square`."""
    vectors = v.detach().flatten(2)
    squares = vectors.new_empty(len(v), -(-vectors.shape[2] // steps_kernels.CHUNK))
    _threads()
    steps_kernels.largest_squares(vectors.numpy(), squares.numpy())
    return squares.amax(1)
