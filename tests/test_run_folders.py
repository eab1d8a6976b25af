"""Where runs go, what they may replace (D8), and that the table names what was run (D14)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dio_lightning.run_folders import (
    check_checkpoints,
    check_scores,
    claim,
    default_folder,
    names_folder,
    numbered,
    of_another,
)
from dio_lightning.scores.summary import digest
from dio_lightning.variants import variant

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/tiny.yaml")
ONE = ["--config", TINY, "--trainer.max_epochs", "1"]


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["test", "--ckpt_path", "runs/dio/checkpoints/best.ckpt"], "runs/dio/test"),
        (["predict", "--ckpt_path=runs/dio/checkpoints/best.ckpt"], "runs/dio/predict"),
        (["test", "--ckpt_path", "weights/brains.safetensors", "--data.root", "X"], "runs/test/brains"),
        (["test", "--ckpt_path", "elsewhere/epoch3.ckpt"], "runs/test/epoch3"),
        (["fit", "--ckpt_path", "runs/dio/checkpoints/best.ckpt", "--config", TINY], "runs/tiny"),
        (["test", "--ckpt_path", "last", "--config", TINY], "runs/tiny"),
        (["fit", "--config", TINY, "--config", str(ROOT / "experiments/trainer/cpu.yaml")], "runs/tiny"),
        (["fit", "--model", "dio_lightning.modules.DIO"], "runs/dio"),
        (["fit"], "runs/latest"),
    ],
    ids=lambda value: " ".join(value[:3])[-40:] if isinstance(value, list) else "",
)
def test_a_run_without_a_folder_goes_to_one_of_its_own(words, folder):
    assert default_folder(words) == Path(folder) and not names_folder(words)
    assert names_folder([*words, "--trainer.default_root_dir=x"])


def test_scores_of_another_configuration_are_told_by_the_hash(tmp_path):
    assert not of_another(tmp_path, "seed: 0")
    (tmp_path / "metrics.csv").write_text("")
    assert of_another(tmp_path, "seed: 0"), "scores of nobody knows what"
    (tmp_path / "summary.json").write_text(json.dumps({"config_hash": digest("seed: 0")}))
    assert not of_another(tmp_path, "seed: 0") and of_another(tmp_path, "seed: 1")
    with pytest.raises(FileExistsError, match=r"holds the scores of another configuration: .* --overwrite"):
        check_scores(tmp_path, "seed: 1")
    for text in ("", "[]", "{"):
        (tmp_path / "summary.json").write_text(text)
        assert of_another(tmp_path, "seed: 0")
    names = [path.name for path, _ in zip(numbered(tmp_path / "run"), range(3), strict=False)]
    assert names == ["run", "run_2", "run_3"]


def test_a_training_goes_on_from_its_own_checkpoints_or_is_refused(tmp_path, monkeypatch):
    check_checkpoints(tmp_path, None)
    (tmp_path / "checkpoints").mkdir()
    own, other = tmp_path / "checkpoints/best.ckpt", tmp_path / "other.ckpt"
    for path in (own, other):
        path.write_bytes(b"")
    for checkpoint in ("last", "hpc", str(own), str(tmp_path / "x/../checkpoints/best.ckpt")):
        check_checkpoints(tmp_path, checkpoint)
    for checkpoint in (None, str(other)):
        with pytest.raises(FileExistsError, match=r"--ckpt_path last, .* --overwrite"):
            check_checkpoints(tmp_path, checkpoint)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with pytest.raises(FileExistsError):
        check_checkpoints(tmp_path, None)
    # SLURM's queue starts the same command again
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    check_checkpoints(tmp_path, None)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"")
    check_checkpoints(tmp_path, None)
    monkeypatch.delenv("SLURM_NTASKS")
    with pytest.raises(FileExistsError):
        check_checkpoints(tmp_path, None)


def test_runs_one_after_another_keep_each_others_files(command, capsys, tmp_path):
    def last_line(*words):
        command(*words)
        return capsys.readouterr().out.splitlines()[-1]

    def refused(*words):
        with pytest.raises(SystemExit):
            command(*words)
        return capsys.readouterr().err.splitlines()[-1]

    run = tmp_path / "runs/tiny"
    assert last_line("fit", *ONE) == "wrote runs/tiny"
    trained, best = (run / "config.yaml").read_bytes(), (run / "checkpoints/best.ckpt").read_bytes()
    (run / "checkpoints/older.ckpt").write_bytes(b"")
    assert "runs/tiny holds the checkpoints of another run" in refused("fit", *ONE)
    assert (run / "checkpoints/best.ckpt").read_bytes() == best
    assert last_line("test", *ONE, "--ckpt_path", "last") == "wrote runs/tiny"
    assert (run / "config.yaml").read_bytes() == trained and (run / "config_test.yaml").is_file()
    assert "overwrite" not in yaml.safe_load((run / "config_test.yaml").read_text())
    weights = ["--ckpt_path", "runs/tiny/checkpoints/best.ckpt"]
    assert last_line("test", *weights) == "wrote runs/tiny/test"
    assert last_line("test", *weights) == "wrote runs/tiny/test", "the same test may be taken again"
    other = ["--model.layer.transformation", "Diffeomorphism"]
    command("test", *other, *weights)
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "wrote runs/tiny/test_2" and "DIO (Diffeomorphism)" in shown
    assert json.loads((run / "test_2/summary.json").read_text())["method"] == "DIO (Diffeomorphism)"
    assert yaml.safe_load((run / "test_2/config_test.yaml").read_text())["trainer"]["default_root_dir"] == str(
        Path("runs/tiny/test_2")
    )
    assert json.loads((run / "test/summary.json").read_text())["method"] == "DIO"
    named = ["--trainer.default_root_dir", "runs/tiny/test"]
    assert "runs/tiny/test holds the scores of another configuration" in refused("test", *weights, *other, *named)
    assert last_line("test", *weights, *other, *named, "--overwrite") == "wrote runs/tiny/test"
    assert last_line("fit", *ONE, "--overwrite") == "wrote runs/tiny"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


HOLD = """
import sys, time
from pathlib import Path
from dio_lightning.run_folders import claim
claim(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_two_trainings_do_not_share_a_folder(command, capsys, tmp_path):
    """E7: two fits at once mixed their files. A killed one leaves no claim behind."""
    run = tmp_path / "run"
    words = [sys.executable, "-c", HOLD, str(run)]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(SystemExit):
        command("fit", *ONE, "--trainer.default_root_dir", run)
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"run is being trained into by process {other.pid} on " in message
    assert [path.name for path in run.iterdir()] == [".training"]
    other.kill()
    other.wait()
    other.stdout.close()
    claim(run)
    claim(run)


def test_a_try_neither_replaces_nor_claims_anything(command, capsys, tmp_path):
    command("fit", *ONE, "--trainer.fast_dev_run", "true")
    assert "wrote" not in capsys.readouterr().out and not (tmp_path / "runs").exists()


CHECKPOINT = """
model:
  class_path: DIO
  init_args:
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.1}}
    layer:
      class_path: dio_lightning.layers.OptimizerLayer
      init_args:
        iterations: [2, 1]
        transformation: {class_path: dio_lightning.transformations.Diffeomorphism}
        update: {class_path: dio_lightning.updates.Descent, init_args: {regularity: 0.0}}
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ""),
        (["--model.layer.transformation", "FreeForm"], "FreeForm"),
        (["--model.layer.transformation", "Diffeomorphism"], ""),
        (["--model.layer.iterations", "[4, 3]"], "iterations [4, 3]"),
        (["--model.layer.iterations=[2, 1]", "--model.optimizer.lr", "1", "--data.root", "X"], ""),
        (["--model.init_args.layer.init_args.update.init_args.regularity", "0.1"], "regularity 0.1"),
        (["--model.layer.solver=Anderson", "--model.layer.solver.window", "4"], "Anderson, window 4"),
        (["--config", "model: {init_args: {layer: {init_args: {field_sigma: 1.5}}}}\n"], "field_sigma 1.5"),
    ],
    ids=str,
)
def test_a_variant_names_what_differs_from_the_checkpoint(words, expected):
    """D14: `FreeForm` at test time was still called DIO."""
    from dio_lightning.experiment import prepare

    prepare()
    assert variant(["test", "--config", CHECKPOINT, *words], trained=True) == expected


def test_a_config_alone_is_no_variant_of_itself():
    more = "model: {init_args: {layer: {init_args: {field_sigma: 1.5}}}}\n"
    assert variant(["test", "--config", CHECKPOINT, "--config", more], trained=False) == ""
