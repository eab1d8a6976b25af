"""The front door in Python: names that cost nothing, trained modules, experiments that are built and not run."""

import ast
import pickle
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from trainings import batch

import dio_lightning
from dio_lightning.callbacks import FieldWriter, Panels, RegistrationScores
from dio_lightning.checkpoint_files import CONFIG, migrated
from dio_lightning.cli import main
from dio_lightning.modules import DIO

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/tiny.yaml")
WEIGHTS = sorted(ROOT.glob("experiments/*/weights/*_0.safetensors"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder: tiny.yaml trained for one epoch, and its weights as safetensors."""
    folder = tmp_path_factory.mktemp("trained")
    main(["fit", "--config", TINY, "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(folder)])
    main(["export", "--ckpt_path", str(folder / "checkpoints/last.ckpt"), str(folder / "tiny.safetensors")])
    return folder


def test_the_import_brings_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import dio_lightning; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    shown = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split() == ["dio_lightning"]


def test_every_name_is_what_its_module_has():
    tree = ast.parse(Path(dio_lightning.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(homes) == sorted(dio_lightning.__all__) and set(homes) <= set(dir(dio_lightning))
    for name, home in homes.items():
        assert getattr(dio_lightning, name) is getattr(import_module(home), name), name
    with pytest.raises(AttributeError, match="'dio_lightning' has no attribute 'lode'"):
        dio_lightning.lode


def test_a_trained_module_comes_from_either_kind_of_file(trained):
    pair = batch(0)
    modules = [
        dio_lightning.load(trained / "checkpoints/last.ckpt"),
        dio_lightning.load(str(trained / "tiny.safetensors")),
    ]
    for module in modules:
        assert type(module) is DIO and not module.training and module.layer.iterations == (5, 3)
        assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
    fields = [module.register(pair) for module in modules]
    assert torch.equal(*fields) and fields[0].abs().max() > 0.1
    state = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in modules[1].state_dict().items())


@pytest.mark.parametrize("file", WEIGHTS, ids=lambda f: f"{f.parts[-3]}-{f.stem}")
def test_published_weights_load_as_the_command_line_loads_them(file):
    module = dio_lightning.load(file)
    built = dio_lightning.build(["--ckpt_path", str(file), "--trainer.accelerator", "cpu"]).module
    assert type(module) is type(built)
    state, other, stored = module.state_dict(), built.state_dict(), load_file(file)
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    assert sum(value.numel() for value in state.values()) == sum(value.numel() for value in stored.values())
    total = sum(value.double().sum() for value in state.values())
    torch.testing.assert_close(total, sum(value.double().sum() for value in stored.values()))


class Program:
    """An object whose unpickling makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def saved(path: Path, config: object, state: object) -> Path:
    torch.save({CONFIG: yaml.safe_dump(config), "state_dict": state, "pytorch-lightning_version": "2.6.0"}, path)
    return path


REFUSED = ["nowhere.ckpt", "nowhere.safetensors", "alone", "text", "program", "no model", "class", "setting", "weights"]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_trained_module_is_one_sentence(kind, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    path, error, words = tmp_path / "one.ckpt", ValueError, ""
    if kind.startswith("nowhere"):
        path, error, words = tmp_path / kind, FileNotFoundError, "does not exist"
    elif kind == "alone":
        path = Path(shutil.copy(trained / "tiny.safetensors", tmp_path))
        error, words = FileNotFoundError, "has no config"
    elif kind == "text":
        path.write_text("no archive")
        words = "is not a readable checkpoint"
    elif kind == "program":
        torch.save({"state_dict": {}, "program": Program()}, path)
        words = "is not a readable checkpoint"
    elif kind == "no model":
        saved(path, {"data": None}, state)
        words = "names no model"
    elif kind == "class":
        config["model"]["class_path"] = "dio_lightning.modules.Gone"
        saved(path, config, state)
        words = "dio_lightning.modules.Gone, which cannot be imported"
    elif kind == "setting":
        config["model"]["init_args"]["gone"] = 1
        saved(path, config, state)
        words = "gone"
    else:
        saved(path, config, {name: value for name, value in state.items() if "bias" not in name})
        words = "do not fit"
    with pytest.raises(error, match=words) as refused:
        dio_lightning.load(path)
    assert "\n" not in str(refused.value) and path.name in str(refused.value)
    assert not Path("ran").exists()


def test_the_program_of_the_test_above_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Program()))
    assert Path("ran").exists()


def test_an_experiment_is_built_and_nothing_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = trained / "checkpoints/last.ckpt"
    words = ["test", "--ckpt_path", str(checkpoint), "--data.test_pairs", "2", "--trainer.limit_test_batches", "1"]
    experiment = dio_lightning.build(words)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in experiment.module.state_dict().items())
    assert isinstance(experiment.data, LightningDataModule) and experiment.trainer.limit_test_batches == 1
    kinds = {type(callback) for callback in experiment.trainer.callbacks}
    assert {RegistrationScores, Panels} <= kinds and FieldWriter not in kinds
    assert FieldWriter in {type(c) for c in dio_lightning.build(f"predict --config {TINY}").trainer.callbacks}
    assert not list(tmp_path.iterdir())
    experiment.data.setup("test")
    assert len(experiment.data.test_dataloader()) == 2


def test_options_alone_are_those_of_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config", TINY, "--trainer.default_root_dir", "a b"]
    one, other = (
        dio_lightning.build(words),
        dio_lightning.build(f"test --config {TINY} --trainer.default_root_dir 'a b'"),
    )
    assert one.trainer.default_root_dir == other.trainer.default_root_dir == "a b"


def test_a_built_experiment_runs_as_the_command_does(trained, command, rows, tmp_path, capsys):
    words = ["test", "--ckpt_path", str(trained / "tiny.safetensors"), "--trainer.default_root_dir"]
    command(*words, "a")
    dio_lightning.build([*words, "b"]).run()
    assert rows(tmp_path / "a") == rows(tmp_path / "b") and len(rows(tmp_path / "b")) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "wrote b"
    with pytest.raises(FileExistsError, match="b holds the scores of another configuration"):
        dio_lightning.build([*words, "b", "--model.layer.iterations", "[1, 1]"]).run()


@pytest.mark.parametrize(
    "options",
    [
        ["--config", TINY, "--trainer.max_epoch", "3"],
        ["--config", TINY, "--model.layer.update=Newton"],
        ["--config", "nowhere"],
        ["--ckpt_path", "nowhere.ckpt"],
        ["--model", "DIO"],
    ],
    ids=lambda words: words[-1],
)
def test_a_mistake_raises_what_the_command_line_prints(options, command, capsys):
    with pytest.raises(SystemExit):
        command("test", *options)
    printed = capsys.readouterr().err.splitlines()[-1]
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        dio_lightning.build(["test", *options])
    assert printed == f"dio-lightning: error: {refused.value}"
    assert not capsys.readouterr().err.count("error")


def test_a_command_that_builds_nothing_is_refused():
    with pytest.raises(ValueError, match="'check' builds no experiment, expected one of fit, validate, test, predict"):
        dio_lightning.build(["check", "--data", "Learn2Reg"])


PUBLISHED = sorted((ROOT / "experiments").glob("*/weights/*.safetensors"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_every_published_file_of_weights_loads(file: Path) -> None:
    """Whatever the keys were called when it was written: each number is in the module that `load` gives."""
    stored, module = load_file(file), dio_lightning.load(file)
    state = module.state_dict()
    names = {**{key: key for key in stored}, **migrated(stored, state)}
    assert set(names.values()) == set(state)
    for old, new in names.items():
        assert torch.equal(stored[old].to(state[new].dtype), state[new]), old


def test_there_are_published_weights_of_every_trained_method() -> None:
    assert {re.sub(r"_\d$", "", file.stem) for file in PUBLISHED} >= {
        *("dio", "deqreg", "deqreg12", "voxelmorph", "unrolling", "gradirn", "riir", "brains")
    }
