"""The models that come with the package: their names, their cards, and files that are refused."""

import contextlib
import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scans import affine_of, scene, write

import dio_lightning
from dio_lightning import loaded
from dio_lightning.checkpoint_files import CONFIG, config_text
from dio_lightning.cli import main
from dio_lightning.models import Card, card_of, model_paths, weights_path
from dio_lightning.models.catalogue import with_models
from dio_lightning.modules import DIO

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/tiny.yaml")
NAMES = list(model_paths())
CARD = Card("Squares.", "None.", {"squares": "Dice 1"}, ["Circles."], 0, "dio-lightning fit", "0000000")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run's folder: tiny.yaml trained for one epoch, and its weights as a file that carries config and card."""
    folder = tmp_path_factory.mktemp("trained")
    main(["fit", "--config", TINY, "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(folder)])
    (folder / "card.yaml").write_text(CARD.text())
    export = ["export", "--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--card", str(folder / "card.yaml")]
    main([*export, str(folder / "tiny.safetensors")])
    return folder


@pytest.fixture
def tiny(trained, tmp_path) -> Path:
    """A copy of the file that carries all."""
    return Path(shutil.copy(trained / "tiny.safetensors", tmp_path))


def altered(file: Path, **metadata: str) -> Path:
    """The same weights, with other entries in the metadata."""
    with safe_open(file, "pt") as opened:
        content = opened.metadata()
    save_file(load_file(file), file, content | metadata)
    return file


def sentence(command, capsys, *words) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert stopped.value.code == 2
    return line


def test_the_models_are_small_and_their_cards_say_what_must_be_said():
    assert NAMES and sum(path.stat().st_size for path in model_paths().values()) < 8e6
    for path in model_paths().values():
        card = card_of(path)
        assert card.scores and card.limits and card.version
        assert not re.search(r": /\w", config_text(path)), "it names no folder of one machine"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_loaded_as_its_file_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = load_file(model_paths()[name])
    for module in (
        dio_lightning.load(name),
        DIO.load_from_checkpoint(name),
        loaded.load(f"Ours={name}", (), False).module,
    ):
        assert module.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())
    assert not list(tmp_path.iterdir()), "reading a model writes nothing"


def test_the_command_line_tests_a_model_by_its_name(command, tmp_path, rows):
    data = ["--data", "SyntheticPairs", "--data.size", "[16,16,16]", "--data.test_pairs", "1"]
    quick = ["--trainer.logger", "false", "--model.layer.iterations", "[1,1,1]"]
    command("test", "--ckpt_path=brain-t1", *data, *quick)
    assert len(rows(tmp_path / "runs/test/brain-t1")) == 1
    config = yaml.safe_load((tmp_path / "runs/test/brain-t1/config_test.yaml").read_text())["model"]["init_args"]
    trained = yaml.safe_load(config_text(model_paths()["brain-t1"]))["model"]["init_args"]
    assert config["features"]["class_path"] == trained["features"]["class_path"]
    assert config["layer"]["init_args"]["iterations"] == [1, 1, 1], "the command line wins over the model"


def test_a_model_is_exported_by_its_name(command, tmp_path):
    command("export", "--ckpt_path", "brain-any", "ours.safetensors")
    ours, shipped = load_file("ours.safetensors"), load_file(model_paths()["brain-any"])
    assert ours.keys() == shipped.keys() and all(torch.equal(ours[key], shipped[key]) for key in shipped)


def test_register_takes_a_model_by_its_name(command, tmp_path, capsys):
    size = (24, 20, 20)
    image = write(tmp_path, "image.nii.gz", scene(size).astype(np.float32), affine_of(size))
    with contextlib.suppress(SystemExit):  # no brain: the verdict is not asked for
        command("register", image, image, "--out", "out", "--stages", "deformable", "--model", "brain-t1")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["method"] == "DIO" and "--model brain-t1" in report["command"]
    capsys.readouterr()
    unknown = sentence(command, capsys, "register", image, image, "--out", "b", "--model", "brain")
    assert f"which are {', '.join(NAMES)}" in unknown


def test_a_file_wins_over_a_name_only_if_it_is_spelt_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("brain-t1", "other", "brain-t1.safetensors"):
        Path(name).touch()
    shipped = model_paths()["brain-t1"]
    assert weights_path("brain-t1") == weights_path(Path("brain-t1")) == shipped
    for path in ("other", "./brain-t1", "brain-t1.safetensors", "no/where", "nowhere.ckpt", str(tmp_path / "brain-t1")):
        assert weights_path(path) == Path(path)
    assert with_models(["test", "--ckpt_path", "./brain-t1"]) == ["test", "--ckpt_path", "./brain-t1"]
    for word in ("last", "best", "hpc", "null", "registry:x"):
        assert with_models(["test", "--ckpt_path", word, "brain-t1"]) == ["test", "--ckpt_path", word, "brain-t1"]


@pytest.mark.parametrize("words", [["test", "--ckpt_path", "brian-t1"], ["models", "brian-t1"]], ids=lambda w: w[0])
def test_an_unknown_name_is_one_sentence_that_lists_the_names(words, command, capsys):
    line = sentence(command, capsys, *words)
    assert all(name in line for name in NAMES) and line.endswith("did you mean 'brain-t1'?")
    with pytest.raises(FileNotFoundError, match=r"which are .*brain-t1"):
        dio_lightning.load("brain")


def test_a_file_that_carries_all_is_the_checkpoint_it_was_made_from(trained, tiny, command):
    checkpoint = dio_lightning.load(trained / "checkpoints/last.ckpt")
    module = dio_lightning.load(tiny)
    assert not tiny.with_suffix(".yaml").exists()
    assert all(torch.equal(value, checkpoint.state_dict()[key]) for key, value in module.state_dict().items())
    with torch.no_grad():
        images = torch.rand(2, 1, 1, 16, 16)
        assert torch.equal(module(*images)[-1].value, checkpoint(*images)[-1].value)
    assert card_of(tiny) == replace(CARD, version=dio_lightning.__version__)
    with pytest.raises(SystemExit):
        command("export", "--ckpt_path", trained / "checkpoints/last.ckpt", "--card", trained / "card.yaml", tiny)


def test_a_file_may_carry_the_settings_that_were_validated(trained, command, tmp_path):
    validate = ["validate", "--ckpt_path", trained / "checkpoints/last.ckpt", "--trainer.default_root_dir", "v"]
    command(*validate, "--model.layer.iterations", "[2,1]")
    export = ["export", "--ckpt_path", trained / "checkpoints/last.ckpt", "--config", "v/config_validate.yaml"]
    command(*export, "--card", trained / "card.yaml", "out.safetensors")
    command(*export, "plain.safetensors")
    for name in ("out", "plain"):
        module = dio_lightning.load(tmp_path / f"{name}.safetensors")
        assert isinstance(module, DIO) and list(module.layer.iterations) == [2, 1]
        assert str(tmp_path) not in config_text(tmp_path / f"{name}.safetensors")


def test_what_has_been_altered_or_is_of_another_version_or_network_is_refused(tiny, command, capsys):
    whole = tiny.read_bytes()
    tiny.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    assert "its bytes are not those that were written" in sentence(command, capsys, "test", "--ckpt_path", tiny)
    tiny.write_bytes(whole)
    wider = config_text(tiny).replace("channels: 4", "channels: 5")
    altered(tiny, **{CONFIG: wider})
    with pytest.raises(ValueError, match="not those that were written"):
        dio_lightning.load(tiny)
    tiny.write_bytes(whole)
    altered(tiny, dio_lightning_layout="2", dio_lightning_version="7.0")
    with pytest.raises(ValueError, match=r"has layout 2, expected 1: it was written by dio-lightning 7\.0"):
        dio_lightning.load(tiny)
    assert "has layout 2" in sentence(command, capsys, "test", "--ckpt_path", tiny)
    tiny.write_bytes(whole)
    channels = ["--model.init_args.features.init_args.channels", "5"]
    assert "weights do not fit" in sentence(command, capsys, "test", "--ckpt_path", tiny, *channels)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_nothing_in_a_file_is_run(command, capsys, tmp_path):
    for name in ("evil.safetensors", "evil.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Evil()}))
        assert "is not a readable" in sentence(command, capsys, "test", "--ckpt_path", tmp_path / name)
    with pytest.raises(ValueError, match="not a readable"):
        card_of(tmp_path / "evil.safetensors")
    assert not (tmp_path / "ran").exists()


def test_the_list_and_the_card_are_shown(command, capsys, tiny):
    command("models")
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    command("models", "brain-t1")
    shown = " ".join(capsys.readouterr().out.replace("|", " ").split())
    card = card_of(model_paths()["brain-t1"])
    assert all(text in shown for text in [card.about, card.data, *card.limits, *card.scores.values()])
    command("models", "--json")
    assert {name: content["about"] for name, content in json.loads(capsys.readouterr().out).items()} == {
        name: card_of(path).about for name, path in model_paths().items()
    }
    command("models", "--json", tiny)
    assert json.loads(capsys.readouterr().out)["limits"] == ["Circles."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("about: x", "its card has no command, no commit, no data, no limits, no scores, no seed"),
        (CARD.text() + "licence: none", "an unknown licence"),
        (CARD.text().replace("- Circles.", "  Circles."), "limits of its card is 'Circles.', expected a list"),
        ("a: [", "its card is no YAML"),
    ],
)
def test_a_card_that_is_none_is_one_sentence(text, words, trained, command, capsys, tmp_path):
    (tmp_path / "card.yaml").write_text(text)
    export = ["export", "--ckpt_path", trained / "checkpoints/last.ckpt", "--card", "card.yaml", "out.safetensors"]
    assert words in sentence(command, capsys, *export)
    assert not (tmp_path / "out.safetensors").exists()
    assert "has no card" in sentence(command, capsys, "models", ROOT / "experiments/dio/weights/brains.safetensors")
