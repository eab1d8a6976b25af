"""The convolution at which a decoder joins what comes from below with a skip, without the finer copy of the former."""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LEAST = 2**12
"""Voxels from which on a transposed convolution is faster than what it spares."""


def join(block: nn.Module, coarse: Float[Tensor, "b c *t"], skip: Float[Tensor, "b k *s"]) -> Float[Tensor, "b o *s"]:
    """A block of the nearest neighbours of `coarse` on the grid of `skip`, followed by the channels of `skip`.

    Without a graph, on CPUs, a convolution of 3^d that starts the block is split: of the skip it is as ever, of the
    nearest neighbours a transposed one of 4^d, which has 8/27 of the products in 3-D. Results differ by rounding.
    """
    convolution, *rest = _parts(block)
    if not _splits(convolution, coarse, skip):
        return block(torch.cat([F.interpolate(coarse, skip.shape[2:], mode="nearest"), skip], 1))
    x = split(convolution, coarse, skip)
    for module in rest:
        x = module(x)
    return x


def _parts(block: nn.Module) -> list[nn.Module]:
    """What a sequence consists of; one that something is wrapped around (FSDP) is left whole."""
    return [part for child in block for part in _parts(child)] if type(block) is nn.Sequential else [block]


def split(layer: nn.Conv2d | nn.Conv3d, coarse: Tensor, skip: Tensor) -> Tensor:
    """`join` by two convolutions, of a layer of 3^d on a grid of exactly twice the voxels."""
    below = coarse.shape[1]
    from_skip = layer._conv_forward(skip, layer.weight[:, below:], None)
    transposed = F.conv_transpose2d if coarse.ndim == 4 else F.conv_transpose3d
    return transposed(coarse, doubled(layer.weight[:, :below]), layer.bias, stride=2, padding=1).add_(from_skip)


def doubled(weight: Float[Tensor, "o c *k"]) -> Float[Tensor, "c o *l"]:
    """Weights 4^d of the transposed convolution of stride 2 that doubles an image and convolves it with weights 3^d.

    Doubling is a transposed convolution of 2^d ones, and one after the other their kernels are convolved.
    """
    axes = range(2, weight.ndim)
    kernel = F.pad(weight.flip(*axes).transpose(0, 1), [1, 1] * len(axes))
    for axis in axes:
        kernel = kernel.narrow(axis, 0, 4) + kernel.narrow(axis, 1, 4)
    return kernel


def _splits(layer: nn.Module, coarse: Tensor, skip: Tensor) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Whether `split` is right, and faster."""
    if not isinstance(layer, nn.Conv2d | nn.Conv3d) or set(layer.kernel_size) != {3} or set(layer.stride) != {1}:
        return False
    twice = all(fine == 2 * below for fine, below in zip(skip.shape[2:], coarse.shape[2:], strict=True))
    plain = coarse.device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return twice and plain and coarse[0, 0].numel() >= LEAST
