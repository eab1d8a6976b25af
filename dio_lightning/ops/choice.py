"""What computes the operators: loops that Numba compiles, on the CPU, Triton's kernels, on CUDA, or plain PyTorch.

Compiled loops do not run in a process that was forked after they had run: GNU's OpenMP, on which Numba's loops run in
parallel, would end it. A loader's workers are forked.
"""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from shutil import which
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

VARIABLE = "DIO_OPS"
CHOICES = ("numba", "triton", "reference")
LACKING = {("labels", "numba"), ("soft_labels", "numba"), ("norm", "triton")}
"""Operators that plain PyTorch computes all the same."""


class _Pool:
    """Whether Numba's threads have been started here, or in the process that this one was forked from."""

    started = False
    inherited = False


def started() -> None:
    """Is called before the first compiled loop runs."""
    _Pool.started = True


def chosen(device: str = "cpu") -> str:
    """What computes the operators: what the environment variable DIO_OPS names, or the best that is here.

    A name rules where it can: numba on the CPU, triton on CUDA. Triton's interpreter (TRITON_INTERPRET=1) computes
    tensors of the CPU, slowly, if DIO_OPS names triton.

    Args:
        device: the type of device whose tensors are computed, such as cpu or cuda.

    Returns:
        numba, triton, or reference for plain PyTorch.

    Raises:
        ValueError: for another name, for what is not installed, and for triton with neither GPU nor interpreter.
    """
    return _resolved(os.environ.get(VARIABLE, ""), device, _interpreted())


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def _resolved(name: str, device: str, interpreted: bool) -> str:
    if name not in ("", *CHOICES):
        raise ValueError(f"{VARIABLE} is {name!r}, expected numba, triton or reference")
    if name in ("numba", "triton") and find_spec(name) is None:
        raise ValueError(f"{VARIABLE} is {name!r}, which is not installed: expected reference, or pip install {name}")
    if name == "triton" and not (interpreted or torch.cuda.is_available()):
        raise ValueError(
            f"{VARIABLE} is 'triton', but there is no CUDA device: expected numba or reference, or "
            "TRITON_INTERPRET=1, with which Triton's interpreter computes on the CPU, slowly"
        )
    if device == "cuda":
        usable = name == "triton" or (not name and _runs_triton(interpreted))
        return "triton" if usable else "reference"
    if device != "cpu" or name == "reference":
        return "reference"
    if name == "triton" and interpreted:
        return name
    return "numba" if find_spec("numba") is not None else "reference"


def _runs_triton(interpreted: bool) -> bool:
    """Whether Triton is installed, with the C compiler that builds what launches its kernels."""
    compiler = os.environ.get("CC") or which("gcc") or which("clang") or os.name == "nt"
    return find_spec("triton") is not None and (interpreted or bool(compiler))


def compiles(x: Tensor) -> bool:
    """Whether compiled loops compute it: on the CPU, if chosen, and not where their threads were lost in a fork."""
    return x.device.type == "cpu" and not _Pool.inherited and chosen() == "numba"


def implementation(operator: str, x: Tensor) -> ModuleType | None:
    """The file whose loops or kernels compute an operator of this tensor; None for plain PyTorch.

    It is imported, and what it holds compiled, on first use: importing the library stays quick.
    """
    name = chosen(x.device.type)
    plain = name == "reference" or (operator, name) in LACKING or (name == "numba" and _Pool.inherited)
    return None if plain else _file(operator, name)


def immediate() -> bool:
    """Whether an operator may be computed without PyTorch's dispatcher, which costs more than a small grid.

    In inference mode, where no gradient of any kind is asked for, unless calls are traced or watched.
    """
    watched = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    return torch.is_inference_mode_enabled() and not watched


def backward_alone(operator: str, *tensors: Tensor | None) -> None:
    """Is called by operators whose kernels know no forward-mode derivative: they would drop it, and say nothing.

    Raises:
        NotImplementedError: if one of the tensors carries a tangent.
    """
    if tangents(*tensors):
        raise NotImplementedError(f"{operator} has no derivative in forward mode, expected tensors without tangents")


def tangents(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors carries a forward-mode derivative."""
    if forward_ad._current_level < 0:  # pyright: ignore[reportPrivateUsage]  # its own functions look there
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


@cache
def _file(operator: str, name: str) -> ModuleType:
    return import_module(f"dio_lightning.ops.{operator}_{name}")


def _forget() -> None:
    _Pool.inherited = _Pool.started


if hasattr(os, "register_at_fork"):  # nothing forks on Windows
    os.register_at_fork(after_in_child=_forget)
