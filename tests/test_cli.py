"""The command line as a user types it: who wins, what is left on disk, and what a mistake looks like."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from dio_lightning.cli import main

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/tiny.yaml")
OUT = ("--trainer.default_root_dir", "out")
ITERATIONS = "--model.init_args.layer.init_args.iterations"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder: tiny.yaml trained for two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    main(["fit", "--config", TINY, "--trainer.default_root_dir", str(folder)])
    return folder


def refused(run, capsys, *arguments):
    """The one line on stderr of a command that must exit with code 2."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("dio-lightning: error: ")
    return lines[0]


def test_a_run_leaves_its_config_and_two_checkpoints_that_load_as_plain_data(trained):
    checkpoint = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    assert yaml.safe_load(checkpoint["dio_lightning_config"]) == yaml.safe_load((trained / "config.yaml").read_text())
    assert (trained / "checkpoints/best.ckpt").is_file()
    assert list(trained.glob("logs/version_0/metrics.csv")) and list(trained.glob("logs/version_0/events*"))


def test_checkpoint_then_config_then_command_line(trained, command, tmp_path, rows):
    override = {"model": {"init_args": {"layer": {"init_args": {"iterations": [4, 4], "field_sigma": 0.25}}}}}
    (tmp_path / "override.yaml").write_text(yaml.safe_dump(override))
    command(
        "test",
        "--ckpt_path",
        trained / "checkpoints/last.ckpt",
        "--config",
        "override.yaml",
        ITERATIONS,
        "[2, 1]",
        *OUT,
    )
    config = yaml.safe_load((tmp_path / "out/config_test.yaml").read_text())["model"]["init_args"]
    layer = config["layer"]["init_args"]
    assert layer["iterations"] == [2, 1], "the command line wins over the config"
    assert layer["field_sigma"] == 0.25, "the config wins over the checkpoint"
    assert config["features"]["init_args"]["channels"] == 4, "what nobody names is as it was trained"
    assert {float(row["steps"]) for row in rows(tmp_path / "out")} == {3.0}


def test_another_class_on_the_command_line_takes_its_own_defaults(trained, command, tmp_path):
    solver = "--model.init_args.layer.init_args.solver"
    command("test", "--ckpt_path", trained / "checkpoints/last.ckpt", f"{solver}=dio_lightning.implicit.Picard", *OUT)
    layer = yaml.safe_load((tmp_path / "out/config_test.yaml").read_text())["model"]["init_args"]["layer"]
    assert layer["init_args"]["solver"]["class_path"].endswith("Picard")
    assert "rate" not in layer["init_args"]["solver"].get("init_args", {})
    assert layer["init_args"]["iterations"] == [5, 3]


def test_exported_weights_score_as_their_checkpoint(trained, command, capsys, tmp_path, rows):
    checkpoint = trained / "checkpoints/last.ckpt"
    command("export", "--ckpt_path", checkpoint, "weights/tiny.safetensors")
    assert sorted(file.name for file in (tmp_path / "weights").iterdir()) == ["tiny.safetensors", "tiny.yaml"]
    with safe_open(tmp_path / "weights/tiny.safetensors", "pt") as file:
        assert len(file.metadata()["config_sha256"]) == 64
    assert str(trained) not in (tmp_path / "weights/tiny.yaml").read_text()
    command("test", "--ckpt_path", "weights/tiny.safetensors", "--trainer.default_root_dir", "a")
    command("test", "--ckpt_path", checkpoint, "--trainer.default_root_dir", "b")
    assert rows(tmp_path / "a") == rows(tmp_path / "b") and len(rows(tmp_path / "a")) == 3
    assert list((tmp_path / "a/panels").glob("*.png"))
    assert "tiny.safetensors exists" in refused(
        command, capsys, "export", "--ckpt_path", checkpoint, "weights/tiny.safetensors"
    )
    command("export", "--half", "--ckpt_path", checkpoint, "half.safetensors")
    full, half = load_file("weights/tiny.safetensors"), load_file("half.safetensors")
    for name, weight in full.items():
        assert half[name].dtype == (torch.float16 if weight.is_floating_point() else weight.dtype)
        torch.testing.assert_close(half[name].to(weight.dtype), weight, rtol=1e-3, atol=1e-7)
    command("test", "--ckpt_path", "half.safetensors", "--trainer.default_root_dir", "c")
    assert len(rows(tmp_path / "c")) == 3
    wider = ["--model.init_args.features.init_args.channels", "8"]
    assert "do not fit" in refused(command, capsys, "test", "--ckpt_path", "weights/tiny.safetensors", *wider)


def test_predict_writes_fields_once(trained, command, capsys):
    checkpoint = trained / "checkpoints/best.ckpt"
    command("predict", "--ckpt_path", checkpoint)
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {trained / 'predict/predictions'}"
    names = sorted(file.name[:5] for file in (trained / "predict/predictions").iterdir())
    assert names == ["disp_"] * 3 + ["warpe"] * 3
    assert "exists" in refused(command, capsys, "predict", "--ckpt_path", checkpoint)
    command("predict", "--ckpt_path", checkpoint, "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.init_args.layer.init_args.iteration", "[1, 1]"], ["iteration", "OptimizerLayer"]),
        (["--model.init_args.layer.init_args.iterations", "[1, 2, 3]"], ["iterations [1, 2, 3]", "expected 2"]),
        (["--model.init_args.layer.init_args.solver", "Adm"], ["model.layer.solver", "'Adm'"]),
        (["--model.init_args.layer.init_args.solver.init_args.rate", "x"], ["model.layer.solver.rate", "float", "x"]),
        (["--trainer.max_epoch", "3"], ["max_epoch"]),
        (["--trainer.max_epochs", "many"], ["trainer.max_epochs", "many"]),
        (["--data.init_args.size", "[4, 4]"], ["(4, 4)", "at least 12"]),
        (["--data=Nowhere"], ["data", "'Nowhere'"]),
        (["--data=Learn2Reg", "--data.root=nowhere"], ["nowhere"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt"]),
    ],
    ids=lambda value: str(value[0]),
)
def test_a_mistake_is_one_sentence(command, capsys, arguments, words):
    sentence = refused(command, capsys, "fit", "--config", TINY, *arguments)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    "arguments",
    [
        ["fot"],
        ["fit"],
        ["test", "--ckpt_path", "nowhere.ckpt"],
        ["test", "--ckpt_path", TINY],
        ["test", "--config", TINY, "--ckpt_path", "last"],
        ["export", "--ckpt_path", "nowhere.ckpt", "out.safetensors"],
        ["export"],
    ],
    ids=" ".join,
)
def test_a_command_without_its_files_is_one_sentence(command, capsys, arguments):
    refused(command, capsys, *arguments)


def test_a_bug_keeps_its_traceback(command, monkeypatch):
    def broken(self, pair, index):
        raise TypeError("a bug")

    monkeypatch.setattr("dio_lightning.modules.RegistrationModule.training_step", broken)
    with pytest.raises(TypeError, match="a bug"):
        command("fit", "--config", TINY)


def test_help_needs_no_torch():
    code = "import sys; from dio_lightning.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fit" in shown.stdout


def test_print_config_shows_the_checkpoint_with_the_command_line_over_it(trained, command, capsys):
    checkpoint = trained / "checkpoints/last.ckpt"
    with pytest.raises(SystemExit) as stopped:
        command("test", "--ckpt_path", checkpoint, ITERATIONS, "[7, 7]", "--print_config")
    config = yaml.safe_load(capsys.readouterr().out)
    assert not stopped.value.code
    assert config["model"]["init_args"]["layer"]["init_args"]["iterations"] == [7, 7]
    assert config["trainer"]["inference_mode"] is False


def test_what_cannot_be_trained_leaves_nothing_behind(command, capsys, tmp_path):
    run = tmp_path / "run"
    classical = ["--config", TINY, "--model.features", "Intensity", "--model.features.levels", "[2,1]"]
    assert "no weights to train" in refused(command, capsys, "fit", *classical, "--trainer.default_root_dir", str(run))
    assert not run.exists()
