"""SIGTERM as an exception, so that what is half-written goes; Ctrl-C is one already."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dio_lightning.errors import TERMINATED


@contextmanager
def ending_at_sigterm() -> Iterator[None]:
    """Raise SystemExit with code 143 at SIGTERM, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end(number: int, frame: FrameType | None) -> None:
    """Raise SystemExit, as a handler of signals."""
    raise SystemExit(TERMINATED)
