"""Speed and memory of the inner loop: a table, build/bench.json, and whether the promises hold (the exit status)."""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter, process_time

import equilibrium
import kernels
import memory
import numba
import operators
import solving
import torch
from rich.console import Console
from rich.table import Table
from timing import Row, Stopwatch

from dio_lightning.files import write_atomic

FASTER = {"value and gradient: fused": 10.0, "feature adjoint: fused": 5.0}
"""Least ratio to the plain path."""
FLAT = 0.02
"""Most growth of a training step's memory with the number of solver iterations."""
STILL = 0.01
"""The same for DEQReg, where tensors are counted."""
BESIDE_VOXELMORPH = 1.3
"""Most memory of DEQReg relative to VoxelMorph."""


def measure(quick: bool, clock: Callable[[], float]) -> Iterator[Row]:
    """The rows, as they are measured; `quick` goes through the same code at a size that says little about speed."""
    size, channels = ((20, 24, 28), 4) if quick else ((80, 96, 112), 16)
    watch = Stopwatch(1 if quick else 3, clock)
    # first, while this process, whose memory a child may inherit, is small
    yield from memory.rows((24, 24, 24), (2, 5, 10), False) if quick else memory.rows((40, 48, 56), (10, 50, 200), True)
    yield from equilibrium.rows(*(((16, 16, 16), (3, 6)) if quick else ((32, 40, 48), (12, 48, 96))))
    yield from kernels.value_rows(size, channels, watch)
    yield from kernels.adjoint_rows(size, channels, watch)
    yield from operators.rows(size, watch)
    yield from solving.iteration_rows(size, channels, watch, 2 if quick else 10)
    adam, gauss_newton = ((3, 2, 1), (1, 1, 1)) if quick else ((60, 40, 20), (20, 20, 20))
    yield from solving.registration_rows(size, channels, watch, adam, gauss_newton)


def broken(rows: Sequence[Row], quick: bool) -> list[str]:
    """A sentence for every promise that does not hold; `quick` promises nothing about speed."""
    wrong = []
    for row in rows:
        least = FASTER.get(row.name)
        if least is not None and not quick and (row.ratio or 0) < least:
            wrong.append(f"{row.name} is {row.ratio:.1f} times as fast as the plain path, expected at least {least:g}")
        if row.name.startswith("training step") and abs((row.ratio or 0) - 1) > FLAT:
            wrong.append(f"{row.name} takes {row.ratio:.3f} times the memory of the fewest, expected 1 within {FLAT:g}")
        if row.name.startswith(equilibrium.STEPS) and abs((row.ratio or 0) - 1) > STILL:
            wrong.append(f"{row.name} takes {row.ratio:.3f} times that of the fewest, expected 1 within {STILL:g}")
        if row.name.startswith(equilibrium.RATIO) and (row.ratio or 0) > BESIDE_VOXELMORPH and not quick:
            wrong.append(f"{row.name}: {row.ratio:.2f}, expected at most {BESIDE_VOXELMORPH:g}")
    return wrong


def machine() -> str:
    """CPU, threads and versions, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{cpu}, {torch.get_num_threads()} threads, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numba {numba.__version__}"
    )


def main(args: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small size, to test the benchmark itself")
    parser.add_argument("--operators", action="store_true", help="only the rows of benchmarks/operators.py")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), help="default: %(default)s")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads, instead of wall time (a busy machine)")
    arguments = parser.parse_args(args)
    console, rows = Console(), []
    console.print(machine())
    clock = process_time if arguments.cpu_time else perf_counter
    alone = operators.rows((80, 96, 112), Stopwatch(3, clock))
    for row in alone if arguments.operators else measure(arguments.quick, clock):
        print(f"  {row.name}", file=sys.stderr)
        rows.append(row)
    table = Table("what")
    for header in ("seconds", "ratio", "MiB"):
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(row.name, *("" if x is None else f"{x:.4g}" for x in row[1:]))
    console.print(table)
    write_atomic(arguments.out, json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    console.print(f"written to {arguments.out}")
    wrong = broken(rows, arguments.quick)
    for sentence in wrong:
        console.print(f"[bold red]FAILED[/] {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
