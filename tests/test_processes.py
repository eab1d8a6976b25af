"""Two processes say, and write, what one does, for any number of pairs (E8), and stop together (E4)."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from test_finite_steps import Spoil, broken, same
from test_finite_steps import expected as without
from test_names import subjects
from test_resuming import Stop, equal, fit, slurm_job
from test_scores import Boxes, Shift, read, trainer_in
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler
from trainings import batch, build, loader, trainer

from data_modules import PairsCSV, SyntheticPairs
from data_modules.dealing import DealtBatches
from dio_lightning.callbacks import FieldWriter, RegistrationScores
from dio_lightning.callbacks.random_states import STATES
from dio_lightning.callbacks.signals import Requeued
from dio_lightning.checkpoint_files import read_checkpoint
from dio_lightning.features import Intensity
from dio_lightning.layers import OptimizerLayer
from dio_lightning.modules import DIO
from dio_lightning.modules.deqreg import LAST
from dio_lightning.modules.sharding import expect_strategy, shard
from dio_lightning.processes import of_all, reads_again

ROOT = Path(__file__).parents[1]
CASES = (("DIO", 1), ("DIO", 5), ("DEQReg", 4), ("VoxelMorph", 5))
BAD = [
    (name, strategy, fault, accumulate)
    for name, strategy in (("DIO", "ddp_find_unused_parameters_true"), ("VoxelMorph", "ddp"), ("DEQReg", "ddp"))
    for fault, accumulate in (("loss", 1), ("gradient", 2))
] + [("VoxelMorph", "ddp", "loss", 2), ("VoxelMorph", "ddp", "gradient", 1)]


@pytest.mark.parametrize("pairs", range(8))
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("world", [2, 3])
def test_batches_are_those_of_one_process_each_counted_once(world, size, pairs) -> None:
    data = list(range(pairs))
    expected = [batch.tolist() for batch in DataLoader(data, size)]  # type: ignore[arg-type]
    for even in (True, False):
        counted, numbers = [], []
        for rank in range(world):
            loader = DataLoader(data, size, sampler=DealtBatches(data, size, even, world, rank))  # type: ignore[arg-type]
            batches = [batch.tolist() for batch in loader]
            numbers.append(len(batches))
            counted += [batch for index, batch in enumerate(batches) if not reads_again(loader, index)]
            assert len(loader) == len(batches) and (even or len(counted) == sum(numbers))
        assert sorted(counted) == expected and (not even or len(set(numbers)) == 1)


def test_lightnings_own_sampler_repeats_at_the_end() -> None:
    data = list(range(5))
    loaders = [DataLoader(data, sampler=DistributedSampler(data, 2, rank, False)) for rank in (0, 1)]  # type: ignore[arg-type]
    again = [[reads_again(loader, index) for index in range(3)] for loader in loaders]
    assert again == [[False, False, False], [False, False, True]]
    assert not reads_again(DataLoader(data), 99) and of_all(3) == [3]  # type: ignore[arg-type]


def everything(folder: Path, **settings: object) -> None:
    """Trains, validates, tests and predicts in every case."""
    for name, pairs in CASES:
        module, place = build(name), folder / f"{name}_{pairs}"
        if isinstance(module, DIO):
            module.opens = [0, 2]
        data = SyntheticPairs((16, 18), 3, train_pairs=4, val_pairs=pairs, test_pairs=pairs)
        parts = [RegistrationScores(), FieldWriter(str(place / "fields"))]
        run = trainer(place, *parts, limit_val_batches=1.0, num_sanity_val_steps=0, max_epochs=2, **settings)
        run.fit(module, datamodule=data)
        scores = {f"fit {k}": float(v) for k, v in run.callback_metrics.items() if "val" in k}
        fixed = build(name)
        for stage in (run.validate, run.test):
            stage(fixed, datamodule=data, verbose=False)
            scores |= {f"{stage.__name__} {k}": float(v) for k, v in run.callback_metrics.items()}
        run.predict(fixed, datamodule=data, return_predictions=False)
        if run.is_global_zero:
            scores |= {f"weight {k}": float(v.double().norm()) for k, v in module.state_dict().items()}
            (place / "scores.json").write_text(json.dumps(scores))


def split(folder: Path) -> None:
    """Trains with whole weights and with weights in parts."""
    parts = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    for name in ("DIO", "VoxelMorph"):
        for strategy in (DDPStrategy(), ModelParallelStrategy(**parts)):
            module = build(name, torch.optim.SGD)
            for weight in module.parameters():  # as split ones lie in memory: the same kernels, the same rounding
                weight.data = weight.data.contiguous()
            data = SyntheticPairs((16, 18), 3, train_pairs=4, val_pairs=1, test_pairs=1)
            run = trainer(folder, devices=2, strategy=strategy, max_epochs=2)
            run.fit(module, datamodule=data)
            assert run.global_step == 4
            run.save_checkpoint(folder / f"{name}_{type(strategy).__name__}.ckpt")
    assert any(isinstance(weight, DTensor) for weight in module.parameters())


class OnOne(Spoil):
    """Spoils the gradients of the second process alone."""

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_rank == 1:
            super().on_after_backward(trainer, pl_module)


def spoiled(folder: Path) -> None:
    """Trains where the second process alone has bad batches or gradients."""
    for name, strategy, fault, accumulate in BAD:
        module = build(name)
        spoil = OnOne((2, 3) if fault == "gradient" else (), torch.inf)
        settings = {"strategy": strategy, "accumulate_grad_batches": accumulate, "use_distributed_sampler": False}
        run = trainer(folder, spoil, devices=2, **settings)
        bad = broken(torch.nan) if fault == "loss" and run.global_rank == 1 else batch(7)
        run.fit(module, loader([batch(0), batch(1), bad, bad, batch(4), batch(5)]))
        found = [module.skipped_steps, dict(module.state_dict())]
        torch.save(found, folder / f"{name}_{fault}_{accumulate}_{run.global_rank}.pt")


def named(folder: Path) -> None:
    """Predicts two pairs whose short names are one."""
    data = PairsCSV(str(folder / "pairs.csv"), common_grid=True)
    writer = FieldWriter(out=str(folder / "named"), warped=False)
    module = DIO(Intensity((1,)), OptimizerLayer(iterations=[1]))
    run = trainer(folder, writer, devices=2, strategy="ddp", inference_mode=True)
    run.predict(module, datamodule=data, return_predictions=False)


def scored(folder: Path, **settings: Any) -> None:
    """Tests three pairs."""
    trainer_in(folder, RegistrationScores(print_table=False), **settings).test(Shift(1.0), Boxes(3), verbose=False)


def stopped(folder: Path) -> None:
    """Each of two tasks: a training; another one, in which signals to the second task stop both, twice."""
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


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What two tasks of a SLURM job leave that do all of this."""
    folder = tmp_path_factory.mktemp("two")
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); from pathlib import Path\n"
    program += "import test_processes as here; here.torch.set_num_threads(1); folder = Path(sys.argv[1])\n"
    program += "here.everything(folder, devices=2, strategy='ddp', limit_train_batches=2)\n"
    program += "here.scored(folder / 'shift', devices=2, strategy='ddp'); here.named(folder)\n"
    program += "here.spoiled(folder); here.split(folder); here.stopped(folder)"
    subjects(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    own |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", program, str(folder)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    tasks = [subprocess.Popen(words, env=os.environ | own | slurm_job(folder, 2, rank), **pipes) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as readers:
        said = list(readers.map(lambda task: task.communicate(timeout=500)[0], tasks))
    assert [task.returncode for task in tasks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    return folder


@pytest.mark.slow
def test_tasks_of_slurm_stop_at_one_batch_and_go_on_as_if_they_had_not(two) -> None:
    """E4: the handlers waited for one another; DEQReg's last states and the random states are each task's own."""
    assert (two / "asked").read_text() == "requeue 77\n"
    saved = read_checkpoint(two / "run/hpc_ckpt_1.ckpt")
    assert saved["global_step"] == 3 and len(saved[STATES]) == len(saved[LAST]) == 2
    mine, whole = (read_checkpoint(two / name / "last.ckpt")["state_dict"] for name in ("run", "whole"))
    assert equal([*mine.values()], [*whole.values()])


@pytest.mark.slow
def test_two_processes_do_what_one_does(two, tmp_path, rows) -> None:
    """E8: val/loss counted a pair twice, one pair was an assertion, `ddp` a traceback where levels open late."""
    # a step of two processes with a pair each is one of two pairs
    everything(tmp_path, accumulate_grad_batches=2, limit_train_batches=4)
    for name, pairs in CASES:
        one, other = (folder / f"{name}_{pairs}" for folder in (tmp_path, two))
        expected, scores = (json.loads((place / "scores.json").read_text()) for place in (one, other))
        assert expected.keys() == scores.keys() and "fit val/loss" in scores and "validate val_loss" in scores
        for key in (key for key in expected if "seconds" not in key and "peak" not in key):
            # of trained weights to what the order of a sum does in Adam's first steps, of fixed ones to rounding
            close = 2e-3 if key.startswith(("fit", "weight")) else 1e-6
            assert scores[key] == pytest.approx(expected[key], rel=close, abs=1e-5), (name, pairs, key)
        assert rows(one) == rows(other) and len(rows(one)) == pairs
        summaries = [json.loads((place / "summary.json").read_text()) for place in (one, other)]
        assert summaries[0]["dice"] == summaries[1]["dice"]
        files = sorted(path.name for path in (one / "fields").iterdir())
        assert files == sorted(path.name for path in (other / "fields").iterdir()) and len(files) == 2 * pairs
        for file in files:
            assert (one / "fields" / file).read_bytes() == (other / "fields" / file).read_bytes()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(two, tmp_path) -> None:
    scored(tmp_path)
    expected, found = (read(folder / "metrics.csv") for folder in (tmp_path, two / "shift"))
    assert len(found) == 3
    for before, after in zip(expected, found, strict=True):
        assert {k: v for k, v in before.items() if k not in ("seconds", "peak_mb")}.items() <= after.items()


@pytest.mark.slow
def test_two_processes_choose_the_names_of_one(two) -> None:
    """B6: each process saw one of two colliding pairs, and both wrote 0000_0001."""
    names = sorted(path.name for path in (two / "named").iterdir())
    assert names == ["disp_sub01_0000_sub01_0001.nii.gz", "disp_sub02_0000_sub02_0001.nii.gz"]


@pytest.mark.slow
def test_what_one_process_finds_all_skip_together(two) -> None:
    """A9: the second alone has the bad batch or gradient; nobody waits, and both end with equal weights."""
    for name, _, fault, accumulate in BAD:
        files = [two / f"{name}_{fault}_{accumulate}_{rank}.pt" for rank in (0, 1)]
        (skipped, weights), (skipped_too, weights_too) = map(torch.load, files)
        assert skipped == skipped_too == 2 // accumulate and same(weights, weights_too), files[0]
        for key, value in without(name, (0, 1, 4, 5), accumulate_grad_batches=accumulate)[0].items():
            torch.testing.assert_close(weights[key], value)


@pytest.mark.slow
def test_weights_in_parts_are_trained_as_whole_ones_and_saved_whole(two) -> None:
    for name in ("DIO", "VoxelMorph"):
        whole, parts = (
            read_checkpoint(two / f"{name}_{strategy}.ckpt")["state_dict"]
            for strategy in ("DDPStrategy", "ModelParallelStrategy")
        )
        start = build(name).state_dict()
        assert whole.keys() == parts.keys() == start.keys()
        moved = {key for key in whole if not torch.equal(whole[key], start[key])}
        assert len(moved) >= 6
        for key in whole:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-5, atol=1e-7)


def test_what_cannot_be_split_is_refused(tmp_path) -> None:
    deqreg = build("DEQReg")
    deqreg._device_mesh = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"DEQReg differentiates its states one by one, .* use the strategy ddp"):
        deqreg.configure_model()
    with pytest.raises(ValueError, match="set save_distributed_checkpoint to false"):
        expect_strategy(ModelParallelStrategy())
    with pytest.raises(ValueError, match=r"experiments/trainer/fsdp\.yaml alone"):
        expect_strategy(FSDPStrategy())
    loose = build("VoxelMorph")
    loose.scale = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="scale belongs to no layer"):
        shard(loose, object())  # type: ignore[arg-type]


def test_ddp_is_told_of_levels_that_open_late_alone(tmp_path) -> None:
    for opens, wanted in ([0, 0], None), ([0, 2], True):
        module = build("DIO")
        module.opens = opens
        module.trainer = trainer(tmp_path, strategy=DDPStrategy())
        module.setup("fit")
        assert module.trainer.strategy._ddp_kwargs.get("find_unused_parameters") is wanted
