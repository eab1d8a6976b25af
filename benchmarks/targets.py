"""What the speed of a registration is measured by: each item of this checkout beside an older one, in turns.

    git worktree add --detach /tmp/before 06e1d81
    OMP_NUM_THREADS=1 python benchmarks/targets.py --against /tmp/before

Every measurement is a process of its own, whose seconds are processor time of one thread, so that others on the machine
count little (of several threads, --threads, seconds pass on the clock, and the machine must be idle); the two checkouts
take turns and the shortest counts. Images are smooth noise, since only shapes matter to the time, and every iteration
is taken.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

import torch
from timing import Size, shifted_features
from torch import Tensor

from dio_lightning.features import UNet
from dio_lightning.implicit import Never
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses import Dice, Objective
from dio_lightning.modules import DIO, DEQReg
from dio_lightning.networks import VxmUNet
from dio_lightning.pair import Pair
from dio_lightning.transformations import Diffeomorphism
from dio_lightning.updates import LearnedStep

REPOSITORY = Path(__file__).resolve().parents[1]
TWO_MM, ONE_MM, HALF, CROP = (80, 96, 112), (160, 192, 224), (40, 48, 56), (56, 64, 64)
LABELS = 35
Call = Callable[[], object]


class Item(NamedTuple):
    """One line: what is called, how often in a process, and at most which share of the older checkout's time."""

    make: Callable[[bool], tuple[Call, int]]
    """With True at a small size; the call, and how many steps it takes."""
    repeat: int
    share: float | None = None


def iteration(channels: int) -> Callable[[bool], tuple[Call, int]]:
    """A step of diffeomorphic Adam on features, one of ten."""

    def make(quick: bool) -> tuple[Call, int]:
        steps = 2 if quick else 10
        fixed, moving, u = shifted_features(_size(TWO_MM, quick), channels)
        layer = OptimizerLayer((steps,), transformation=Diffeomorphism(), stop=Never())
        problem, zero = layer.problem(Level(fixed, moving)), torch.zeros_like(u)
        return lambda: layer.solve(problem, zero, steps), steps

    return make


def dio_pair(size: Size) -> Callable[[bool], tuple[Call, int]]:
    """Two images to a displacement as experiments/dio/brains.yaml does it: network, then 60, 40 and 20 iterations."""

    def make(quick: bool) -> tuple[Call, int]:
        module = dio((2, 2, 2) if quick else (60, 40, 20)).eval()
        fixed, moving = smooth_images(_size(size, quick))
        return lambda: module(fixed, moving), 1

    return make


def deqreg_pair(quick: bool) -> tuple[Call, int]:
    """Two images to a displacement as experiments/brains/deqreg.yaml does it: 48 steps of Picard."""
    step = LearnedStep(VxmUNet(5, precision="bfloat16"), leak=0.1)
    module = DEQReg(step, max_steps=4 if quick else 48, stop=Never()).eval()
    fixed, moving = smooth_images(_size(HALF, quick))
    return lambda: module(fixed, moving), 1


def dio_training(quick: bool) -> tuple[Call, int]:
    """A training step of experiments/dio/brains.yaml without its optimizer: forward, loss, backward."""
    module = dio((2, 2, 2) if quick else (60, 40, 20))
    size = _size(CROP, quick)
    fixed, moving = smooth_images(size)
    labels = [torch.randint(0, LABELS + 1, (1, 1, *(n // 8 for n in size))) for _ in range(2)]
    whole = [torch.nn.functional.interpolate(x.float(), size).long() for x in labels]
    pair = Pair(fixed=fixed, moving=moving, fixed_label=whole[0], moving_label=whole[1])

    def call() -> None:
        module.zero_grad()
        module.training_step(pair, 0).backward()

    return call, 1


ITEMS = {
    "diffeomorphic iteration, 8 channels": Item(iteration(8), 3),
    "diffeomorphic iteration, 16 channels": Item(iteration(16), 3, 0.6),
    "diffeomorphic iteration, 32 channels": Item(iteration(32), 3),
    "DIO pair, 80×96×112": Item(dio_pair(TWO_MM), 2),
    "DIO pair, 160×192×224": Item(dio_pair(ONE_MM), 1),
    "DEQReg pair, 48 steps, 40×48×56": Item(deqreg_pair, 2, 0.5),
    "DIO training step, 56×64×64": Item(dio_training, 2, 0.6),
}


def _size(size: Size, quick: bool) -> Size:
    return (16, 16, 24) if quick else size


def smooth_images(size: Size) -> tuple[Tensor, Tensor]:
    """Two images (1, 1, *s) in [0, 1]."""
    images = [x.contiguous() - x.min() for x in shifted_features(size, 1)[:2]]
    return images[0] / images[0].max(), images[1] / images[1].max()


def dio(iterations: Size) -> DIO:
    """The method of experiments/dio/brains.yaml, with weights at random."""
    features = UNet(channels=16, levels=[4, 2, 1], residual=True, precision="bfloat16")
    layer = OptimizerLayer(iterations, transformation=Diffeomorphism(), stop=Never())
    return DIO(features, layer, Objective(label=Dice()))


def measured(name: str, quick: bool) -> dict[str, float]:
    """Seconds of a call's step, and the peak of this process's memory in MiB; compiled loops are compiled before."""
    warnings.filterwarnings("ignore", ".*self.log.*")  # modules run without a trainer here
    torch.manual_seed(0)
    item, seconds = ITEMS[name], float("inf")
    clock = process_time if os.environ.get("OMP_NUM_THREADS") == "1" else perf_counter
    with torch.set_grad_enabled("training" in name):
        item.make(True)[0]()
        call, steps = item.make(quick)
        for _ in range(item.repeat):
            start = clock()
            call()
            seconds = min(seconds, (clock() - start) / steps)
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _run(name: str, checkout: Path, quick: bool, threads: int) -> dict[str, float]:
    """`measured` with the library of a checkout."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(checkout)}
    command = [sys.executable, __file__, "--alone", name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures the items one after the other, prints a table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, whose library takes turns with this one's")
    parser.add_argument("--items", nargs="+", default=[""], help="those whose name contains one of these words")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each, default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of each process, default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a small size, to test the benchmark itself")
    parser.add_argument("--out", type=Path, default=Path("build/targets.json"), help="default: %(default)s")
    parser.add_argument("--alone", choices=tuple(ITEMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads < 1 or options.rounds < 1:
        raise SystemExit(f"--threads is {options.threads} and --rounds {options.rounds}, expected at least 1")
    if options.alone:
        print("\n" + json.dumps(measured(options.alone, options.quick)))
        return
    checkouts = {"before": options.against, "now": REPOSITORY} if options.against else {"now": REPOSITORY}
    table: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'':40}" + "".join(f"{name + ', s':>12}{'MiB':>8}" for name in checkouts) + f"{'ratio':>8}{'at most':>9}")
    for name in [name for name in ITEMS if any(word in name for word in options.items)]:
        rows: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for which, checkout in checkouts.items():
                row = _run(name, checkout, options.quick, options.threads)
                rows[which] = {key: min(value, rows.get(which, row)[key]) for key, value in row.items()}
        table[name] = rows
        figures = "".join(f"{row['seconds']:12.4g}{row['peak_mb']:8.0f}" for row in rows.values())
        ratio = f"{rows['now']['seconds'] / rows['before']['seconds']:8.2f}" if options.against else " " * 8
        print(f"{name:40}{figures}{ratio}{ITEMS[name].share or '':>9}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
