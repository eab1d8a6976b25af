"""What a person reads of a run: a bar or plain lines, and what the steps cost."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from trainings import batch, build, loader, trainer

from dio_lightning import default_callbacks
from dio_lightning.callbacks import ProgressLines, StepCost, TrainingBar
from dio_lightning.callbacks import progress as module
from dio_lightning.callbacks.progress import WIDTH, duration, on_terminal, shown

ROOT = Path(__file__).parents[1]
CPU = ["--config", str(ROOT / "tests/conf/tiny.yaml"), "--config", str(ROOT / "experiments/trainer/cpu.yaml")]
BAR = ["--trainer.enable_progress_bar", "true", "--trainer.default_root_dir", "run"]


def test_a_log_has_a_plain_line_an_epoch_with_what_was_logged(command, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(ProgressLines.__init__, "__defaults__", (1e-9,))
    command("fit", *CPU, *BAR)
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("epoch")]
    assert "\x1b" not in said.out + said.err and all(len(line) <= WIDTH for line in lines)
    assert [line.split()[1] for line in lines if " step " not in line] == ["1/2", "2/2"]
    assert [" ".join(line.split()[:4]) for line in lines[:4]] == [f"epoch 1/2 step {n}/4" for n in (1, 2, 3, 4)]
    first = next(line for line in lines if " step " not in line).split()
    with (tmp_path / "run/logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    dice = next(row["val/dice"] for row in rows if row["val/dice"])
    assert first[first.index("dice") + 1] == f"{float(dice):.4g}" and "left" in first
    assert first[first.index("steps") + 1] == "8" and "residual" in first and "skipped" not in first
    assert "left" not in lines[-1], "nothing is"
    costs = [row for row in rows if row["cost/step_seconds"]]
    assert len(costs) == 2 and all(float(row["cost/peak_mb"]) > 50 for row in costs)
    command("test", *CPU, *BAR, "--ckpt_path", "last")
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("test batch 3/3")]


def test_on_a_terminal_there_is_one_bar(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(default_callbacks, "on_terminal", lambda: True)
    command("fit", *CPU, *BAR, "--trainer.max_epochs", "1")
    assert "epoch 1/1 loss" in capsys.readouterr().out


def test_who_looks(monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert on_terminal()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not on_terminal()
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False))
    assert not on_terminal()


def test_the_bar_says_how_long_it_takes_yet(monkeypatch):
    clock = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    lines = ProgressLines(every=0)
    logged = {"train/loss": torch.tensor(0.123456), "train/skipped_steps": torch.tensor(3.0), "lr": torch.tensor(1.0)}
    run = SimpleNamespace(
        callback_metrics=logged, callbacks=[lines], max_epochs=370, current_epoch=4, is_global_zero=False
    )
    bar = TrainingBar()
    assert bar.get_metrics(run, None) == {"loss": "0.1235", "skipped": "3"} == shown(run)
    lines.on_train_start(run, None)
    lines.on_train_epoch_start(run, None)
    lines.on_train_epoch_end(run, None)
    assert lines.left == 3650.0 and bar.get_metrics(run, None)["left"] == "1:00:50" and duration(59.6) == "0:01:00"
    with pytest.raises(ValueError, match="every must be 0 or more"):
        ProgressLines(every=-1)


class Slow(Callback):
    """A clock that moves in known stretches: 3 s for data, 2 s for a step, 100 s for a validation."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_start(self, *_):
        self.clock[0] += 3

    def on_before_optimizer_step(self, *_):
        self.clock[0] += 2

    def on_validation_end(self, *_):
        self.clock[0] += 100


def test_the_cost_of_a_step_is_its_own(monkeypatch, tmp_path):
    clock = [0.0]
    from dio_lightning.callbacks import step_cost

    monkeypatch.setattr(step_cost.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(step_cost, "clock", lambda device: clock[0])
    run = trainer(
        tmp_path, Slow(clock), StepCost(), limit_val_batches=1.0, num_sanity_val_steps=0, val_check_interval=2
    )
    run.fit(build("VoxelMorph"), loader([batch(i) for i in range(4)]), loader([batch(9)]))
    logged = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("cost/")}
    assert logged["cost/step_seconds"] == 2.0 and logged["cost/data_wait_seconds"] == 3.0
