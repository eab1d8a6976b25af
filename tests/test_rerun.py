"""A run once more: the same numbers, or the first that is another; who ran which part of a training."""

import csv
import subprocess
from pathlib import Path

import pytest
import yaml

from dio_lightning import rerun
from dio_lightning.cli import main
from dio_lightning.rerun import compare, differences, first_config, numbers

ROOT = Path(__file__).parents[1]
TINY = ["--config", str(ROOT / "tests/conf/tiny.yaml"), "--trainer.default_root_dir", "run"]


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Commands of a rerun run in this process."""

    def start(words, before):
        assert before["directory"] == str(tmp_path)
        main(words)
        return 0

    monkeypatch.setattr(rerun, "start", start)


def test_a_training_and_its_test_get_their_numbers_again_and_an_altered_one_is_named(here, command, capsys, tmp_path):
    command("fit", *TINY)
    command("test", *TINY, "--ckpt_path", "last")
    capsys.readouterr()
    command("rerun", "run")
    said = capsys.readouterr().out.splitlines()
    count = len(numbers(tmp_path / "run"))
    assert said[-2:] == [f"the same: all {count} numbers are equal", "wrote run_rerun"] and count > 40
    places = numbers(tmp_path / "run_rerun")
    rows = list(csv.DictReader((file := tmp_path / "run/metrics.csv").read_text().splitlines()))
    pair = f"pair {rows[1]['fixed_id']} {rows[1]['moving_id']}"
    assert ("step 3", "val/dice") in places and (pair, "dice") in places
    assert not [place for place in places if "seconds" in place[-1]]
    # one digit of one pair
    was = rows[1]["dice"]
    file.write_text(file.read_text().replace(was, now := was[:-1] + str((int(was[-1]) + 1) % 10)))
    assert compare(numbers(tmp_path / "run"), places) == (f"different: {pair}, dice was {now}, is {was}", False)


def test_a_training_that_went_on_says_which_part_ran_where_and_is_run_again_whole(here, command, capsys, tmp_path):
    run = tmp_path / "run"
    command("fit", *TINY, "--trainer.max_epochs", "1")
    first = yaml.safe_load((run / "environment.yaml").read_text())
    (run / "changes.diff").write_text("other\n")
    command("fit", *TINY, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    both = yaml.safe_load((run / "environment.yaml").read_text())
    (part,) = both.pop("resumed")
    assert both == first and (part["step"], part["epoch"], part["host"]) == (4, 1, first["host"])
    assert yaml.safe_load((run / "config_until_step_4.yaml").read_text())["trainer"]["max_epochs"] == 1
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 2
    assert (run / "changes_until_step_4.diff").read_text() == "other\n"
    assert first_config(run, "config.yaml") == run / "config_until_step_4.yaml"
    # the first config has one epoch: the second one's numbers are missing
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command("rerun", "run", "--out", "again")
    said = capsys.readouterr()
    assert "went on at step 4" in said.err and "keeps the first" in said.err
    assert stopped.value.code == 1 and said.out.splitlines()[-2] == "different: step 4, lr-Adam was 0.001, is missing"


def test_the_same_config_going_on_is_a_run_like_any_other(here, command, capsys, tmp_path):
    """Killed after an epoch and gone on: the numbers of one that nothing stopped."""
    command("fit", *TINY, "--ckpt_path", "last", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2")
    (tmp_path / "run/checkpoints/last.ckpt").rename(tmp_path / "run/checkpoints/unused.ckpt")
    (tmp_path / "run/checkpoints/previous.ckpt").rename(tmp_path / "run/checkpoints/last.ckpt")
    command("fit", *TINY, "--ckpt_path", "last", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2")
    assert len(list((tmp_path / "run/logs").iterdir())) == 2
    assert not list((tmp_path / "run").glob("config_until*"))
    capsys.readouterr()
    command("rerun", "run")
    assert "the same: all " in capsys.readouterr().out


def test_what_differs_from_the_first_run_is_said(tmp_path, monkeypatch):
    from dio_lightning.callbacks import environment as module

    now = module.environment()
    monkeypatch.setattr(module, "environment", lambda: now)
    monkeypatch.setattr(module, "changes", lambda: "")
    assert not list(differences(tmp_path, now))
    before = now | {"commit": "abc", "packages": now["packages"] | {"torch": "1.0"}, "threads": 64}
    (tmp_path / "changes.diff").write_text("+x\n")
    sentences = list(differences(tmp_path, before))
    assert [sentence.split()[0] for sentence in sentences] == ["commit", "threads", "the", "versions"]
    assert f"torch 1.0 → {now['packages']['torch']}" in sentences[-1]
    assert len(list(differences(tmp_path, {}))) == 1


def test_numbers_are_equal_as_numbers():
    a = {("step 1", "loss"): "1e-3", ("step 2", "loss"): "nan"}
    assert compare(a, {("step 1", "loss"): "0.001", ("step 2", "loss"): "NaN", ("step 3", "loss"): "1"}) == (
        "the same: all 2 numbers are equal; it has 1 more",
        True,
    )
    assert compare(a, {("step 1", "loss"): "0.0010000001"}) == (
        "different: step 1, loss was 1e-3, is 0.0010000001",
        False,
    )
    assert compare(a, {("step 1", "loss"): "0.001"}) == ("different: step 2, loss was nan, is missing", False)
    assert not compare({}, a)[1]


def test_a_folder_of_no_run_and_a_command_that_fails(command, capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        command("rerun", "nowhere")
    assert (
        stopped.value.code == 2
        and "nowhere is no folder of a run: it has none of config.yaml" in capsys.readouterr().err
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("model: 1\n")
    asked = {}

    def ended(words, **options):
        asked.update(options, words=words)
        return subprocess.CompletedProcess(words, 3)

    monkeypatch.setattr(rerun.subprocess, "run", ended)
    (tmp_path / "run/environment.yaml").write_text(f"directory: {tmp_path}\nvariables: {{OMP_NUM_THREADS: '7'}}\n")
    with pytest.raises(SystemExit) as stopped:
        command("rerun", "run")
    assert stopped.value.code == 3 and "fit failed with exit code 3" in capsys.readouterr().err
    assert (asked["cwd"], asked["env"]["OMP_NUM_THREADS"]) == (str(tmp_path), "7")
    assert asked["words"][2:5] == ["dio_lightning", "fit", "--config"] and asked["words"][-1] == str(
        tmp_path / "run_rerun"
    )
