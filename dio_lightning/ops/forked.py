"""Where compiled loops may run: everywhere but in a process that was forked after they had run.

GNU's OpenMP, on which Numba's loops run in parallel, ends such a process. A loader's workers are forked.
"""

import os

from torch import Tensor


class _Pool:
    """Whether Numba's threads have been started here, or in the process that this one was forked from."""

    started = False
    inherited = False


def started() -> None:
    """Is called before the first compiled loop runs."""
    _Pool.started = True


def compiles(x: Tensor) -> bool:
    """Whether compiled loops compute it: on the CPU, and not where their threads were lost in a fork."""
    return x.device.type == "cpu" and not _Pool.inherited


def _forget() -> None:
    _Pool.inherited = _Pool.started


if hasattr(os, "register_at_fork"):  # nothing forks on Windows
    os.register_at_fork(after_in_child=_forget)
