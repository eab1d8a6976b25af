"""Checkpoints as files: moved, torn, altered, fallen back to, removed, and built from again (A11, B5, D7, E5)."""

import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from trainings import METHODS, batch, build, loader, trainer

from dio_lightning.callbacks import Best, Last
from dio_lightning.checkpoint_files import damage, read_checkpoint
from dio_lightning.checkpoints import AtomicCheckpointIO
from dio_lightning.modules import DIO, DEQReg, RegistrationModule

ROOT = Path(__file__).parents[1]
TINY = ["--config", str(ROOT / "tests/conf/tiny.yaml")]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


class Scored(Best):
    """Best, by scores that a test gives to the epochs."""

    scores: tuple[float, ...] = ()

    def on_validation_end(self, trainer, pl_module) -> None: ...

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        score = torch.tensor(self.scores[trainer.current_epoch])
        self._save_topk_checkpoint(trainer, {"val/dice": score, "epoch": torch.tensor(0), "step": torch.tensor(0)})

    @property
    def state_key(self) -> str:
        return "Best"


def fit(folder: Path, scores: tuple[float, ...], resume: Path | None = None) -> None:
    """Train to as many epochs as there are scores."""
    best = Scored(folder)
    best.scores = scores
    run = trainer(folder, best, Last(folder), enable_checkpointing=True, max_epochs=len(scores),
                  plugins=[AtomicCheckpointIO()])  # fmt: skip
    run.fit(build("VoxelMorph"), loader([batch(0)]), ckpt_path=resume, weights_only=True)


def epoch(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("later", "kept"), [(0.590, 0), (0.900, 2)])
def test_a_run_that_goes_on_keeps_its_best_wherever_its_folder_is_now(moved, later, kept, tmp_path) -> None:
    """A11: a renamed folder, resumed from its last.ckpt, lost a best.ckpt of 0.830 to one of 0.590."""
    old, new = tmp_path / "old", tmp_path / ("new" if moved else "old")
    fit(old, (0.830, 0.600))
    if moved:
        old.rename(new)
    fit(new, (0.830, 0.600, later), new / "last.ckpt")
    assert epoch(new / "best.ckpt") == kept and epoch(new / "last.ckpt") == 2
    assert not moved or not old.exists()


def test_the_score_is_that_of_the_file_not_of_an_older_last(tmp_path) -> None:
    """Killed between best and last: best.ckpt is newer than what is resumed, and better than it knows."""
    fit(tmp_path, (0.5,))
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "kept.ckpt")
    fit(tmp_path, (0.5, 0.9), tmp_path / "last.ckpt")
    shutil.copy(tmp_path / "kept.ckpt", tmp_path / "last.ckpt")
    fit(tmp_path, (0.5, 0.7, 0.6), tmp_path / "last.ckpt")
    assert epoch(tmp_path / "best.ckpt") == 1
    assert float(read_checkpoint(tmp_path / "best.ckpt")["callbacks"]["Best"]["best_model_score"]) == pytest.approx(0.9)


@pytest.mark.parametrize("beside", [False, True], ids=["new folder", "used folder"])
def test_the_score_of_another_run_does_not_count(beside, tmp_path) -> None:
    """Going on from another run's checkpoint, in a folder of one's own."""
    fit(tmp_path / "other", (0.9,))
    if beside:
        fit(tmp_path / "mine", (0.95,))
    fit(tmp_path / "mine", (0.9, 0.3), tmp_path / "other/last.ckpt")
    assert epoch(tmp_path / "mine/best.ckpt") == 1


def test_a_best_that_is_gone_or_broken_is_replaced(tmp_path) -> None:
    fit(tmp_path, (0.9,))
    (tmp_path / "best.ckpt").unlink()
    fit(tmp_path, (0.9, 0.3), tmp_path / "last.ckpt")
    assert epoch(tmp_path / "best.ckpt") == 1
    (tmp_path / "best.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="best.ckpt is not kept"):
        fit(tmp_path, (0.9, 0.3, 0.2), tmp_path / "last.ckpt")
    assert epoch(tmp_path / "best.ckpt") == 2


def flat(value: object) -> list[object]:
    """Every leaf of nested dicts and lists, with the keys, tensors as bytes."""
    if isinstance(value, Tensor):
        return [
            value.dtype,
            value.shape,
            value.contiguous().view(-1).view(torch.uint8).tolist() if value.ndim else value,
        ]
    if isinstance(value, dict):
        return [leaf for key, entry in value.items() for leaf in (key, *flat(entry))]
    if isinstance(value, list | tuple):
        return [leaf for entry in value for leaf in flat(entry)]
    return [value]


def test_no_flipped_bit_goes_unnoticed_unless_it_changes_nothing(tmp_path) -> None:
    """E5: 127 of 300 flips changed weights silently. What still loads is, to the last bit, what was written."""
    fit(tmp_path, (0.5,))
    path, whole = tmp_path / "last.ckpt", (tmp_path / "last.ckpt").read_bytes()
    expected, rng, found = flat(read_checkpoint(path)), np.random.default_rng(0), 0
    for bit in rng.choice(8 * len(whole), 300, replace=False):
        altered = bytearray(whole)
        altered[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(altered)
        try:
            assert flat(read_checkpoint(path)) == expected, bit
        except ValueError as error:
            found += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert found > 100


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.99, -1])
def test_a_torn_file_is_known_by_one_sentence(size, tmp_path) -> None:
    fit(tmp_path, (0.5,))
    path = tmp_path / "last.ckpt"
    whole = path.read_bytes()
    assert damage(path) is None
    path.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    for read in (read_checkpoint, AtomicCheckpointIO().load_checkpoint, RegistrationModule.load_from_checkpoint):
        with pytest.raises(ValueError, match=r"last\.ckpt is not a readable checkpoint") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_only_plain_data_are_read(tmp_path) -> None:
    torch.save({"state_dict": {}, "program": Path}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt is not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of the command line, two epochs."""
    from dio_lightning.cli import main

    folder = tmp_path_factory.mktemp("run")
    main(["fit", *TINY, "--trainer.default_root_dir", str(folder)])
    return folder


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit in the middle of the largest tensor."""
    whole = bytearray(path.read_bytes())
    largest = max(torch.load(path, weights_only=True)["state_dict"].values(), key=torch.numel)
    start = whole.find(bytes(largest.untyped_storage()))  # in whatever order its numbers are stored
    assert start > 0
    whole[start + 2 * largest.numel()] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("harm", [tear, empty, flip])
def test_the_checkpoint_before_takes_the_place_of_a_broken_last(harm, run, command, tmp_path) -> None:
    """B5: `fit` and `test` with `last` say so and go on from the epoch before."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    checkpoints, root = folder / "checkpoints", ["--trainer.default_root_dir", str(folder)]
    assert sorted(file.name for file in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert (epoch(checkpoints / "previous.ckpt"), epoch(checkpoints / "last.ckpt")) == (0, 1)
    harm(checkpoints / "last.ckpt")
    for words in (["test", *TINY], ["fit", *TINY, "--trainer.max_epochs", "2"]):
        with pytest.warns(UserWarning, match=r"last\.ckpt is not a readable checkpoint.*previous.ckpt.*is used"):
            command(*words, *root, "--ckpt_path", "last")
    # the broken file never took the place of the one that saved the run
    assert (epoch(checkpoints / "previous.ckpt"), epoch(checkpoints / "last.ckpt")) == (0, 1)


@pytest.mark.parametrize("stage", ["fit", "test", "validate", "predict"])
@pytest.mark.parametrize("how", ["last", "path"])
def test_a_broken_checkpoint_alone_is_one_sentence(how, stage, run, command, capsys, tmp_path) -> None:
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(run / "checkpoints/last.ckpt", folder)
    flip(folder / "last.ckpt")
    wanted = "last" if how == "last" else folder / "last.ckpt"
    with pytest.raises(SystemExit) as stopped:
        command(stage, *TINY, "--trainer.default_root_dir", folder.parent, "--ckpt_path", wanted)
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert stopped.value.code == 2 and len(lines) == 1
    assert "last.ckpt is not a readable checkpoint: the bytes of" in lines[0]
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_missing_last_is_the_one_before_it(run, command, tmp_path) -> None:
    """Killed between two renames, on a disk without hard links."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "checkpoints/last.ckpt").unlink()
    command("test", *TINY, "--trainer.default_root_dir", folder, "--ckpt_path", "last")


def test_a_disk_without_hard_links_keeps_the_one_before_too(tmp_path, monkeypatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    fit(tmp_path, (0.5, 0.6))
    assert (epoch(tmp_path / "previous.ckpt"), epoch(tmp_path / "last.ckpt")) == (0, 1)


def test_what_killed_runs_left_is_removed_and_what_is_at_work_is_not(tmp_path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = [".hidden", ".1.last.ckpt", ".keep.5.ckpt"]  # process 1 always runs
    for name in (f".{ended.pid}.last.ckpt", f".{os.getpid()}.best.ckpt", *kept):
        (tmp_path / name).write_bytes(b"half")
    fit(tmp_path, (0.5,))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*kept, "best.ckpt", "last.ckpt"])


def test_a_long_epoch_leaves_a_checkpoint_now_and_then(tmp_path, monkeypatch) -> None:
    """D9: by the clock, here one that runs 10 minutes a step."""
    clock = iter(range(0, 10**6, 600))
    monkeypatch.setattr("dio_lightning.callbacks.checkpoints.time.monotonic", lambda: float(next(clock)))
    saved: list[int] = []
    last = Last(tmp_path, minutes=15)
    monkeypatch.setattr(last, "_save_checkpoint", lambda trainer, path: saved.append(trainer.global_step))
    trainer(tmp_path, last, enable_checkpointing=True).fit(build("VoxelMorph"), loader([batch(i) for i in range(9)]))
    assert saved[:3] == [2, 4, 6], saved
    with pytest.raises(ValueError, match="minutes is 0"):
        Last(tmp_path, minutes=0)
    assert timedelta(minutes=Last(tmp_path).minutes) == timedelta(minutes=15)


@pytest.mark.parametrize("name", METHODS)
def test_a_module_is_built_from_its_checkpoint_alone(name, command, tmp_path) -> None:
    """D7: `DEQReg.load_from_checkpoint(last.ckpt)` was a TypeError."""
    import dio_lightning.modules as modules

    model = yaml.safe_load((ROOT / f"experiments/lab/{name.lower()}.yaml").read_text())["model"]
    settings = {"size": [16, 16], "train_pairs": 1, "val_pairs": 1}
    data = {"class_path": "data_modules.SyntheticPairs", "init_args": settings}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    quick = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"]
    command("fit", "--config", "one.yaml", *quick, "--trainer.default_root_dir", tmp_path)
    path, kind = tmp_path / "checkpoints/last.ckpt", getattr(modules, name)
    module = kind.load_from_checkpoint(path)
    assert type(module) is kind and type(RegistrationModule.load_from_checkpoint(path)) is kind
    assert same(module.state_dict(), torch.load(path, weights_only=True)["state_dict"])
    pair, changed = batch(0), kind.load_from_checkpoint(path, resolution=2.0)
    assert bool(module.register(pair).isfinite().all())
    assert changed.resolution == 2.0 and module.resolution == 1.0
    other = DIO if name == "DEQReg" else DEQReg
    with pytest.raises(ValueError, match=f"is a checkpoint of {name}, expected one of {other.__name__}"):
        other.load_from_checkpoint(path)
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        module.load_from_checkpoint(path)


@pytest.mark.parametrize("name", METHODS)
def test_a_module_that_was_trained_without_a_config_takes_its_arguments(name, tmp_path) -> None:
    run, module = trainer(tmp_path), build(name)
    run.fit(module, loader([batch(0)]))
    run.save_checkpoint(tmp_path / "one.ckpt")
    parts = ("update", "network", "features", "layer")
    given = {part: getattr(build(name), part) for part in parts if hasattr(module, part)}
    if name in ("Unrolling", "GraDIRN"):
        given = {"spatial_dims": 2, "repeats": (1, 1, 1), "width": 4, "depth": 2}
    if name == "DEQReg":
        given = {"update": build(name).layer.update}  # type: ignore[union-attr]
    if name == "RIIR":
        given = {"network": build(name).cell.network}  # type: ignore[union-attr]
    again = type(module).load_from_checkpoint(tmp_path / "one.ckpt", **given)
    assert same(again.state_dict(), module.state_dict())
    if name in ("DIO", "DEQReg", "VoxelMorph", "RIIR"):
        with pytest.raises(ValueError, match=r"one\.ckpt has no config, so that all arguments") as error:
            type(module).load_from_checkpoint(tmp_path / "one.ckpt")
        assert "\n" not in str(error.value)
