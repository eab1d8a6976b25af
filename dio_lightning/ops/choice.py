"""What computes the operators: the loops that Numba compiles, on the CPU, or plain PyTorch.

Compiled loops do not run in a process that was forked after they had run: GNU's OpenMP, on which Numba's loops run in
parallel, would end it. A loader's workers are forked.
"""

import os
from functools import cache
from importlib.util import find_spec

from torch import Tensor

VARIABLE = "DIO_OPS"
CHOICES = ("numba", "reference")


class _Pool:
    """Whether Numba's threads have been started here, or in the process that this one was forked from."""

    started = False
    inherited = False


def started() -> None:
    """Is called before the first compiled loop runs."""
    _Pool.started = True


def chosen() -> str:
    """What computes the operators on the CPU: what the environment variable DIO_OPS names, or the best that is here.

    Returns:
        numba, or reference for plain PyTorch.

    Raises:
        ValueError: for another name, and for numba where it is not installed.
    """
    return _resolved(os.environ.get(VARIABLE, ""))


@cache
def _resolved(name: str) -> str:
    installed = find_spec("numba") is not None
    if name not in ("", *CHOICES):
        raise ValueError(f"{VARIABLE} is {name!r}, expected numba or reference")
    if name == "numba" and not installed:
        raise ValueError(f"{VARIABLE} is 'numba', which is not installed: expected reference, or pip install numba")
    return name or ("numba" if installed else "reference")


def compiles(x: Tensor) -> bool:
    """Whether compiled loops compute it: on the CPU, if chosen, and not where their threads were lost in a fork."""
    return x.device.type == "cpu" and not _Pool.inherited and chosen() == "numba"


def _forget() -> None:
    _Pool.inherited = _Pool.started


if hasattr(os, "register_at_fork"):  # nothing forks on Windows
    os.register_at_fork(after_in_child=_forget)
