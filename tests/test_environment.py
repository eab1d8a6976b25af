"""A run's folder says with what it was made."""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from dio_lightning.callbacks import environment as module
from dio_lightning.callbacks.environment import changes, environment

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/tiny.yaml")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_clone_says_its_commit_and_what_was_changed(tmp_path, monkeypatch) -> None:
    file = tmp_path / "environment.py"
    shutil.copy(module.__file__, file)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "__file__", str(file))
    assert environment()["commit"] is None and environment()["changed"] == [] and changes() == ""
    git(tmp_path, "init", "-q")
    assert environment()["commit"] is None, "a package that lies in somebody else's clone"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    assert environment()["commit"] == git(tmp_path, "rev-parse", "HEAD").strip() and changes() == ""
    file.write_text(file.read_text() + "# more\n")
    assert environment()["changed"] == ["environment.py"] and "+# more" in changes()
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None


def test_a_run_leaves_it_beside_its_config(command, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/dio-lightning", "test", "--a b"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command("test", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", "--trainer.logger", "false")
    said = yaml.safe_load((tmp_path / "run/environment_test.yaml").read_text())
    assert said["command"] == "dio-lightning test '--a b'" and said["variables"]["SLURM_JOB_ID"] == "7"
    assert (
        said["packages"]["torch"] == torch.__version__.split("+")[0] or said["packages"]["torch"] == torch.__version__
    )
    assert {"lightning", "numpy", "dio-lightning"} <= said["packages"].keys() and said["host"]
