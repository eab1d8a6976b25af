"""Strong scaling: the same epoch and the same test on one CPU process and on two, what limits it, a table and a file.

The table has, for every method, the seconds of an epoch of the same pairs: on one process, on two that train together
(DDP, gloo), and on two that know nothing of one another, each with half of the pairs. Those two share cores, memory and
caches but no gradients: what they lose to one process is the machine's, and what two that train together lose to them
is the waiting for each other's gradients. Every process has one thread. Also the test of the same pairs, and the
seconds that averaging the gradients of all weights takes by itself.

The same on GPUs: `python benchmarks/scaling.py --accelerator gpu --processes 8 --pairs 64`.
"""

import argparse
import csv
import io
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import distributed

from data_modules import SyntheticPairs
from dio_lightning.features import UNet
from dio_lightning.files import write_atomic
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import LNCC, Diffusion, Objective
from dio_lightning.modules import DIO, DEQReg, RegistrationModule, VoxelMorph
from dio_lightning.networks import VxmUNet
from dio_lightning.updates import LearnedStep

ROOT = Path(__file__).parents[1]
METHODS = ("DIO", "DEQReg", "VoxelMorph")
TOGETHER, ALONE = "together", "alone"
EPOCHS = 3
"""Of a run; the first, in which kernels are compiled and memory is fetched, is not counted."""


class Epochs(Callback):
    """Seconds of every epoch, of every test, and of averaging all gradients once, as the first process sees them."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.testing: list[float] = []
        self.averaging = 0.0
        self._began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the others, and start the clock."""
        trainer.strategy.barrier()
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the slowest."""
        trainer.strategy.barrier()
        self.training.append(time.perf_counter() - self._began)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average as many numbers as there are weights."""
        if trainer.world_size > 1:
            weights = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
            gradients = torch.zeros(weights, device=pl_module.device)
            times = []
            for _ in range(20):
                trainer.strategy.barrier()
                began = time.perf_counter()
                distributed.all_reduce(gradients)
                times.append(time.perf_counter() - began)
            self.averaging = median(times)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the others, and start the clock."""
        trainer.strategy.barrier()
        self._began = time.perf_counter()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the slowest."""
        trainer.strategy.barrier()
        self.testing.append(time.perf_counter() - self._began)


def method(name: str) -> RegistrationModule:
    """A method of 3-D with networks that are small enough for a CPU."""
    torch.manual_seed(0)
    objective = Objective(image=LNCC(window=5), regularity=Diffusion(), regularity_weight=0.1)
    if name == "DIO":
        features = UNet(1, 8, (2, 1), 3, (8, 16), residual=True)
        return DIO(features, OptimizerLayer([20, 10]), objective)
    network = {"DEQReg": 5, "VoxelMorph": 2}[name]
    unet = VxmUNet(network, 3, None, (8, 16, 16), (16, 16, 16), (8,))
    return DEQReg(LearnedStep(unet), objective, max_steps=8) if name == "DEQReg" else VoxelMorph(unet, objective)


def run(name: str, processes: int, pairs: int, size: int, accelerator: str, out: Path) -> None:
    """Train and test a method on some processes, and write the first one's times."""
    torch.set_num_threads(1)
    clock = Epochs()
    data = SyntheticPairs((size, size, size), 3, train_pairs=pairs, val_pairs=1, test_pairs=pairs, batch_size=1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator=accelerator,
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        inference_mode=False,
        enable_checkpointing=False,
        callbacks=[clock],
        use_distributed_sampler=True,
        **quiet,
    )
    module = method(name)
    trainer.fit(module, datamodule=data)
    for _ in range(2):
        trainer.test(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        weights = sum(p.numel() for p in module.parameters() if p.requires_grad)
        times = {"train": min(clock.training[1:]), "test": min(clock.testing[1:]), "average": clock.averaging}
        out.write_text(json.dumps(times | {"weights": weights}))


def measured(name: str, processes: int, copies: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The times of a run of its own; of several at once, the slowest one's."""
    files, tasks = [], []
    pairs = options.pairs // copies
    for copy in range(copies):
        files.append(folder / f"{name}_{processes}_{copies}_{copy}.json")
        words = ["--one", name, "--processes", str(processes), "--pairs", str(pairs), "--size", str(options.size)]
        words += ["--accelerator", options.accelerator, "--out", str(files[-1])]
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        tasks.append(subprocess.Popen([sys.executable, __file__, *words], env=environment(copy), **pipes))
    said = [task.communicate()[1].decode(errors="replace") for task in tasks]
    if any(task.returncode for task in tasks):
        raise SystemExit(f"{name} on {processes} processes failed:\n{said[0][-2000:]}")
    times = [json.loads(file.read_text()) for file in files]
    return {key: max(one[key] for one in times) for key in times[0]}


def environment(copy: int) -> dict[str, str]:
    """Of a run: one thread, and a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    more = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    more["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **more} | ({"CUDA_VISIBLE_DEVICES": str(copy)} if torch.cuda.is_available() and copy else {})


def row(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A method's line."""
    count = options.processes
    one = measured(name, 1, 1, options, folder)
    together = measured(name, count, 1, options, folder)
    alone = measured(name, 1, count, options, folder)
    steps = options.pairs // count
    return {
        "method": name,
        "weights": int(one["weights"]),
        "one_s": one["train"],
        f"{TOGETHER}_s": together["train"],
        f"{ALONE}_s": alone["train"],
        "efficiency": one["train"] / count / together["train"],
        "lost_to_machine": 1 - one["train"] / count / alone["train"],
        "lost_to_waiting": (together["train"] - alone["train"]) / together["train"],
        "average_ms": 1000 * together["average"],
        "average_share": together["average"] * steps / together["train"],
        "test_one_s": one["test"],
        f"test_{TOGETHER}_s": together["test"],
        "test_efficiency": one["test"] / count / together["test"],
    }


def markdown(rows: Sequence[Mapping[str, Any]], count: int) -> str:
    """The table of docs/scaling.md."""
    lines = [
        f"| method | weights | epoch on 1 (s) | on {count} (s) | efficiency | lost to the machine | lost to waiting |"
        f" gradients of a step (ms) | test on 1 (s) | on {count} (s) | efficiency |",
        "|" + "---|" * 11,
    ]
    for r in rows:
        lines.append(
            f"| {r['method']} | {r['weights']:,} | {r['one_s']:.1f} | {r['together_s']:.1f} | {r['efficiency']:.0%} | "
            f"{r['lost_to_machine']:.0%} | {r['lost_to_waiting']:.0%} | {r['average_ms']:.1f} | "
            f"{r['test_one_s']:.1f} | {r['test_together_s']:.1f} | {r['test_efficiency']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For a terminal."""
    shown = Table(box=None, pad_edge=False)
    for key in rows[0]:
        shown.add_column(key, justify="left" if key == "method" else "right")
    for r in rows:
        shown.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in r.values()))
    return shown


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print, and write build/scaling.json, .csv and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=8, help="of an epoch, a multiple of the processes")
    parser.add_argument("--size", type=int, default=32, help="voxels along each axis")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("build/scaling.json"))
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.one:
        run(options.one, options.processes, options.pairs, options.size, options.accelerator, options.out)
        return
    if options.pairs % options.processes:
        parser.error("--pairs is no multiple of --processes")
    began, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.methods:
            rows.append(row(name, options, Path(folder)))
            Console(width=200).print(table(rows[-1:]))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "torch": torch.__version__, "load": load}
    settings = {key: getattr(options, key) for key in ("processes", "pairs", "size", "accelerator")}
    content = {"machine": machine, "settings": settings, "rows": rows, "seconds": time.perf_counter() - began}
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(options.out, json.dumps(content, indent=1) + "\n")
    write_atomic(options.out.with_suffix(".csv"), text.getvalue())
    write_atomic(options.out.with_suffix(".md"), markdown(rows, options.processes))
    print(markdown(rows, options.processes), end="")
    print(f"wrote {options.out}, .csv and .md in {content['seconds']:.0f} s")


if __name__ == "__main__":
    main()
