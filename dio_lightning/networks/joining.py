"""The convolution at which a decoder joins what comes from below with a skip, without the finer copy of the former."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from dio_lightning import ops
from dio_lightning.networks.blocks import Conv2d, Conv3d, channels_last

SPLIT_ON_CUDA = False
LEAST = 2**12
"""Voxels from which on a transposed convolution is faster than what it spares."""


def join(block: nn.Module, coarse: Float[Tensor, "b c *t"], skip: Float[Tensor, "b k *s"]) -> Float[Tensor, "b o *s"]:
    """A block of the nearest neighbours of `coarse` on the grid of `skip`, followed by the channels of `skip`.

    On CPUs a convolution of 3^d that starts the block is split: of the skip it is as ever, of the nearest neighbours a
    transposed one of 4^d, which has 8/27 of the products in 3-D. Results differ by rounding.
    """
    convolution, *rest = parts_of(block)
    if not _splits(convolution, coarse, skip):
        return block(beside(nearest(coarse, skip.shape[2:]), skip))
    below, weight = coarse.shape[1], convolution.weight
    return through(rest, split(convolution, coarse, skip, weight[:, :below], weight[:, below:]))


def join_normalised(
    block: nn.Module, skip: Float[Tensor, "b k *s"], coarse: Float[Tensor, "b c *t"]
) -> Float[Tensor, "b o *s"]:
    """A normalisation and more of the channels of `skip`, followed by the nearest neighbours of `coarse`.

    In training on CPUs it is split as in `join`, where no group has channels of both: neighbours that are repeated have
    the moments of those that are not. In use it is not, since a solve multiplies the rounding of features.
    """
    norm, convolution, *rest = two_and_more(block)
    if not (torch.is_grad_enabled() and _whole_groups(norm, skip, coarse) and _splits(convolution, coarse, skip)):
        return block(beside(skip, nearest(coarse, skip.shape[2:])))
    above = skip.shape[1]
    skip, coarse = _normalised(norm, skip, slice(above)), _normalised(norm, coarse, slice(above, None))
    of_skip, of_coarse = convolution.weight[:, :above], convolution.weight[:, above:]
    return through(rest, split(convolution, coarse, skip, of_coarse, of_skip))


def beside(*parts: Float[Tensor, "b _ *s"]) -> Float[Tensor, "b c *s"]:
    """The channels of all parts, one after the other.

    Where channels are last, what comes back to a part is a slice of whole voxels, which torch's kernels read several
    times slower than a tensor of its own: it is copied once.
    """
    return torch.cat([_Apart.apply(x) if x.stride(1) == 1 else x for x in parts], 1)


class _Apart(Function):
    """The identity, whose gradient has its channels last, and nothing between its voxels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        return x.expand_as(x)  # a view of its size may have another stride where there is a single sample

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        return channels_last(gradients[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:  # noqa: ANN401
        return tangents[0].expand_as(tangents[0])


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


def parts_of(block: nn.Module) -> list[nn.Module]:
    """What a sequence consists of; one that something is wrapped around (FSDP) is left whole."""
    return [part for child in block for part in parts_of(child)] if type(block) is nn.Sequential else [block]


def two_and_more(block: nn.Module) -> list[nn.Module]:
    """`parts_of`, of which a block that is whole is the first, and the second does nothing."""
    parts = parts_of(block)
    return parts if len(parts) > 1 else [*parts, nn.Identity()]


def through(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """What the modules make of x, one after the other."""
    for module in modules:
        x = module(x)
    return x


def split(layer: nn.Conv2d | nn.Conv3d, coarse: Tensor, skip: Tensor, of_coarse: Tensor, of_skip: Tensor) -> Tensor:
    """`join` by two convolutions, of a layer of 3^d with these weights on a grid of exactly twice the voxels."""
    from_skip = layer._conv_forward(skip, of_skip, None)
    transposed = F.conv_transpose2d if coarse.ndim == 4 else F.conv_transpose3d
    return transposed(coarse, doubled(of_coarse), layer.bias, stride=2, padding=1).add_(from_skip)


def doubled(weight: Float[Tensor, "o c *k"]) -> Float[Tensor, "c o *l"]:
    """Weights 4^d of the transposed convolution of stride 2 that doubles an image and convolves it with weights 3^d.

    Doubling is a transposed convolution of 2^d ones, and one after the other their kernels are convolved.
    """
    axes = range(2, weight.ndim)
    kernel = F.pad(weight.flip(*axes).transpose(0, 1), [1, 1] * len(axes))
    for axis in axes:
        kernel = kernel.narrow(axis, 0, 4) + kernel.narrow(axis, 1, 4)
    return kernel


def _normalised(norm: nn.GroupNorm, x: Tensor, channels: slice) -> Tensor:
    """Some of the channels of a normalisation, whole groups."""
    groups = norm.num_groups * x.shape[1] // norm.num_channels
    return ops.group_norm(x, groups, norm.weight[channels], norm.bias[channels], norm.eps)


def _whole_groups(norm: nn.Module, *parts: Tensor) -> TypeGuard[nn.GroupNorm]:
    """Whether this is a normalisation with weights whose groups lie in one part each."""
    if not isinstance(norm, nn.GroupNorm) or not norm.affine:
        return False
    return all(x.shape[1] * norm.num_groups % norm.num_channels == 0 for x in parts)


def plain(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Whether this is a convolution whose weights may be taken without calling it.

    Not one of a derived class: its weights may lie in parts on several processes (`fully_shard`), or its call do more.
    """
    return type(layer) in (Conv2d, Conv3d, nn.Conv2d, nn.Conv3d)


def _splits(layer: nn.Module, coarse: Tensor, skip: Tensor) -> TypeGuard[nn.Conv2d | nn.Conv3d]:
    """Whether `split` is right, and faster."""
    if not plain(layer) or set(layer.kernel_size) != {3} or set(layer.stride) != {1}:
        return False
    if not _twice(coarse.shape[2:], skip.shape[2:]) or coarse[0, 0].numel() < LEAST:
        return False
    if coarse.is_cuda:
        return SPLIT_ON_CUDA and not torch.is_grad_enabled()
    # a transposed kernel of 4 on fewer voxels, in 16 bits: see `blocks.too_small`
    rounded = torch.is_autocast_enabled("cpu") or coarse.dtype not in (torch.float32, torch.float64)
    return coarse.device.type == "cpu" and not (rounded and min(coarse.shape[2:]) < 4)
