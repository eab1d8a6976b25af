"""A training stopped anywhere ends with the weights of one that was not, bit for bit (E1, E3)."""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.utils.data import Dataset
from trainings import SIZE, batch, build, loader, trainer

from data_modules import PairDataModule
from data_modules.augment import RandomDeformation, RandomIntensity
from data_modules.augment.base import Augmentation, Augmented
from data_modules.drawing import PairSampler, Reproducible, ResumableLoader
from dio_lightning.callbacks import Last, RandomStates, StopAtSignal
from dio_lightning.callbacks.optimizers import ConfiguredOptimizers
from dio_lightning.callbacks.random_states import STATES
from dio_lightning.callbacks.signals import Requeued
from dio_lightning.checkpoint_files import read_checkpoint
from dio_lightning.checkpoints import AtomicCheckpointIO
from dio_lightning.fields import warp
from dio_lightning.modules import DEQReg
from dio_lightning.modules.deqreg import LAST
from dio_lightning.resuming import newest_of_run
from dio_lightning.run_folders import queued_again

ROOT = Path(__file__).parents[1]
STEPS, EPOCHS = 4, 2


class Wild(Augmentation):
    """Noise of NumPy and of Python, as another library's augmentations have it."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return sample | {"moving": sample["moving"] * (1 + 0.2 * float(np.random.rand())) + 0.1 * random.random()}


class Few(PairDataModule):
    """Three pairs, changed at random each time they are read."""

    spatial_dims, num_labels = 2, 0  # type: ignore[assignment]

    def __init__(self, **options: Any) -> None:
        super().__init__(steps_per_epoch=STEPS, **options)
        self.read: list[Tensor] = []

    def dataset(self, split: str) -> Dataset:
        pairs = [{k: v[0] for k, v in batch(i).items()} | {"fixed_id": str(i), "moving_id": "m"} for i in range(3)]
        steps = [Wild(), RandomDeformation(size=(0.0, 1.0), smoothness=(3.0, 6.0)), RandomIntensity()]
        return Augmented(pairs, steps) if split == "train" else pairs  # type: ignore[arg-type]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training:  # type: ignore[union-attr]
            self.read.append(torch.cat([batch["fixed"], batch["moving"]]))
        return batch


class Stop(Callback):
    """A signal at a batch of the training, in its step or in the validation that follows."""

    def __init__(self, at: int, validating: bool = False, number: int = signal.SIGTERM) -> None:
        self.at, self.validating, self.number = at, validating, number
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.fit_loop.total_batch_idx == self.at and not self.validating:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated.append(batch_idx)
        if trainer.fit_loop.total_batch_idx == self.at and self.validating:
            os.kill(os.getpid(), self.number)


def module(name: str) -> Any:
    made = build(name)
    if isinstance(made, DEQReg):
        made.replay, made.jacobian_weight, made.states = 0.5, 0.1, 2
    return made


def fit(folder: Path, name: str, *callbacks: Callback, resume: bool | Path = False, **options: Any) -> Any:
    """The module and the batches that it was trained with."""
    plugins = options.pop("plugins", [])
    settings = {"enable_checkpointing": True, "max_epochs": EPOCHS, "limit_val_batches": 2}
    settings["accumulate_grad_batches"] = options.pop("accumulate", 1)
    settings |= {name: options.pop(name) for name in ("devices", "strategy") if name in options}
    data, model = Few(**options), module(name)
    parts = [EMAWeightAveraging(decay=0.6), Last(folder), RandomStates(), *callbacks, StopAtSignal()]
    run = trainer(folder, *parts, plugins=[AtomicCheckpointIO(), *plugins], **settings)
    start = folder / "last.ckpt" if resume is True else resume or None
    run.fit(model, datamodule=data, ckpt_path=start, weights_only=True)
    return model, data.read


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Any:
    """Trainings that nothing stops, each once."""
    kept: dict[tuple, tuple[dict[str, Tensor], list[Tensor]]] = {}

    def run(name: str, accumulate: int = 1) -> tuple[dict[str, Tensor], list[Tensor]]:
        if (name, accumulate) not in kept:
            torch.manual_seed(5)
            model, read = fit(tmp_path_factory.mktemp("whole"), name, accumulate=accumulate)
            kept[name, accumulate] = model.state_dict(), read
        return kept[name, accumulate]

    return run


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


CASES = [("VoxelMorph", at, 1) for at in (0, 2, 3, 4, 6)] + [("DEQReg", 1, 1), ("DEQReg", 5, 1), ("VoxelMorph", 1, 2)]
CASES += [("VoxelMorph", 2, 2)]


@pytest.mark.parametrize(("name", "at", "accumulate"), CASES)
def test_a_stopped_training_ends_as_one_that_was_not(name, at, accumulate, whole, tmp_path) -> None:
    """E1, E3: with augmentation or replay the weights were off by 0.3 to 0.8 of what training had moved."""
    weights, pairs = whole(name, accumulate)
    torch.manual_seed(5)
    with pytest.raises(SystemExit):
        fit(tmp_path, name, Stop(at), accumulate=accumulate)
    torch.manual_seed(6)  # another process
    random.seed(7)
    np.random.seed(8)
    model, read = fit(tmp_path, name, resume=True, accumulate=accumulate)
    assert 0 < len(read) < STEPS * EPOCHS and equal(read, pairs[-len(read) :])
    assert equal([*model.state_dict().values()], [*weights.values()])


@pytest.mark.parametrize("at", [3, 7])
def test_a_training_stopped_in_validation_validates_again_and_ends_the_same(at, whole, tmp_path) -> None:
    """The moving average takes the place of the weights there: they were saved for one another."""
    weights, _ = whole("VoxelMorph")
    with pytest.raises(SystemExit):
        fit(tmp_path, "VoxelMorph", Stop(at, validating=True))
    counting = Stop(-1)
    model, _ = fit(tmp_path, "VoxelMorph", counting, resume=True)
    assert counting.validated == [0, 1] * (2 if at == 3 else 1)
    assert equal([*model.state_dict().values()], [*weights.values()])


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """The job 77 of a SLURM with one task, whose `scontrol` writes down what it was asked."""
    settings = {"NTASKS": 1, "JOB_ID": 77, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_NAME": "fit"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def test_slurms_signal_saves_at_the_end_of_the_batch_and_queues_the_job_again(slurm, whole) -> None:
    """E3: Lightning saved in the middle of the step, and the next run read the first pairs of the epoch again."""
    weights, _ = whole("VoxelMorph", 2)
    run, place = slurm / "run", SLURMEnvironment()
    with pytest.raises(Requeued):
        fit(run, "VoxelMorph", Stop(2, number=signal.SIGUSR1), plugins=[place], accumulate=2)
    assert (slurm / "asked").read_text() == "requeue 77\n"
    assert [file.name for file in run.iterdir()] == ["hpc_ckpt_1.ckpt"]
    assert queued_again(run) and newest_of_run(run, [run]) == run / "hpc_ckpt_1.ckpt"
    assert read_checkpoint(run / "hpc_ckpt_1.ckpt")["global_step"] == 2
    model, _ = fit(run, "VoxelMorph", resume=run / "hpc_ckpt_1.ckpt", plugins=[place], accumulate=2)
    assert equal([*model.state_dict().values()], [*weights.values()])
    assert newest_of_run(run, [run]) == run / "last.ckpt"
    (run / "last.ckpt").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"last\.ckpt is not a readable checkpoint: it is empty; .*hpc_ckpt_1.* is used"
    ):
        assert newest_of_run(run, [run]) == run / "hpc_ckpt_1.ckpt"
    (run / "hpc_ckpt_10.ckpt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"hpc_ckpt_10"):
        assert newest_of_run(run, [run / "none"]) == run / "hpc_ckpt_1.ckpt"
    (run / "hpc_ckpt_1.ckpt").unlink()
    with pytest.raises(ValueError, match=r"hpc_ckpt_10.ckpt is not a readable checkpoint.*; .*last.ckpt is not"):
        newest_of_run(run, [run])


def task(folder: Path) -> None:
    """What each of two tasks does: a whole training; one that the second task's signals stop twice."""
    together = {"devices": 2, "strategy": "ddp", "plugins": [SLURMEnvironment()]}
    second, run = os.environ["SLURM_PROCID"] == "1", folder / "run"
    torch.manual_seed(5)
    fit(folder / "whole", "DEQReg", **together)
    torch.manual_seed(5)
    with pytest.raises(Requeued):
        fit(run, "DEQReg", *([Stop(2, number=signal.SIGUSR1)] if second else []), **together)
    with pytest.raises(SystemExit):
        fit(run, "DEQReg", *([Stop(5)] if second else []), resume=run / "hpc_ckpt_1.ckpt", **together)
    assert read_checkpoint(run / "last.ckpt")["global_step"] == 6
    fit(run, "DEQReg", resume=True, **together)


@pytest.mark.slow
def test_two_tasks_of_slurm_stop_at_one_batch_and_go_on_as_if_they_had_not(slurm) -> None:
    """E4: the handlers waited for one another; DEQReg's last states and the random states are each task's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch; torch.set_num_threads(1)\n"
    )
    program += "from pathlib import Path; import test_resuming; test_resuming.task(Path(sys.argv[1]))"
    processes = []
    for rank in "01":
        places = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", program, str(slurm)]
        said = subprocess.PIPE
        processes.append(
            subprocess.Popen(words, env=os.environ | places, stdout=said, stderr=subprocess.STDOUT, text=True)
        )
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts[1][-3000:]
    assert (slurm / "asked").read_text() == "requeue 77\n"
    saved = read_checkpoint(slurm / "run/hpc_ckpt_1.ckpt")
    assert saved["global_step"] == 3 and len(saved[STATES]) == len(saved[LAST]) == 2
    mine, whole = (read_checkpoint(slurm / name / "last.ckpt")["state_dict"] for name in ("run", "whole"))
    assert equal([*mine.values()], [*whole.values()])


def rates(folder: Path, epochs: int, lr: float, decay: float, gamma: float | None, start: Path | None = None) -> list:
    """The optimizer's learning rate in every epoch, and its weight decay."""
    seen: list[tuple[float, float]] = []

    class Rates(Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            (group,) = trainer.optimizers[0].param_groups
            seen.append((group["lr"], group["weight_decay"]))

    made = build("VoxelMorph")
    made.optimizer = lambda weights: torch.optim.AdamW(weights, lr=lr, weight_decay=decay)
    if gamma is not None:
        made.scheduler = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma)
    parts = [Last(folder), ConfiguredOptimizers(), Rates()]
    run = trainer(folder, *parts, enable_checkpointing=True, max_epochs=epochs)
    run.fit(made, loader([batch(0)]), ckpt_path=start, weights_only=True)
    return seen


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_a_resumed_training_obeys_another_learning_rate(gamma, tmp_path) -> None:
    """E7: it was ignored without a word."""
    step, last = gamma or 1.0, tmp_path / "last.ckpt"
    assert rates(tmp_path, 2, 0.1, 0.3, gamma) == [(0.1, 0.3), (0.1 * step, 0.3)]
    same = rates(tmp_path, 3, 0.1, 0.3, gamma, last)
    assert same == [(pytest.approx(0.1 * step**2), 0.3)]
    changed = rates(tmp_path, 5, 0.02, 0.4, gamma, last)
    assert changed == [(pytest.approx(0.02 * step**3), 0.4), (pytest.approx(0.02 * step**4), 0.4)]
    again = rates(tmp_path, 6, 0.02, 0.4, gamma, last)
    assert again == [(pytest.approx(0.02 * step**5), 0.4)]
    if gamma is not None:
        faster = rates(tmp_path, 8, 0.02, 0.4, 0.1, last)
        assert faster[0][0] == pytest.approx(0.02 * step**6) and faster[1][0] == pytest.approx(0.1 * faster[0][0])
    other = None if gamma else 0.5
    with pytest.raises(ValueError, match=r"the training to go on with has AdamW.*, expected the same, not AdamW"):
        rates(tmp_path, 9, 0.1, 0.3, other, last)


def test_loaders_in_processes_of_their_own_go_on_too(whole, tmp_path) -> None:
    """They read ahead, so that the first epoch after a resume had the order of epoch 0. They are forked from a process
    that has used the compiled loops, which they must not use then: their pairs are equal to rounding."""
    _, pairs = whole("VoxelMorph")
    warp(torch.rand(1, 1, *SIZE), torch.rand(1, 2, *SIZE))
    once, all_read = fit(tmp_path / "whole", "VoxelMorph", num_workers=1)
    for mine, others in zip(all_read, pairs, strict=True):
        torch.testing.assert_close(mine, others, rtol=1e-4, atol=1e-4)
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", "VoxelMorph", Stop(4), num_workers=1)
    again, read = fit(tmp_path / "run", "VoxelMorph", resume=True, num_workers=1)
    assert 0 < len(read) < STEPS and equal(read, all_read[-len(read) :])
    assert equal([*again.state_dict().values()], [*once.state_dict().values()])


def test_a_pair_is_changed_by_seed_epoch_and_place_alone() -> None:
    data = Few(seed=3)
    loader = data.train_dataloader()
    assert isinstance(loader, ResumableLoader) and isinstance(loader.sampler, PairSampler)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    first = [b["moving"] for b in loader]
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]
    assert equal([b["moving"] for b in loader], first)
    assert not equal(first[:1], first[3:]) and len({float(x.sum()) for x in first}) == STEPS
    loader.sampler.set_epoch(1)
    assert not equal([b["moving"] for b in loader], first)
    assert not equal([b["moving"] for b in Few(seed=4).train_dataloader()], first)
    plain = Reproducible(data.dataset("train"))
    assert len(plain) == 3 and not torch.equal(plain[0]["moving"], plain[0]["moving"])


def test_a_loader_goes_on_within_its_epoch_only() -> None:
    whole, loader = Few(seed=1).train_dataloader(), Few(seed=1).train_dataloader()
    expected = [b["moving"] for b in whole]
    assert isinstance(loader, ResumableLoader)
    loader.load_state_dict({"epoch": 0, "batches": 3})
    assert equal([b["moving"] for b in loader], expected[3:]) and loader.state_dict() == {"epoch": 0, "batches": 4}
    assert len([*loader]) == STEPS, "once"
    loader.load_state_dict({"epoch": 1, "batches": 3})
    assert equal([b["moving"] for b in loader], expected)


def test_processes_share_the_places_of_an_epoch() -> None:
    def keys(world: int, rank: int, draws: int) -> list[tuple[int, Any]]:
        return [(int(d), d.key) for d in PairSampler(range(5), draws, 2, world, rank)]  # type: ignore[arg-type]

    assert sorted(keys(2, 0, 5) + keys(2, 1, 5)) == sorted(keys(1, 0, 10))
