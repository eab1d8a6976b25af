"""Shared by all tests: one thread a process, the real-data folder, the skips of `real` and `gpu` tests, poison."""

import csv
import os
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # before anything imports Triton: where there is no GPU its interpreter runs the kernels (tests/test_triton.py)
    os.environ["TRITON_INTERPRET"] = "1"
PAGES = {"test_browser", "test_loggers", "test_notebook", "test_panels", "test_report_pages", "test_run_folders"}
"""Files whose tests look at pages, or at all that a run leaves."""


def pytest_collection_modifyitems(items):
    lacking = {}
    if not os.environ.get("DIO_DATA"):
        lacking["real"] = "needs real anatomy: set DIO_DATA to the folder that holds brains_2mm"
    if not torch.cuda.is_available():
        lacking["gpu"] = "needs a CUDA device"
    for item in items:
        for name, reason in lacking.items():
            if item.get_closest_marker(name) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real anatomy; a test that uses it is marked `real`."""
    return Path(os.environ["DIO_DATA"])


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, alone or in the suite."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def pages(request, monkeypatch):
    """Tests that do not look at pages do not draw them: most of a tiny test's second.

    Processes of their own and what is marked slow draw them all the same.
    """
    html = sys.modules.get("dio_lightning.callbacks.html_report")
    looks = request.module.__name__.rpartition(".")[2] in PAGES or request.node.get_closest_marker("slow")
    if html is not None and not looks:
        monkeypatch.setattr(html.Report, "on_test_end", lambda *_: None)


@pytest.fixture(autouse=True)
def poison(request):
    """With DIO_POISON=1, memory that is read before it was written holds NaN (`make test-poisoned`)."""
    if os.environ.get("DIO_POISON", "0") in ("", "0") or request.node.get_closest_marker("memory"):
        yield
        return
    from poison import poisoned

    with poisoned():
        yield


@pytest.fixture
def bfloat16(monkeypatch) -> None:
    """Convolve in bfloat16 where it is asked for, even on a CPU that has to emulate it."""
    from dio_lightning.networks import blocks

    monkeypatch.setattr(blocks, "computes_bfloat16", lambda: True)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run a command line in an empty folder."""
    from dio_lightning.cli import main

    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main([*map(str, arguments)])


@pytest.fixture
def rows():
    """Read a run's metrics.csv, without what depends on the machine."""

    def read(folder: Path) -> list[dict[str, str]]:
        with open(folder / "metrics.csv", encoding="utf-8") as file:
            table = [{k: v for k, v in row.items() if k not in ("seconds", "peak_mb")} for row in csv.DictReader(file)]
        return sorted(table, key=lambda row: row["fixed_id"])

    return read
