"""Layers in 2-D and 3-D, their memory format and their precision."""

import logging
from functools import cache
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]


class Conv2d(nn.Conv2d):
    """torch's, but on CPUs grids that its kernel hardly fits are computed in float32 (`too_small`)."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        return _in_float32(self, input) if too_small(self, input) else super().forward(input)


class Conv3d(nn.Conv3d):
    """torch's, but on CPUs single samples go to oneDNN, and small grids are computed in float32 (`too_small`)."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        if too_small(self, input):
            return _in_float32(self, input)
        return _by_onednn(self, input, self.weight, self.bias) if _alone(self, input) else super().forward(input)


def too_small(layer: nn.Conv2d | nn.Conv3d, x: Float[Tensor, "b c *s"]) -> bool:
    """Whether a convolution would run in 16 bits and must not: on a CPU, an extent below the kernel's (at least 3).

    oneDNN's bfloat16 convolutions for CPUs with AVX512-BF16 read uninitialised memory in the gradient of the weights
    where input or output has an extent of at most 2 voxels under a kernel of 3. The coarsest scales cost next to
    nothing, so larger kernels get the same margin.
    """
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    extents = [-(-extent // step) for extent, step in zip(x.shape[2:], layer.stride, strict=True)]
    sixteen_bits = torch.is_autocast_enabled("cpu") or x.dtype != torch.float32
    return sixteen_bits and min(extents) < max(3, *layer.kernel_size)


def _alone(layer: nn.Conv3d, x: Tensor) -> bool:
    """Whether this is one sample in float32 on a CPU that has oneDNN.

    torch 2.13 unfolds a single sample if its channels times its first two extents are at most 20,480, which takes up to
    twelve times as long as oneDNN: its rule is one for planes, and overlooks how wide a volume is.
    """
    plain = x.device.type == "cpu" and x.dtype == layer.weight.dtype == torch.float32
    return plain and _single(layer, x) and not torch.is_autocast_enabled("cpu")


def _single(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> bool:
    able = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # pyright: ignore[reportAttributeAccessIssue]
    return able and x.ndim == 5 and len(x) == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _by_onednn(layer: nn.Conv2d | nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution that torch would take for two samples; its gradients are those that torch has for one."""
    assert not isinstance(layer.padding, str)
    return torch.mkldnn_convolution(x, weight, bias, layer.padding, layer.stride, layer.dilation, layer.groups)


def _in_float32(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """The convolution in float32; its result too, unless the layer itself is in 16 bits."""
    weight, bias = layer.weight.float(), None if layer.bias is None else layer.bias.float()
    with torch.autocast("cpu", enabled=False):
        if _single(layer, x):
            result = _by_onednn(layer, x.float(), weight, bias)
        else:
            result = layer._conv_forward(x.float(), weight, bias)
    return result.to(layer.weight.dtype)


def conv(
    spatial_dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Module:
    """Convolution that keeps the size (or divides it by the stride), in 2 or 3 dimensions."""
    kind = Conv2d if spatial_dims == 2 else Conv3d
    return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)


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
    """Convolutions in bfloat16, or in the precision that the caller has chosen.

    A processor without instructions for bfloat16 computes in float32 instead, whose results differ by rounding only:
    oneDNN would emulate it there, ten times slower. What a caller's own autocast asks for is left to the caller.
    """
    device = x.device.type
    own = precision == "bfloat16" and (device != "cpu" or computes_bfloat16())
    dtype = torch.bfloat16 if own else torch.get_autocast_dtype(device)
    return torch.autocast(device, dtype, enabled=own or torch.is_autocast_enabled(device))


@cache
def computes_bfloat16() -> bool:
    """Whether this processor convolves in bfloat16 at all (not: emulates it). Says once where it does not."""
    able = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not able:
        logging.getLogger("lightning.pytorch").info(
            "This CPU has no instructions for bfloat16: networks that ask for it are computed in float32."
        )
    return able


def check_precision(precision: str) -> None:
    """Raises ValueError for anything but float32 and bfloat16."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f'precision must be "float32" or "bfloat16", not {precision!r}.')


@runtime_checkable
class _Rounded(Protocol):
    """A network that may compute in bfloat16."""

    precision: str


def compute_in_float32(module: nn.Module) -> None:
    """Switch bfloat16 off in every network of a method."""
    for part in module.modules():
        if isinstance(part, _Rounded):
            part.precision = "float32"
