"""Freed memory that stays with the process of a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dio_lightning import allocation, cli

SCRIPT = """
import resource, numpy as np
from dio_lightning.allocation import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.empty(2**26, np.uint8)[:: 4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), keep_freed_memory(), faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_a_large_array_takes_the_pages_of_the_one_before() -> None:
    """Eight arrays of 64 MB ask for the pages of one."""
    quiet = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    quiet["NUMPY_MADVISE_HUGEPAGE"] = "0"  # pages of 2 MB are too few to count
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=quiet)
    before, kept, after = done.stdout.split()
    assert kept == "True"
    assert int(after) < int(before) / 4 or int(before) == 0  # a sandbox may not count them


def test_settings_of_the_user_stay(monkeypatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda _: pytest.fail("changed"))
    assert not allocation.keep_freed_memory()


@pytest.mark.parametrize("error", [OSError, AttributeError, TypeError])
def test_without_glibc_nothing_changes(monkeypatch, error) -> None:
    def none(_: None) -> None:
        raise error

    for name in [name for name in os.environ if "MALLOC" in name or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(allocation.ctypes, "CDLL", none)
    assert not allocation.keep_freed_memory()


@pytest.mark.parametrize(("own", "expected"), [(None, "1"), ("0", "0")])
def test_a_command_asks_for_large_pages_unless_the_user_has_said_otherwise(monkeypatch, own, expected) -> None:
    monkeypatch.setattr(cli, "_dispatch", lambda argv: None)
    monkeypatch.setenv(allocation.LARGE_PAGES, "0")
    if own is None:
        monkeypatch.delenv(allocation.LARGE_PAGES)
    cli.main(["models"])
    assert os.environ[allocation.LARGE_PAGES] == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="large pages are Linux's")
def test_pytorch_reads_the_variable() -> None:
    libraries = (Path(torch.__file__).parent / "lib").glob("libc10.so*")
    assert any(allocation.LARGE_PAGES.encode() in library.read_bytes() for library in libraries)
