"""The convolution at which a decoder joins what comes from below with a skip, without the finer copy of the former."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SPLIT_ON_CUDA = False
LEAST = 2**12
"""Voxels from which on a transposed convolution is faster than what it spares."""


def join(block: nn.Module, coarse: Float[Tensor, "b c *t"], skip: Float[Tensor, "b k *s"]) -> Float[Tensor, "b o *s"]:
    """A block of the nearest neighbours of `coarse` on the grid of `skip`, followed by the channels of `skip`.

    Without a graph, on CPUs, a convolution of 3^d that starts the block is split: of the skip it is as ever, of the
    nearest neighbours a transposed one of 4^d, which has 8/27 of the products in 3-D. Results differ by rounding.
    """
    convolution, *rest = _parts(block)
    if not _splits(convolution, coarse, skip):
        return block(torch.cat([nearest(coarse, skip.shape[2:]), skip], 1))
    x = split(convolution, coarse, skip)
    for module in rest:
        x = module(x)
    return x


def nearest(coarse: Float[Tensor, "b c *t"], size: Sequence[int]) -> Float[Tensor, "b c *s"]:
    """The nearest voxel of a coarse grid at each of a fine one, as `torch.nn.functional.interpolate` has it.

    torch's kernel for volumes on CUDA knows channels first alone, and turns what has them last there and back; a grid
    of exactly twice the voxels is copied as it lies.
    """
    copies = coarse.is_cuda and coarse.ndim == 5 and coarse.stride(1) == 1 and _twice(coarse.shape[2:], size)
    return repeated(coarse) if copies else F.interpolate(coarse, size, mode="nearest")


def repeated(coarse: Float[Tensor, "b c *t"]) -> Float[Tensor, "b c *s"]:
    """Every voxel twice along every axis, channels last in memory."""
    b, c, *t = coarse.shape
    x = coarse.movedim(1, -1)
    for axis in range(len(t)):
        x = x.unsqueeze(2 + 2 * axis)
    x = x.expand(b, *(n for extent in t for n in (extent, 2)), c)
    return x.reshape(b, *(2 * extent for extent in t), c).movedim(-1, 1)


def _twice(coarse: Sequence[int], fine: Sequence[int]) -> bool:
    return all(n == 2 * below for n, below in zip(fine, coarse, strict=True))


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
    plain = (coarse.device.type == "cpu" and not torch.is_autocast_enabled("cpu")) or (coarse.is_cuda and SPLIT_ON_CUDA)
    plain = plain and not torch.is_grad_enabled()
    return plain and _twice(coarse.shape[2:], skip.shape[2:]) and coarse[0, 0].numel() >= LEAST
