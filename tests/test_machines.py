"""The same experiment elsewhere: machine files are understood, and killed runs continue."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from dio_lightning.checkpoint_files import read_checkpoint
from dio_lightning.cli import main
from dio_lightning.experiment import RegistrationCLI

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/tiny.yaml")


def parsed(monkeypatch, arguments):
    """The resolved config of a command that is not run."""

    class Parsed(Exception):
        pass

    def stop(cli):
        raise Parsed(cli.config[cli.subcommand])

    monkeypatch.setattr(RegistrationCLI, "before_instantiate_classes", stop)
    with pytest.raises(Parsed) as found:
        main(arguments)
    return found.value.args[0]


@pytest.mark.parametrize("file", sorted((ROOT / "experiments/trainer").glob("*.yaml")), ids=lambda f: f.stem)
def test_machine_files_change_the_trainer_only(file, monkeypatch):
    assert list(yaml.safe_load(file.read_text())) == ["trainer"]
    parsed(monkeypatch, ["fit", "--config", TINY, "--config", str(file)])


def test_a_training_ends_where_validation_no_longer_gains(command, tmp_path):
    """A rate of 0 gains nothing: the first validation is the best one, and two more are waited for."""
    stops = ["--config", str(ROOT / "experiments/trainer/early_stopping.yaml"), "--trainer.callbacks.patience", "2"]
    run = ["fit", "--config", TINY, *stops, "--trainer.max_epochs", "9", "--model.optimizer.lr", "0"]
    run += ["--trainer.default_root_dir", str(tmp_path / "run")]
    command(*run)
    best, last = (read_checkpoint(tmp_path / f"run/checkpoints/{name}.ckpt") for name in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (0, 2)
    command(*run, "--ckpt_path", "last")
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["epoch"] == 3, "it counts on, not anew"
    assert read_checkpoint(tmp_path / "run/checkpoints/best.ckpt")["epoch"] == 0


def test_the_wandb_file_is_accepted_and_needs_no_account(monkeypatch):
    config = parsed(monkeypatch, ["fit", "--config", TINY, "--config", str(ROOT / "experiments/loggers/wandb.yaml")])
    assert config.trainer.logger.init_args.offline is True


@pytest.mark.parametrize(
    ("more", "folder", "seed"),
    [({}, "runs/slurm/77", None), ({"ARRAY_JOB_ID": "70", "ARRAY_TASK_ID": "3"}, "runs/slurm/70_3", "3")],
    ids=["job", "array"],
)
def test_a_job_starts_a_task_a_device_in_a_folder_of_its_own(more, folder, seed, tmp_path, monkeypatch):
    """D8, D9: started again it went over the old files, and its tasks had one core."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    settings = {"JOB_ID": "77", "NNODES": "2", "NTASKS_PER_NODE": "4", "CPUS_PER_TASK": "8", **more}
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | {f"SLURM_{name}": value for name, value in settings.items()}
    job = ["bash", str(ROOT / "experiments/slurm/fit.sbatch"), TINY, "--data.train_pairs", "5"]
    words = subprocess.run(job, env=places, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    assert words[:4] == ["--cpus-per-task", "8", ".venv/bin/dio-lightning", "fit"]
    config = parsed(monkeypatch, [*words[3:], "--trainer.accelerator", "cpu"])
    assert (config.ckpt_path, config.trainer.default_root_dir) == ("last", folder)
    assert (config.trainer.num_nodes, int(config.trainer.devices), config.data.init_args.train_pairs) == (2, 4, 5)
    assert config.seed_everything == int(seed or 0)


@pytest.mark.slow
def test_a_killed_fit_continues(command, tmp_path):
    run = tmp_path / "run"
    arguments = ["fit", "--config", TINY, "--ckpt_path", "last", "--trainer.default_root_dir", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dio_lightning", *arguments, "--trainer.max_epochs", "100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last, deadline = run / "checkpoints/last.ckpt", time.monotonic() + 300
    while not last.is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = torch.load(last, weights_only=True)
    command(*arguments, "--trainer.max_epochs", before["epoch"] + 2)
    after = torch.load(last, weights_only=True)
    assert after["epoch"] == before["epoch"] + 1
    # four training pairs an epoch
    assert after["global_step"] == before["global_step"] + 4 == 4 * (before["epoch"] + 2)


def test_the_last_checkpoint_is_the_last_epoch_even_if_an_earlier_one_was_better(command, tmp_path):
    still = ["--trainer.max_epochs", "3", "--model.optimizer.lr", "0"]
    command("fit", "--config", TINY, "--trainer.default_root_dir", str(tmp_path), *still)
    epochs = {
        name: torch.load(tmp_path / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")
    }
    assert epochs == {"best": 0, "last": 2}
