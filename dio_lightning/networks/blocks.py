"""Layers in 2-D and 3-D, and their memory format."""

from typing import Literal

import torch
from jaxtyping import Float
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]


def conv(
    spatial_dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Module:
    """Convolution that keeps the size (or divides it by the stride)."""
    return Conv[Conv.CONV, spatial_dims](inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)


def conv_leaky(spatial_dims: int, inputs: int, outputs: int) -> nn.Sequential:
    """3^d convolution and LeakyReLU 0.2: VoxelMorph's block."""
    return nn.Sequential(conv(spatial_dims, inputs, outputs), nn.LeakyReLU(0.2, inplace=True))


def max_pool(spatial_dims: int) -> nn.Module:
    """Maximum over blocks of 2^d voxels, or of what is left of a block at the far side."""
    return Pool[Pool.MAX, spatial_dims](2, ceil_mode=True)


def channels_last(x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
    """The same tensor with channels fastest in memory, as the matching operator and CPU convolutions read it."""
    return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim])


def autocast(x: Tensor, precision: Precision) -> torch.autocast:
    """Convolutions in bfloat16, or in the precision that the caller has chosen."""
    given = torch.is_autocast_enabled(x.device.type)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.get_autocast_dtype(x.device.type)
    return torch.autocast(x.device.type, dtype, enabled=given or precision == "bfloat16")


def check_precision(precision: str) -> None:
    """Raises ValueError for anything but float32 and bfloat16."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f'precision must be "float32" or "bfloat16", not {precision!r}.')
