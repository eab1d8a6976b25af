"""Memory that is freed stays with the process, for the next array of its size."""

import ctypes
import os

KEPT = 2**29
"""Bytes of freed memory that are kept, at most, at the end of the heap."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""PyTorch's variable, which it reads before its first tensor: whether tensors of 2 MB and more ask for large pages."""


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


def ask_for_large_pages() -> None:
    """Let Linux hand out memory for PyTorch's tensors in pages of 2 MB, in this process and those that it starts.

    Asking for, zeroing and looking up pages of 4 KB takes longer than many an operation on a large image. Only where
    PyTorch has made no tensor yet, so for commands alone; a setting of the user's stays.
    """
    os.environ.setdefault(LARGE_PAGES, "1")
