"""What W&B and TensorBoard get: the config by keys, scores, panels and tables, in one run a folder (E9, D15)."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread

from dio_lightning.callbacks import Panels
from dio_lightning.callbacks.loggers import LoggedResults, stay_in
from dio_lightning.run_folders import default_folder

ROOT = Path(__file__).parents[1]
TINY = ["--config", str(ROOT / "tests/conf/tiny.yaml")]
WANDB = ["--config", str(ROOT / "experiments/loggers/wandb.yaml")]


@pytest.fixture
def alone(tmp_path, monkeypatch) -> Iterator[None]:
    """No account, none of a user's settings, and nothing that wandb remembers."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def entries(path: Path) -> Iterator[bytes]:
    """The records of an offline run's file: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield parts
            parts = b""


def records(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The id, the config and the last value of every key, of an offline run."""
    from wandb.proto import wandb_internal_pb2

    def parsed() -> list[Any]:
        return [wandb_internal_pb2.Record.FromString(data) for data in entries(next(folder.glob("run-*.wandb")))]

    # another process writes the file, and its last record a moment after the run has ended
    late = time.monotonic() + 20
    while not any(record.HasField("exit") for record in parsed()) and time.monotonic() < late:
        time.sleep(0.1)
    name, config, history = "", {}, {}
    for record in parsed():
        name = record.run.run_id or name
        for update in (*record.config.update, *record.run.config.update):
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        for item in record.history.item:
            history[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return name, config, history


@pytest.mark.slow
def test_a_wandb_run_has_everything_and_goes_on_when_the_training_does(alone, command, tmp_path) -> None:
    words = [*TINY, *WANDB, "--trainer.default_root_dir", "run"]
    (tmp_path / "panels.yaml").write_text(
        "trainer: {callbacks: [{class_path: dio_lightning.callbacks.Panels, init_args: {pairs: 1, every: 2}}]}"
    )
    words += ["--config", "panels.yaml"]
    command("fit", *words, "--trainer.max_epochs", "1")
    command("fit", *words, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    command("test", *words, "--ckpt_path", "last")
    folders = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    first, second, test = map(records, folders)
    assert first[0] == second[0] == test[0] == (tmp_path / "run/wandb_id.txt").read_text().strip()
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    for _, config, _ in (first, second, test):
        assert config["model"] == saved["model"] and config["data"]["init_args"]["train_pairs"] == 4
    assert {"val/dice", "val/loss", "epoch"} <= first[2].keys() and second[2]["epoch"] == 1
    assert test[2]["test/dice"] > 0 and (test[2]["test/pairs/nrows"], test[2]["test/panels/count"]) == (3, 1)
    # the first validation of each of the two trainings was drawn
    for folder, (_, _, history) in zip(folders[:2], (first, second), strict=True):
        picture = imread(folder / "files" / history["val/panels/filenames"][0])
        assert picture.shape[1] > picture.shape[0] > 200 and picture.std() > 0.05
    files = folders[2] / "files"
    content = json.loads((files / test[2]["test/pairs/path"]).read_text())
    assert content["columns"][:3] == ["fixed_id", "moving_id", "dice"] and isinstance(content["data"][0][2], float)
    assert (files / test[2]["test/panels/filenames"][0]).stat().st_size > 1000
    assert (tmp_path / "run/logs/version_0/metrics.csv").is_file()
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "home", "panels.yaml"}, "nothing outside"


def test_without_an_account_a_live_run_is_one_sentence(alone, command, capsys, tmp_path) -> None:
    """E9: it was 52 lines."""
    with pytest.raises(SystemExit):
        command(
            "fit", *TINY, *WANDB, "--trainer.logger.offline", "false", "--trainer.default_root_dir", tmp_path / "run"
        )
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("dio-lightning: error: W&B: ") and "wandb login" in message


def test_a_folder_is_one_run_unless_someone_says_which(alone, tmp_path, monkeypatch) -> None:
    def logger(**options: Any) -> WandbLogger:
        return WandbLogger(offline=True, **options)

    (tmp_path / "wandb_id.txt").write_text("abc\n")
    one, named, elsewhere, new = logger(), logger(id="mine"), logger(save_dir="there"), logger()
    csv = CSVLogger(tmp_path)
    stay_in(tmp_path, [one, named, csv, elsewhere], anew=False)
    stay_in(tmp_path, new, anew=True)
    assert [x.version for x in (one, named, elsewhere)] == ["abc", "mine", "abc"] and new.version not in (None, "abc")
    assert [x.save_dir for x in (one, named, elsewhere)] == [str(tmp_path)] * 2 + ["there"]
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    trial = logger()
    stay_in(tmp_path, trial, anew=False)
    assert trial.version is None
    assert default_folder(["fit", *TINY]) == Path("runs/tiny")
    monkeypatch.setenv("WANDB_RUN_ID", "t7")
    assert default_folder(["fit", *TINY]) == Path("runs/sweeps/s1/t7")
    stay_in(tmp_path, None, anew=False)


def test_tensorboard_has_the_panels(command, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command("test", *TINY, "--trainer.default_root_dir", "run")
    events = EventAccumulator(str(tmp_path / "run/logs/version_0"))
    events.Reload()
    assert events.Tags()["images"] == ["panels/0000_0000_0000_0001"]
    image = events.Images("panels/0000_0000_0000_0001")[0]
    assert image.width > image.height > 50


def test_mlflow_gets_the_files(tmp_path, monkeypatch) -> None:
    """By a client that writes down what it was asked: mlflow itself is not needed to see that."""
    asked: list[tuple[str, str]] = []
    logger = object.__new__(MLFlowLogger)
    client = SimpleNamespace(log_artifact=lambda run, path: asked.append((run, Path(path).name)))
    monkeypatch.setattr(MLFlowLogger, "experiment", client)
    monkeypatch.setattr(MLFlowLogger, "run_id", "r1")
    trainer = SimpleNamespace(is_global_zero=True, callbacks=[], loggers=[logger], default_root_dir=tmp_path)
    LoggedResults().on_test_end(trainer, None)  # type: ignore[arg-type]
    assert asked == [("r1", "metrics.csv")]


def test_a_training_shows_every_kth_validation_to_all_that_take_pictures(tmp_path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    named: list[str] = []
    mlflow, board = object.__new__(MLFlowLogger), TensorBoardLogger(tmp_path, name="", version="")
    client = SimpleNamespace(log_figure=lambda run, figure, path: named.append(path))
    monkeypatch.setattr(MLFlowLogger, "experiment", client)
    monkeypatch.setattr(MLFlowLogger, "run_id", "r1")
    fixed = torch.rand(1, 1, 12, 10)
    pair, outputs = {"fixed": fixed, "moving": fixed}, {"displacement": torch.zeros(1, 2, 12, 10)}
    state = SimpleNamespace(fn="fit")
    about = dict(is_global_zero=True, fast_dev_run=False, current_epoch=0, loggers=[CSVLogger(tmp_path), mlflow, board])
    panels = Panels(every=2)
    for step, sanity in ((0, True), (10, False), (20, False), (30, False)):
        trainer = SimpleNamespace(state=state, sanity_checking=sanity, global_step=step, **about)
        for batch in (0, 1):
            panels.on_validation_batch_end(trainer, None, outputs, pair, batch)  # type: ignore[arg-type]
    assert named == ["val/panels/00000010.png", "val/panels/00000030.png"]
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Images("val/panels")] == [10, 30]
