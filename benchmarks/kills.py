"""Kills trainings, predictions and the filling of a disk cache at random moments: what they leave, and where they end.

Every process is forked from one that has imported all it needs, so that a kill finds it at work and not at its imports.
A training that was killed, as often as it may be, must end with the weights of one that was not, bit for bit.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml

from data_modules import PairsCSV
from dio_lightning import checkpoints
from dio_lightning.checkpoint_files import read_checkpoint
from dio_lightning.cli import main as command
from dio_lightning.experiment import prepare

ROOT = Path(__file__).parents[1]
SIZE, IMAGES = (20, 24), 11
LAB = yaml.safe_load((ROOT / "experiments/lab/deqreg.yaml").read_text())["model"]
MODEL = ["--model.max_steps", "4", "--model.states", "2", "--model.warm_up", "0", "--model.ramp", "0"]
MODEL += ["--model.update.network.precision", "float32"]
AUGMENT = "[{class_path: RandomAffine}, {class_path: RandomIntensity}, {class_path: RandomDeformation}]"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
QUIET += ["--trainer.enable_model_summary", "false"]
Child = Callable[[], object]


def images(folder: Path) -> Path:
    """A table of pairs of small 2-D images."""
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        smooth = np.cumsum(np.cumsum(rng.normal(size=SIZE), 0), 1)
        nib.save(nib.Nifti1Image(smooth.astype(np.float32), np.eye(4)), folder / f"{i}.nii.gz")  # type: ignore[attr-defined]
    apart = {"train": range(4), "val": range(4, 6), "test": range(6, IMAGES)}
    lines = [f"{i}.nii.gz,{j}.nii.gz,{split}" for split, own in apart.items() for i in own for j in own if i != j]
    (folder / "pairs.csv").write_text("\n".join(["fixed,moving,split", *lines]) + "\n")
    (folder / "pairs.yaml").write_text(yaml.safe_dump({"model": LAB}))
    return folder / "pairs.csv"


def begun(work: Child) -> int:
    """The number of a process that does the work, says nothing, and exits as it would."""
    if (child := os.fork()) != 0:
        return child
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """How a process ended: its exit code, or minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(work: Child, longest: float, kind: str, draw: random.Random) -> int:
    """Start the work, end it at a random moment by a signal, or in the middle of a checkpoint; how it ended."""
    if kind == "writing":
        return ended(begun(lambda: (torn(draw.randrange(6)), work())))
    child = begun(work)
    time.sleep(draw.uniform(0.2, 1) * longest)
    os.kill(child, getattr(signal, kind))
    return ended(child)


def torn(number: int) -> None:
    """Have this process killed when half of its checkpoint of that number is written."""
    written, save = [0], torch.save

    def half(checkpoint: object, file: object) -> None:
        save(checkpoint, file)
        written[0] += 1
        if written[0] > number:
            inner = file.file  # type: ignore[attr-defined]
            inner.flush()
            inner.truncate(inner.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.torch.save = half  # type: ignore[assignment]


def trainings(folder: Path, table: Path, count: int, draw: random.Random, workers: int) -> Counter[str]:
    """Trainings that are killed one to four times each; how the kills ended, and how many ended wrongly."""

    def fit(run: Path) -> Child:
        words = [
            "fit",
            "--config",
            str(table.with_suffix(".yaml")),
            *MODEL,
            "--data",
            "PairsCSV",
            "--data.csv",
            str(table),
            "--data.augment",
            AUGMENT,
        ]
        words += [
            "--data.steps_per_epoch",
            "6",
            "--data.num_workers",
            str(workers),
            "--trainer.max_epochs",
            "4",
            *QUIET,
        ]
        words += ["--trainer.accumulate_grad_batches", "2", "--ckpt_path", "last"]
        return lambda: command([*words, "--trainer.default_root_dir", str(run)])

    began = time.perf_counter()
    assert ended(begun(fit(folder / "whole"))) == 0
    longest = time.perf_counter() - began
    whole = read_checkpoint(folder / "whole/checkpoints/last.ckpt")["state_dict"]
    counts: Counter[str] = Counter()
    for trial in range(count):
        run = folder / f"run{trial}"
        for _ in range(1 + trial % 4):
            kind = draw.choice(("SIGKILL", "SIGTERM", "writing"))
            counts[f"{kind} {killed(fit(run), longest, kind, draw)}"] += 1
        assert ended(begun(fit(run))) == 0, f"{run} does not go on"
        mine = read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]
        counts["other weights"] += not all(torch.equal(mine[key], whole[key]) for key in whole)
        counts["leftovers"] += len(list(run.rglob(".[0-9]*")))
    return counts


def predictions(folder: Path, table: Path, count: int, draw: random.Random) -> Counter[str]:
    """Predictions that are killed: files that cannot be read whole, or are others than those of a whole prediction."""
    model = ["--model", "DIO", "--model.features", "Intensity", "--model.features.levels", "[1]"]
    model += ["--model.layer", "OptimizerLayer", "--model.layer.iterations", "[3]"]
    words = ["predict", *model, "--data", "PairsCSV", "--data.csv", str(table), *QUIET, "--trainer.logger", "false"]

    def predict(run: Path) -> Child:
        return lambda: command([*words, "--trainer.default_root_dir", str(run), "--overwrite"])

    began = time.perf_counter()
    assert ended(begun(predict(folder / "all"))) == 0
    longest = time.perf_counter() - began
    whole = {path.name: path.read_bytes() for path in (folder / "all/predictions").iterdir()}
    counts: Counter[str] = Counter()
    for trial in range(count):
        run = folder / f"predict{trial}"
        counts[f"ended {killed(predict(run), longest, draw.choice(('SIGKILL', 'SIGTERM')), draw)}"] += 1
        files = [path for path in run.glob("predictions/*") if not path.name.startswith(".")]
        counts["files"] += len(files)
        counts["other files"] += sum(path.read_bytes() != whole[path.name] for path in files)
        shutil.rmtree(run, ignore_errors=True)
    return counts


def caches(folder: Path, table: Path, count: int, draw: random.Random) -> Counter[str]:
    """Fillings of one disk cache that are killed: what is read from it in the end."""

    def fill(cache: Path) -> PairsCSV:
        data = PairsCSV(str(table), cache="disk", cache_dir=str(cache))
        data.setup("test")
        return data

    expected = [pair["fixed"] for pair in fill(folder / "whole_cache").test_dataloader()]
    counts: Counter[str] = Counter()
    for _ in range(count):
        counts[f"ended {killed(lambda: fill(folder / 'cache'), 0.05, 'SIGKILL', draw)}"] += 1
        if draw.random() < 0.2:
            shutil.rmtree(folder / "cache", ignore_errors=True)
    read = [pair["fixed"] for pair in fill(folder / "cache").test_dataloader()]
    counts["other values"] += sum(not torch.equal(a, b) for a, b in zip(read, expected, strict=True))
    return counts


def main(args: Sequence[str] | None = None) -> None:
    """Print what the kills left; exits with code 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--predictions", type=int, default=40)
    parser.add_argument("--caches", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0, help="loader processes of the trainings")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    prepare()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), random.Random(options.seed)
        table = images(folder)
        for title, counts in (
            ("trainings", trainings(folder, table, options.trainings, draw, options.workers)),
            ("predictions", predictions(folder, table, options.predictions, draw)),
            ("caches", caches(folder, table, options.caches, draw)),
        ):
            print(title, dict(sorted(counts.items())), flush=True)
            wrong += sum(value for key, value in counts.items() if key.startswith(("other", "leftovers")))
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
