"""What Triton's kernels share: which voxels a program takes, cells of a grid, and how kernels are launched.

A kernel is written once for planes and volumes; D is the number of axes, and a plane is a volume whose first axis it
skips. Numbers are computed in float32, and in float64 where the input has it. A sample starts at a 64-bit offset;
offsets within it have 64 bits where 32 are too few (WIDE).
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]  # it is made for Linux alone
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

jit: Any = triton.jit
"""Untyped, so that a kernel may be given a grid in brackets."""

LARGEST = 2**31 - 2**16
"""Offset within a sample up to which 32 bits are enough, that of the last program's empty places included."""


class Strides(NamedTuple):
    """Of (b, c, *s): elements to the next sample, along each axis (the first 0 for a plane), to the next channel."""

    sample: int
    first: int
    second: int
    third: int
    channel: int


def strides(x: Tensor) -> Strides:
    """A single sample serves as many as there are."""
    sample, channel, *axes = x.stride()
    first, second, third = (0, *axes)[-3:]
    return Strides(0 if len(x) == 1 else sample, first, second, third, channel)


def volume(x: Tensor) -> tuple[int, int, int]:
    """The size of a volume (b, c, *s), or of a plane as one."""
    first, second, third = (1, *x.shape[2:])[-3:]
    return first, second, third


def wide(*tensors: Tensor, values: int = 7) -> bool:
    """Whether offsets within a sample need 64 bits; `values` is the most that is written for a voxel."""
    spans = [sum((n - 1) * abs(step) for n, step in zip(x.shape[1:], x.stride()[1:], strict=True)) for x in tensors]
    return max(*spans, *(values * x.shape[2:].numel() for x in tensors)) > LARGEST


def power_of_two(n: int) -> int:
    """The least that is not below a positive number."""
    return 1 << (n - 1).bit_length()


def precision(*tensors: Tensor) -> tuple[torch.dtype, Any]:
    """What their numbers are computed in, for PyTorch and for Triton: float64 where one of them has it."""
    double = any(x.dtype == torch.float64 for x in tensors)
    return (torch.float64, tl.float64) if double else (torch.float32, tl.float32)


def unordered(operator: str, x: Tensor) -> None:
    """Is called before atomic additions, whose order differs from run to run on a GPU.

    Raises:
        RuntimeError: where PyTorch was asked for deterministic algorithms alone, as its own operators do.
    """
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return
    sentence = f"{operator} adds in no fixed order on CUDA, but torch.use_deterministic_algorithms asks for one"
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(sentence)
    warnings.warn(sentence, stacklevel=2)


def on(x: Tensor) -> AbstractContextManager:
    """Kernels are launched on the tensor's device, which need not be the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@jit
def share(blocks, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # noqa: ANN001, ANN201
    """The sample that a program takes (64 bits), and the places in it."""
    program = tl.program_id(0)
    first = program % blocks
    if WIDE:
        first = first.to(tl.int64)
    return (program // blocks).to(tl.int64), first * BLOCK + tl.arange(0, BLOCK)


@jit
def tile(s0, s1, s2, T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, WIDE: tl.constexpr):  # noqa: ANN001, ANN201
    """The sample that a program takes (64 bits), the voxels of its tile and where they lie, and which are inside.

    Neighbours along every axis are of one program, so that what their cells share is read once.
    """
    lines, rows = (s2 + T2 - 1) // T2, (s1 + T1 - 1) // T1
    blocks = lines * rows * ((s0 + T0 - 1) // T0)
    program = tl.program_id(0)
    first, lane = program % blocks, tl.arange(0, T0 * T1 * T2)
    i = first // lines // rows * T0 + lane // (T1 * T2)
    j = first // lines % rows * T1 + lane // T2 % T1
    k = first % lines * T2 + lane % T2
    inside = (i < s0) & (j < s1) & (k < s2)
    if WIDE:
        i, j, k = i.to(tl.int64), j.to(tl.int64), k.to(tl.int64)
    return (program // blocks).to(tl.int64), (i * s1 + j) * s2 + k, i, j, k, inside


@jit
def place(n, s1, s2):  # noqa: ANN001, ANN201
    """Where voxel n of a volume lies along its three axes."""
    line = n // s2
    return line // s1, line % s1, n % s2


@jit
def cell(position, extent, WIDE: tl.constexpr):  # noqa: ANN001, ANN201
    """Lower corner, 1 if the upper one is another, fraction, and 1 where the border does not clamp the position.

    The fraction is NaN where the position is not finite.
    """
    last = (extent - 1).to(position.dtype)
    moves = ((position > 0) & (position < last)).to(position.dtype)
    finite = tl.abs(position) < float("inf")
    p = tl.where(finite & (position > 0), position, 0.0)
    p = tl.where(p > last, last, p)
    low = p.to(tl.int32)
    fraction = tl.where(finite, p - low.to(position.dtype), float("nan"))
    step = (low < extent - 1).to(tl.int32)
    if WIDE:
        low, step = low.to(tl.int64), step.to(tl.int64)
    return low, step, fraction, moves


@jit
def write(to, step, x0, x1, x2, inside, D: tl.constexpr):  # noqa: ANN001, ANN201
    """Stores the last D of three values of each voxel, one volume after the other."""
    if D == 3:
        tl.store(to, x0, inside)
        to += step
    tl.store(to, x1, inside)
    tl.store(to + step, x2, inside)
