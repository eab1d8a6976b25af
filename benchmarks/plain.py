"""Every operator by its reference."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dio_lightning.ops.choice import VARIABLE


@contextmanager
def plain() -> Iterator[None]:
    """By plain PyTorch, as long as it lasts."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "reference"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
