"""Stencils on the CPU: tensors to the compiled loops and back. A plane is a volume of one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dio_lightning.ops import stencil_kernels
from dio_lightning.ops.correlation_numba import _lift
from dio_lightning.ops.match_numba import _threads


def correlate(x: Tensor, taps: Sequence[Sequence[float]]) -> Tensor:
    """See `dio_lightning.ops.stencils.correlate`."""
    volumes, weights = _lift(x), [[1.0], *taps][-3:]
    out = torch.empty_like(volumes)
    _threads()
    along = [torch.tensor(each, dtype=x.dtype).numpy() for each in weights]
    stencil_kernels.smooth(volumes.numpy(), *along, out.numpy())
    return out.view(x.shape)


def squared_differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.stencils.squared_differences`."""
    volumes = _lift(u)
    energy = torch.empty(volumes.shape[:3].numel(), dtype=torch.float64)
    slope = torch.empty_like(volumes)
    _threads()
    stencil_kernels.differences(volumes.numpy(), energy.numpy(), slope.numpy())
    return energy.view(len(u), -1).sum(1).to(u.dtype), slope.view(u.shape)
