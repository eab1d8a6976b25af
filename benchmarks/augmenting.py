"""Seconds that random deformation and contrast take a pair, in two and three dimensions, beside a training step of DIO.

Pairs are synthetic, of the sizes that the recipes crop to, so that no data is needed; a step is forward, loss and
backward.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from timing import Size, Stopwatch

from data_modules import SyntheticPairs
from data_modules.augment import Augmentation, RandomContrast, RandomDeformation, RandomIntensity
from data_modules.base import Sample
from dio_lightning.features import UNet
from dio_lightning.files import write_atomic
from dio_lightning.implicit import Never
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import Dice, Objective
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair

CHANGES: dict[str, list[Augmentation]] = {
    "deformation": [RandomDeformation(probability=1.0)],
    "contrast": [RandomContrast(probability=1.0, different=1.0)],
    "deformation, contrast, intensity": [
        RandomDeformation(probability=1.0),
        RandomContrast(probability=1.0, different=1.0),
        RandomIntensity(bias=0.3, noise=0.03),
    ],
}
SIZES: list[Size] = [(80, 96), (54, 62, 62)]
LABELS = 20
ITERATIONS = (60, 40, 20)


def measure(size: Size, watch: Stopwatch) -> dict[str, float]:
    """Seconds a pair of every change, and of a "training step"."""
    torch.manual_seed(0)
    sample = SyntheticPairs(size=size, num_labels=LABELS, smoothness=min(size) / 4, structure=2.0).draw("train", 0)
    module = DIO(
        UNet(spatial_dims=len(size)), OptimizerLayer([*ITERATIONS], stop=Never()), Objective(label=Dice(LABELS))
    )
    pair = cast(Pair, {key: value[None] for key, value in sample.items() if isinstance(value, torch.Tensor)})
    changes = {name: _changing(sample, steps) for name, steps in CHANGES.items()}
    return watch.best({**changes, "training step": lambda: module.training_step(pair, 0).backward()})


def _changing(sample: Sample, changes: Sequence[Augmentation]) -> Callable[[], Sample]:
    def changed() -> Sample:
        result = {key: value for key, value in sample.items() if key != "displacement"}
        for change in changes:
            result = change(result)
        return result

    return changed


def table(rows: dict[str, dict[str, float]]) -> str:
    """Sizes in columns; every change in seconds a pair, and its share of a training step."""
    lines = [f"| seconds a pair | {' | '.join(rows)} |", "|---|" + "---:|" * len(rows)]
    for name in (*CHANGES, "training step"):
        cells = [
            f"{row[name]:.3f}" + (f" ({row[name] / row['training step']:.0%})" if name in CHANGES else "")
            for row in rows.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["x".join(map(str, size)) for size in SIZES], metavar="AxB[xC]")
    parser.add_argument("--repetitions", type=int, default=3, help="of which the best counts (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads, where others keep the machine busy")
    parser.add_argument("--out", type=Path, default=Path("build/bench_augment.json"), help="default: %(default)s")
    arguments = parser.parse_args(args)
    warnings.filterwarnings("ignore", ".*self.log.*")  # the module runs without a trainer here
    watch = Stopwatch(arguments.repetitions, time.process_time if arguments.cpu_time else time.perf_counter)
    rows = {size: measure(tuple(map(int, size.split("x"))), watch) for size in arguments.sizes}
    print(f"{torch.get_num_threads()} threads, DIO with {'/'.join(map(str, ITERATIONS))} iterations\n\n{table(rows)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
