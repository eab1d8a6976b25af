"""Memory that is freed stays with the process, for the next array of its size."""

import ctypes
import os

KEPT = 2**29
"""Bytes of freed memory that are kept, at most, at the end of the heap."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc take large arrays from its heap; whether it does. A setting of the process, so for commands alone.

    By default each array of more than 32 MB is asked of the system and given back to it: of a solver's step on a large
    image every page is asked for, zeroed and given back several times over. On another C library, and where the user
    has settings of their own (MALLOC_…), nothing is changed.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no symbol of this name; Windows has no such library
        return False
    return mallopt(_MMAP_MAX, 0) == 1 and mallopt(_TRIM_THRESHOLD, KEPT) == 1
