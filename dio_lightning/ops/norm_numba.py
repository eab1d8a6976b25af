"""Normalisation on the CPU: tensors (b, c, *s), channels last, to the compiled loops and back."""

import numpy as np
import torch
from torch import Tensor

from dio_lightning.ops import norm_kernels
from dio_lightning.ops.match_numba import _threads
from dio_lightning.ops.memory import empty_like


def channel_sums(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Over the voxels of each channel the sums of g and of g x, each (b, c) in float64."""
    step = norm_kernels.whole(x.shape[1])
    parts = -(-x[0].numel() // (step * norm_kernels.BLOCKS))
    out = torch.zeros(len(x), parts, 2, x.shape[1], dtype=torch.float64)
    kernel = norm_kernels.sums_bits if x.dtype == torch.bfloat16 else norm_kernels.sums
    _threads()
    kernel(_rows(gradient.to(x.dtype)), _rows(x), step, np.zeros(1, _number(x)), out.numpy())
    bare, product = out.sum(1).unbind(1)
    return bare, product


def combined(gradient: Tensor, x: Tensor, of_gradient: Tensor, of_x: Tensor, shift: Tensor) -> Tensor:
    """A g + b x + c with numbers (b, c) of each channel, in the type of x."""
    numbers = (y.numpy().astype(_number(x)) for y in (of_gradient, of_x, shift))
    out = empty_like(_last(x))
    kernel = norm_kernels.combined_bits if x.dtype == torch.bfloat16 else norm_kernels.combined
    _threads()
    kernel(_rows(gradient.to(x.dtype)), _rows(x), norm_kernels.whole(x.shape[1]), *numbers, _array(out))
    return out.movedim(-1, 1)


def _number(x: Tensor) -> type[np.floating]:
    return np.float64 if x.dtype == torch.float64 else np.float32


def _last(x: Tensor) -> Tensor:
    return x.detach().movedim(1, -1).contiguous()


def _rows(x: Tensor) -> np.ndarray:
    return _array(_last(x))


def _array(x: Tensor) -> np.ndarray:
    """(b, n c), bits where NumPy has no such number."""
    flat = x.view(len(x), -1)
    return (flat.view(torch.uint16) if x.dtype == torch.bfloat16 else flat).numpy()
