"""Memory of results that nobody holds any more, for the results to come: a solve asks the system for its pages once.

glibc asks for each array of more than 32 MB anew and gives it back when it is freed, so that a step of a solver on a
large image waits longer for pages than for arithmetic. Memory is given out again only when no tensor, view or array
lies in it any more; so whoever keeps a state of a solve keeps its values, and nothing has to be copied.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import ref

import numpy as np
import torch
from torch import Tensor

LEAST = 2**20
"""Bytes of a result that is kept: smaller ones cost nothing."""

LINE = 64
"""Bytes of a line of the cache."""


class _Kept(threading.local):
    """Of a thread: arrays, each with what it was last lent as; None where nothing is kept."""

    arrays: list[tuple[np.ndarray, "ref[np.ndarray]"]] | None = None


_KEPT = _Kept()


@contextmanager
def reuse() -> Iterator[None]:
    """Within it, `empty` and `empty_like` give the memory of large results that nobody holds any more; a thread's own.

    At most as much is kept as was in use at one time, until the outermost of several ends; what is in use then stays.
    """
    if _KEPT.arrays is not None:
        yield
        return
    _KEPT.arrays = []
    try:
        yield
    finally:
        _KEPT.arrays = None


def empty(size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As `torch.empty` on the CPU."""
    kept, count = _KEPT.arrays, torch.Size(size).numel() * dtype.itemsize
    if kept is None or count < LEAST:
        return torch.empty(size, dtype=dtype)
    place = next((i for i, (array, lent) in enumerate(kept) if array.nbytes == count and lent() is None), len(kept))
    array = kept[place][0] if place < len(kept) else _array(count)
    # every tensor in the memory of a lent view holds that view, which is gone when the last of them is
    view = array.view()
    kept[place : place + 1] = [(array, ref(view))]
    return torch.from_numpy(view).view(dtype).view(torch.Size(size))


def _array(count: int) -> np.ndarray:
    """Bytes that begin where a line of the cache does; NumPy asks for large pages where Linux has them."""
    whole = np.empty(count + LINE, np.uint8)
    first = -whole.ctypes.data % LINE
    return whole[first : first + count]


def empty_like(x: Tensor) -> Tensor:
    """As `torch.empty_like`, contiguous; memory that was used before on the CPU alone."""
    if x.device.type != "cpu" or _KEPT.arrays is None:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return empty(x.shape, x.dtype)


def add(x: Tensor, y: Tensor, alpha: float = 1) -> Tensor:
    """The sum x + alpha y; differentiable."""
    return torch.add(x, y, alpha=alpha, out=empty_like(x)) if _plain(x, y) else torch.add(x, y, alpha=alpha)


def negative(x: Tensor) -> Tensor:
    """The opposite -x; differentiable."""
    return torch.neg(x, out=empty_like(x)) if _plain(x, x) else -x


def _plain(x: Tensor, y: Tensor) -> bool:
    """Whether a result of the shape and type of x may be written into memory that is there."""
    return _KEPT.arrays is not None and not torch.is_grad_enabled() and x.shape == y.shape and x.dtype == y.dtype
