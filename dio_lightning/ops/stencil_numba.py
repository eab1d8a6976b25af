"""Stencils on the CPU: tensors to the compiled loops and back. A plane is a volume of one."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dio_lightning.ops import stencil_kernels
from dio_lightning.ops.correlation_numba import _lift
from dio_lightning.ops.match_numba import _lift_field, _threads
from dio_lightning.ops.memory import empty_like

PLANES = 32
"""Planes that one of many threads smooths at a time."""


def correlate(x: Tensor, taps: Sequence[Sequence[float]]) -> Tensor:
    """See `dio_lightning.ops.stencils.correlate`."""
    volumes = _lift(x)
    out = empty_like(volumes)
    across, down, along = (_weights(tuple(each), x.dtype) for each in [(1.0,), *taps][-3:])
    planes = volumes.shape[1] if _threads() == 1 else PLANES
    stencil_kernels.smooth(volumes.numpy(), across, down, along, planes, out.numpy())
    return out.view(x.shape)


@lru_cache(maxsize=256)
def _weights(taps: tuple[float, ...], dtype: torch.dtype) -> np.ndarray:
    """As an array, which is not to be written to."""
    return torch.tensor(taps, dtype=dtype).numpy()


def squared_differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.stencils.squared_differences`."""
    volumes = _lift(u)
    energy = torch.empty(volumes.shape[:3].numel(), dtype=torch.float64)
    slope = empty_like(volumes)
    _threads()
    stencil_kernels.differences(volumes.numpy(), energy.numpy(), slope.numpy())
    return energy.view(len(u), -1).sum(1).to(u.dtype), slope.view(u.shape)


def determinants(u: Tensor) -> Tensor:
    """See `dio_lightning.ops.stencils.determinants`."""
    field = _lift_field(u)
    out = field.new_empty(len(u), *field.shape[2:])
    _threads()
    stencil_kernels.determinants(field.numpy(), out.numpy())
    return out.view(len(u), *u.shape[2:])


def shortfall(u: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """See `dio_lightning.ops.stencils.shortfall`."""
    field = _lift_field(u)
    below = determinants(u)
    slope = empty_like(field)
    planes = below.view(len(u), *field.shape[2:])
    stencil_kernels.shortfall(field.numpy(), planes.numpy(), u.new_tensor(margin).item(), slope.numpy())
    slope = slope if u.ndim == 5 else slope[:, 1:, 0].contiguous()
    return (margin - below).clamp_(min=0).flatten(1).sum(1), slope
