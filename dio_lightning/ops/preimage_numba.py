"""Preimages on the CPU: tensors to the compiled loop and back, on as many threads as torch has."""

import torch
from torch import Tensor

from dio_lightning.ops import preimage_kernels
from dio_lightning.ops.match_numba import _lift_field, _threads
from dio_lightning.ops.sampling_numba import CHUNK


def newton(u: Tensor, y: Tensor, tolerance: float, steps: int, flat: float) -> Tensor:
    """See `dio_lightning.ops.preimages`; a plane is a volume of one, across which nothing moves."""
    field = _lift_field(u[None])[0]
    points = torch.cat([y.new_zeros(3 - len(y), y.shape[1]), y]).contiguous()
    out, size = torch.empty_like(points), tuple(field.shape[1:])
    _threads()
    preimage_kernels.newton(field.flatten(1).numpy(), points.numpy(), size, tolerance, steps, flat, CHUNK, out.numpy())
    return out[3 - len(y) :]
