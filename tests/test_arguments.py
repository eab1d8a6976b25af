"""Options in any order (B12, D1), and what a part of another class keeps (B13)."""

from itertools import chain, permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from dio_lightning.arguments import find, load, ordered, without_leftovers
from dio_lightning.cli import main
from dio_lightning.experiment import prepare
from dio_lightning.usage import declaration, named_class

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/conf/tiny.yaml"
IDENTITY = ROOT / "experiments/classical/identity.yaml"


@pytest.fixture
def parsed(monkeypatch):
    """The config of a command line that is read but not built."""
    idle = SimpleNamespace(received_sigterm=False, loggers=[])
    monkeypatch.setattr(LightningCLI, "instantiate_classes", lambda cli: setattr(cli, "trainer", idle))
    seen = []
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda cli, name: seen.append(cli.config[name].as_dict()))

    def parse(*words):
        main([*map(str, words)])
        return seen.pop()

    return parse


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("test --data.root X --config Y", "test --config Y --data.root X"),
        ("test --a 1 --config=Y --b 2 -c Z", "test --config=Y -c Z --a 1 --b 2"),
        ("fit --data.root X --data OASIS --trainer.devices 1", "fit --data OASIS --data.root X --trainer.devices 1"),
        (
            "fit --model.layer.solver.rate 1 --model.layer.solver Adam",
            "fit --model.layer.solver Adam --model.layer.solver.rate 1",
        ),
        ("fit --model.layer.solver Adam --model DIO", "fit --model DIO --model.layer.solver Adam"),
        (
            "fit --model.init_args.layer.init_args.solver.init_args.rate 1 --model.layer.solver.class_path Adam",
            "fit --model.layer.solver.class_path Adam --model.init_args.layer.init_args.solver.init_args.rate 1",
        ),
        ("fit --dataset X --data Y", "fit --dataset X --data Y"),
        ("test --a.b [1, -2] --x=--y --config Y", "test --config Y --a.b [1, -2] --x=--y"),
        ("test --a -3.5 --flag --config Y", "test --config Y --a -3.5 --flag"),
    ],
    ids=lambda text: text[:40],
)
def test_configs_come_first_and_a_class_before_its_settings(typed, expected):
    assert " ".join(ordered(typed.split())) == expected
    assert ordered(expected.split()) == expected.split()


def test_settings_of_a_list_stay_with_their_entry():
    words = "predict --callbacks+ A --callbacks.format npz --callbacks+ B --callbacks.pairs 2".split()
    assert ordered(words) == words


def test_every_order_is_the_same_experiment(parsed):
    options = [("--config", IDENTITY), ("--data", "PairsCSV"), ("--data.csv", "p.csv"), ("--data.root", "X")]
    orders = [[*map(str, chain(["test"], *order))] for order in permutations(options)]
    # what is parsed differs in the order of the last two alone; of each, the last typed has the config at its end
    typed = {tuple(ordered(words)): words for words in orders}
    assert all("--config" in words[-2:] for words in typed.values())
    found = [parsed(*words) for words in typed.values()]
    assert len(found) == 2 and found[0] == found[1]
    assert found[0]["data"]["class_path"] == "data_modules.PairsCSV" and found[0]["data"]["init_args"]["root"] == "X"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_settings_before_the_config_that_names_the_class(parsed, command):
    config = parsed(command, "--data.test_pairs", 2, "--model.layer.field_sigma", 0.25, "--config", TINY)
    assert config["data"]["init_args"]["test_pairs"] == 2 and config["data"]["init_args"]["num_labels"] == 3
    assert find(config, ("model", "layer", "field_sigma")) == 0.25


def test_the_documented_default_is_reached_over_any_shipped_config(parsed, caplog):
    """B13: `root: data` was inherited, so that the CSV's own folder was never looked in."""
    for file in ("classical/affine.yaml", "lab/data.yaml", "brains/data.yaml", "lungs/nlst_dio.yaml"):
        model = [] if file.startswith("classical") else ["--config", IDENTITY]
        config = parsed(
            "test", *model, "--config", ROOT / "experiments" / file, "--data", "PairsCSV", "--data.csv", "p.csv"
        )
        assert config["data"]["init_args"]["root"] is None
    assert "data.root is no longer 'data': it was set for Learn2Reg, not PairsCSV" in caplog.text


def test_what_both_classes_declare_alike_is_kept(parsed):
    """The intensities that a network was trained with are those of another source of pairs too."""
    config = ROOT / "experiments/lungs/pair_data.yaml"
    before = yaml.safe_load(config.read_text())["data"]["init_args"]
    words = ["test", "--config", IDENTITY, "--config", config]
    after = parsed(*words, "--data", "Learn2Reg", "--data.root", "X")["data"]["init_args"]
    assert after["root"] == "X" and "csv" not in after and after["clip"] == (-1000, 500)
    assert after["normalise"] == before["normalise"] == "window" and after["mask_images"] is True
    assert parsed(*words, "--data", "PairsCSV")["data"]["init_args"]["root"] == before["root"], "the same class"
    assert parsed("test", "--config", IDENTITY, "--data", "OASIS")["data"]["init_args"]["root"] == "data"


@pytest.mark.parametrize(
    ("key", "value", "kept", "own"),
    [
        ("layer.update", "GaussNewton", {"sigma": 2.0}, {"damping": 0.01}),
        ("layer.solver", "GradientDescent", {}, {"rate": None}),
        ("features", "Intensity", {"levels": None}, {}),
    ],
)
@pytest.mark.parametrize("source", ["option", "config"])
def test_another_class_starts_from_its_own_defaults(parsed, tmp_path, key, value, kept, own, source):
    given = {
        "model": {"init_args": {"layer": {"init_args": {"update": {"class_path": "dio_lightning.updates.Descent"}}}}}
    }
    given["model"]["init_args"]["layer"]["init_args"]["update"]["init_args"] = {"sigma": 2.0, "regularity": 0.0}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    nested = {"class_path": value}
    for part in reversed(key.split(".")):
        nested = {"init_args": {part: nested}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"model": nested}))
    other = ["--config", tmp_path / "other.yaml"] if source == "config" else [f"--model.{key}", value]
    config = parsed("test", "--config", TINY, "--config", tmp_path / "given.yaml", *other)
    part = find(config, ("model", *key.split(".")))
    cls = named_class(part["class_path"])
    assert cls is not None and cls.__name__ == value
    for name in own:
        assert part["init_args"][name] == declaration(cls, name)[1]
    for name, setting in kept.items():
        if setting is not None:
            assert part["init_args"][name] == setting


def test_a_config_that_nothing_changes_is_passed_on_as_it_is(tmp_path):
    prepare()
    words = ["test", "--config", str(TINY), "--model.layer.solver", "Adam", "--data", "Nowhere"]
    assert without_leftovers(words) == (words, [])
    (tmp_path / "broken.yaml").write_text("a: [")
    words = ["test", "--config", str(tmp_path / "broken.yaml"), "--config", "nowhere.yaml", "--data", "PairsCSV"]
    assert without_leftovers(words) == (words, [])


def test_numbers_are_read_as_the_parser_reads_them():
    """PyYAML alone takes 1e-3 for a text."""
    assert load("{rate: 1e-3}") == {"rate": 0.001}
    with pytest.raises(ValueError):
        load("a: [")


def test_check_reads_options_in_any_order(tmp_path, capsys):
    (tmp_path / "data.yaml").write_text("data: {class_path: data_modules.SyntheticPairs, init_args: {size: [24, 20]}}")
    few = ["--data.train_pairs", "2", "--data.val_pairs", "1", "--data.test_pairs", "1"]
    main(["check", *few, "--config", str(tmp_path / "data.yaml"), "--json", str(tmp_path / "report.json")])
    printed = capsys.readouterr().out.splitlines()
    assert "0 errors, 0 warnings" in printed and printed[-1] == f"wrote {tmp_path / 'report.json'}"
    main(["check", "--data.size", "[24,20]", *few, "--data", "SyntheticPairs"])
    assert capsys.readouterr().out.splitlines()[-1] == "0 errors, 0 warnings"
