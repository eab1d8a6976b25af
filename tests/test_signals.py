"""SIGTERM (D9, E2, E4): a training saves and resumes, every command stops between two batches, with code 143."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from trainings import batch, build, loader, trainer

from dio_lightning.callbacks import Last
from dio_lightning.callbacks.signals import StopAtSignal

ROOT = Path(__file__).parents[1]
TINY = ["--config", str(ROOT / "tests/conf/tiny.yaml")]
MANY = 10000
ENDED = 128 + signal.SIGTERM

pytestmark = pytest.mark.slow


def start(*words: str) -> subprocess.Popen:
    """A command in a process of its own; it prints what Lightning says."""
    return subprocess.Popen(
        [sys.executable, "-m", "dio_lightning", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def grown(file: Path, lines: int) -> bool:
    """Whether a file has more lines, or a folder more files."""
    return file.exists() and (len([*file.iterdir()]) if file.is_dir() else file.read_bytes().count(b"\n")) > lines


def terminated(process: subprocess.Popen, file: Path, lines: int) -> str:
    """What a command said that got SIGTERM once a file had more lines, or a folder more files."""
    deadline = time.monotonic() + 300
    while not grown(file, lines):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[0][-3000:])
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == ENDED, said[-3000:]
    assert "Traceback" not in said
    return said


@pytest.fixture
def end(command, capfd):
    """Runs a command in this process, which gets SIGTERM once a file has more lines, or a folder more files."""

    def run(file: Path, lines: int, *words: str, wait: float = 0.0) -> None:
        over, before = threading.Event(), signal.getsignal(signal.SIGTERM)

        def ready() -> bool:
            handler = signal.getsignal(signal.SIGTERM)
            return getattr(handler, "__func__", None) is StopAtSignal._end and grown(file, lines)

        def send() -> None:
            while not ready():
                if over.wait(0.05):
                    return
            if not over.wait(wait):
                os.kill(os.getpid(), signal.SIGTERM)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            with pytest.raises(SystemExit) as stopped:
                command(*words)
        finally:
            over.set()
            sender.join()
            signal.signal(signal.SIGTERM, before)
        said = "".join(capfd.readouterr())
        assert stopped.value.code == ENDED and "Traceback" not in said, said[-3000:]

    return run


def test_a_training_in_its_first_epoch_saves_and_goes_on(command, end, tmp_path) -> None:
    """D9: there was no checkpoint at all, and the exit code was 0."""
    long = [*TINY, "--trainer.default_root_dir", str(tmp_path), "--data.train_pairs", "80"]
    end(tmp_path / "logs/version_0/metrics.csv", 1, "fit", *long, "--trainer.log_every_n_steps", "1")
    folder = tmp_path / "checkpoints"
    before = torch.load(folder / "last.ckpt", weights_only=True)
    assert before["epoch"] == 0 and 0 < before["global_step"] < 80
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]
    command("fit", *long, "--ckpt_path", "last", "--trainer.max_epochs", "1")
    after = torch.load(folder / "last.ckpt", weights_only=True)
    assert after["global_step"] == 80


@pytest.mark.parametrize(
    ("stage", "pairs", "sign"),
    [
        ("test", "test_pairs", "panels"),
        ("validate", "val_pairs", "config_validate.yaml"),
        ("predict", "test_pairs", "predictions"),
    ],
)
def test_other_commands_end_after_the_batch(stage, pairs, sign, end, tmp_path) -> None:
    """E2: predict ran on to its end, test and validate said that all was well."""
    words = [*TINY, "--trainer.default_root_dir", str(tmp_path), f"--data.{pairs}", str(MANY)]
    wait = 0.5 if stage == "validate" else 0.0
    end(tmp_path / sign, 0, stage, *words, "--trainer.logger", "false", wait=wait)
    assert not (tmp_path / "metrics.csv").exists()
    fields = list(tmp_path.glob("predictions/*"))
    assert not [file for file in fields if file.name.startswith(".")]
    assert len(fields) < MANY


class Signalled(Callback):
    """SIGTERM in the middle of a validation."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if not trainer.sanity_checking and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_during_validation_saves_what_was_trained_and_later_epochs_are_validated_whole(tmp_path) -> None:
    seen: list[int] = []

    class Seen(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
            seen.append(batch_idx)

    train, val = loader([batch(i) for i in range(3)]), loader([batch(i) for i in range(4)])
    settings = {"enable_checkpointing": True, "limit_val_batches": 1.0, "num_sanity_val_steps": 0, "max_epochs": 2}
    with pytest.raises(SystemExit):
        trainer(tmp_path, Signalled(), Last(tmp_path), **settings).fit(build("VoxelMorph"), train, val)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    run = trainer(tmp_path, Seen(), Last(tmp_path), **settings)
    run.fit(build("VoxelMorph"), train, val, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert (run.global_step, run.current_epoch, seen[-4:]) == (6, 2, [0, 1, 2, 3])


def test_two_processes_stop_and_save_together(tmp_path) -> None:
    """E4: the handler waited for the other process, which never came."""
    two = ["--config", str(ROOT / "experiments/trainer/ddp.yaml"), "--trainer.devices", "2"]
    words = [*TINY, *two, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path)]
    words += ["--data.train_pairs", "1000", "--trainer.log_every_n_steps", "1"]
    terminated(start("fit", *words), tmp_path / "logs/version_0/metrics.csv", 1)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] > 0
