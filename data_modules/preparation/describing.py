"""Transforms as text, so that what two different preparations made is never taken for the same."""

import hashlib
import inspect
import json
import threading
from collections.abc import Mapping
from enum import Enum
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.traits import RandomizableTrait
from torch import Tensor

LIBRARIES = ("monai", "torch", "numpy", "scipy", "builtins")
"""Code that is told by its name alone; that of others by its text too."""


def recipe(*parts: object) -> str:
    """A text that differs where two preparations differ: see `describe`.

    Raises:
        ValueError: if a part cannot be described.
    """
    return json.dumps([describe(part) for part in parts])


def describe(value: object, above: tuple[int, ...] = ()) -> Any:  # noqa: ANN401
    """A transform or a parameter as JSON: numbers by value, arrays by content, objects by class and attributes.

    Classes and functions that are not of a library are told by their text too, so editing them changes it.

    Raises:
        ValueError: for what has no stable description: a lambda, a local function, anything random.
    """
    if isinstance(value, Enum):
        return [type(value).__qualname__, value.name]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in above:
        raise ValueError(f"{type(value).__name__} refers to itself, expected a transform that can be described")
    inner = partial(describe, above=(*above, id(value)))
    if isinstance(value, Tensor | np.ndarray | np.generic):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.hasobject:
            raise ValueError(f"an array of {array.dtype} cannot be described, expected numbers")
        return [str(array.dtype), array.shape, hashlib.blake2b(array.tobytes(), digest_size=20).hexdigest()]
    if isinstance(value, torch.dtype | torch.device | np.dtype | Path | slice | range | bytes):
        return repr(value)
    if type(value) is Compose:
        return inner(list(value.flatten().transforms))
    if isinstance(value, Mapping):
        return sorted(([inner(k), inner(v)] for k, v in value.items()), key=json.dumps)
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(item) for item in value), key=json.dumps)
    if isinstance(value, partial):
        return ["partial", *inner((value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return [inner(value.__self__), value.__name__]
    if isinstance(value, type | FunctionType | BuiltinFunctionType | np.ufunc):
        return _code(value)
    if isinstance(value, RandomizableTrait):
        raise ValueError(f"{type(value).__name__} is random, expected transforms that always give the same result")
    if not hasattr(value, "__dict__"):
        raise ValueError(f"a {type(value).__name__} cannot be described, expected numbers, arrays, texts or transforms")
    # what belongs to a thread is the state of a run, no parameter
    return [_code(type(value)), inner({k: v for k, v in vars(value).items() if not isinstance(v, threading.local)})]


def _code(value: Any) -> list[str]:  # noqa: ANN401
    """Name, and text where it is not a library's, of a class or function."""
    name = getattr(value, "__qualname__", getattr(value, "__name__", ""))
    if not isinstance(value, type) and "<" in name:
        raise ValueError(f"{name} is a lambda or local function, expected one at the top of a module, or a class")
    module = getattr(value, "__module__", None) or "builtins"
    if module.split(".")[0] in LIBRARIES or isinstance(value, BuiltinFunctionType | np.ufunc):
        return [module, name]
    try:
        return [name, _text(value)]
    except (OSError, TypeError) as error:
        raise ValueError(f"{name} has no text ({error}), expected a class or function from a file") from error


@cache
def _text(value: Any) -> str:  # noqa: ANN401
    """Source of a class or function; finding it takes a moment."""
    return inspect.getsource(value)
