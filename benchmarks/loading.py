"""Seconds per pair and peak memory of the data, and the share of a training step's time that it waits for them.

Every data set and cache is measured in a process of its own. A step is a pause, as on a GPU, which leaves the CPU free.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, sleep

import torch

from data_modules import Learn2Reg
from data_modules.augment import Augmentation, Flip, RandomAffine, RandomIntensity
from data_modules.layout import Layout, unique_cases
from dio_lightning.callbacks.cost import peak_memory
from dio_lightning.files import write_atomic

MODES = {
    "none": "none",
    "disk": "disk",
    "disk, filled before": "disk",
    "memory": "memory",
    "memory, augmented": "memory",
}
"""The rows of a data set, and the cache of each; in this order, so that the first one reads files that nobody read."""
AHEAD = 2
"""Batches that each worker prepares ahead; as many steps go by before those that are timed."""
PATIENCE = 10.0
"""Seconds of waiting after which no more steps are timed."""


@dataclass(frozen=True)
class Loading:
    """What one data set took with one cache."""

    data: str
    mode: str
    cases: int
    first: float
    """Seconds per pair of the first epoch, checks and filling of the cache included."""
    second: float | None
    """The same of the second epoch; None without a cache, where all epochs are alike."""
    peak_mb: float
    """Growth of the process's peak resident memory over the first epoch, without workers."""
    waiting: dict[str, float]
    """Share of a step's time spent waiting for data, by number of workers."""


class Ring(Learn2Reg):
    """The first cases of a folder, each paired with the next one, for training."""

    cases: int

    def read_layout(self) -> Layout:
        """Training and test cases as training pairs."""
        layout = super().read_layout()
        cases = unique_cases([*((case, case) for case in layout.cases), *layout.val, *layout.test])[: self.cases]
        if len(cases) < self.cases:
            raise ValueError(f"{self.root} has {len(cases)} cases, expected {self.cases}")
        pairs = list(zip(cases, [*cases[1:], cases[0]], strict=True))
        return replace(layout, cases=[], train=pairs, val=pairs, test=pairs)


def measure(
    root: Path, mode: str, cases: int, cache_dir: str, step: float, steps: int, workers: Sequence[int]
) -> Loading:
    """One row, measured in this process."""
    changes: list[Augmentation] = [Flip((0,)), RandomAffine(10.0, (0.9, 1.1), 0.05), RandomIntensity()]
    augment = changes if mode.endswith("augmented") else None
    data = Ring(root=str(root), cache=MODES[mode], cache_dir=cache_dir, augment=augment)
    data.cases = cases
    before, start = peak_memory(torch.device("cpu")), perf_counter()
    data.prepare_data()
    data.setup("fit")
    _epoch(data)
    first = (perf_counter() - start) / cases
    peak, start = peak_memory(torch.device("cpu")) - before, perf_counter()
    if data.cache != "none":
        _epoch(data)
    second = (perf_counter() - start) / cases if data.cache != "none" else None
    shares = {str(n): _waiting(data, n, step, steps) for n in workers}
    return Loading(root.name, mode, cases, first, second, peak, shares)


def _epoch(data: Ring) -> None:
    for _ in data.train_dataloader():
        pass


def _waiting(data: Ring, workers: int, step: float, steps: int) -> float:
    """Share of the time of `steps` steps of `step` seconds that goes by before their batch is there."""
    warm = AHEAD * workers + 1
    data.num_workers, data.steps_per_epoch = workers, steps + warm
    waited, counted = 0.0, 0
    batches = iter(data.train_dataloader())
    for count in range(steps + warm):
        start = perf_counter()
        next(batches)
        if count >= warm:
            waited, counted = waited + perf_counter() - start, counted + 1
        if waited > PATIENCE:
            break
        sleep(step)
    return waited / (waited + counted * step)


def table(rows: Sequence[Loading]) -> str:
    """The rows in Markdown."""
    workers = list(rows[0].waiting)
    heads = [
        "data",
        "cache",
        "first epoch, s/pair",
        "second, s/pair",
        "peak, MB",
        *(f"waiting, {n} w" for n in workers),
    ]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (3 + len(workers))]
    for row in rows:
        second = "–" if row.second is None else f"{row.second:.3f}"
        shares = [f"{100 * row.waiting[n]:.0f} %" for n in workers]
        cells = [row.data, row.mode, f"{row.first:.3f}", second, f"{row.peak_mb:.0f}", *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DIO_DATA"), help="default: $DIO_DATA")
    parser.add_argument("--sets", nargs="+", default=["brains_2mm", "brains_1mm"], help="folders in it")
    parser.add_argument("--caches", nargs="+", default=[*MODES], choices=MODES, help="rows (default: all)")
    parser.add_argument("--cases", type=int, default=14, help="default: %(default)s")
    parser.add_argument("--step", type=float, default=0.25, help="seconds of a training step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="that are timed (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4], help="default: 0 2 4")
    parser.add_argument("--out", type=Path, default=Path("build/bench_data.json"), help="default: %(default)s")
    arguments = parser.parse_args(args)
    if arguments.data is None:
        parser.error("no data, expected --data or the variable DIO_DATA to name the folder that holds brains_2mm")
    warnings.filterwarnings("ignore", ".*worker.*")  # more workers than cores are asked for on purpose
    settings, rows = (arguments.step, arguments.steps, arguments.workers), []
    for name in arguments.sets:
        with tempfile.TemporaryDirectory() as folder:
            for mode in arguments.caches:
                with ProcessPoolExecutor(1) as process:
                    row = process.submit(measure, arguments.data / name, mode, arguments.cases, folder, *settings)
                    rows.append(row.result())
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
    print(f"{arguments.cases} cases, a step of {arguments.step:g} s, {_cores()} cores\n")
    print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
