"""Configs by name, in a clone and from an installed wheel."""

import json
from pathlib import Path

import pytest
import wheels
import yaml

from dio_lightning.models import model_paths
from dio_lightning.run_folders import default_folder
from dio_lightning.shipped_configs import about, shipped_configs, with_shipped

ROOT = Path(__file__).parents[1]
DEMO = str(ROOT / "experiments/dio/demo.yaml")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["dio/demo", "dio/demo.yaml", "experiments/dio/demo.yaml"])
def test_a_name_stands_for_its_file(elsewhere, name):
    assert with_shipped(["fit", "--config", name, "--data.size", "dio/demo"]) == [
        *("fit", "--config", DEMO, "--data.size", "dio/demo")
    ]
    assert with_shipped(["fit", f"--config={name}", "-c", name]) == ["fit", f"--config={DEMO}", "-c", DEMO]


def test_a_file_here_wins_and_what_is_no_name_is_left_alone(elsewhere):
    (elsewhere / "dio").mkdir()
    (elsewhere / "dio/demo").write_text("model: null")
    for words in (["--config", "dio/demo"], ["--config", "seed_everything: 0\n"], ["--config", "/no/where.yaml"]):
        assert with_shipped(["fit", *words]) == ["fit", *words]
    assert with_shipped(["fit", "--config"]) == ["fit", "--config"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dio/dmo", "did you mean 'dio/demo'?"),
        ("lncc.yaml", "did you mean 'classical/lncc'?"),
        (
            "deqreg",
            "did you mean 'brains/deqreg' or 'brains_updates/deqreg' or 'lab/deqreg' or 'shift/deqreg' or "
            "'updates/deqreg'?",
        ),
        ("nothing/alike", "`dio-lightning configs` lists"),
    ],
)
@pytest.mark.parametrize("before", [["fit"], ["test"], ["check"]], ids=" ".join)
def test_an_unknown_name_is_one_sentence_with_near_names(command, capsys, before, name, words):
    with pytest.raises(SystemExit) as stopped:
        command(*before, "--config", name)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith(f"dio-lightning: error: config {name} does not exist")
    assert line.endswith(words)


def test_the_list_has_every_config_with_what_it_is(command, capsys):
    command("configs")
    lines = capsys.readouterr().out.splitlines()
    files = [file for file in ROOT.glob("experiments/*/*.yaml") if file.parent.name != "sweeps"]
    assert [line.split()[0] for line in lines] == sorted(f"{file.parent.name}/{file.stem}" for file in files)
    assert all(len(line.split()) > 1 for line in lines), "a config begins with a comment that says what it is"
    assert about(Path(DEMO)).startswith("DIO in a minute or two on a laptop")


def test_a_name_is_no_other_file_of_the_list():
    configs = shipped_configs()
    assert len({path.resolve() for path in configs.values()}) == len(configs)
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in configs.values())


def test_a_run_of_a_named_config_goes_where_that_of_its_file_goes(elsewhere):
    name = default_folder(with_shipped(["test", "--config", "classical/lncc"]))
    assert name == default_folder(["test", "--config", str(ROOT / "experiments/classical/lncc.yaml")])


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The commands of an environment with the wheel of this tree, as `make dist` builds and installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    _, wheel = wheels.build(folder / "dist")
    return wheels.install(wheel, folder / "fresh")


@pytest.mark.slow
def test_an_installed_wheel_trains_a_shipped_config_in_an_empty_folder(installed, tmp_path):
    command = str(installed / "dio-lightning")
    names = [line.split()[0] for line in wheels.run([command, "configs"], tmp_path).splitlines()]
    assert names == list(shipped_configs())
    assert [*json.loads(wheels.run([command, "models", "--json"], tmp_path))] == [*model_paths()]
    quick = "--trainer.fast_dev_run true --trainer.accelerator cpu --data.size [32,32] --model.layer.iterations [1,1,1]"
    # without a terminal, the bar is one's own wish
    quick += " --trainer.callbacks+ dio_lightning.callbacks.TrainingBar"
    # kernels compiled anew for this environment took most of the suite's slowest test; interpreted, they are the same
    shown = wheels.run([command, "fit", "--config", "dio/demo", *quick.split()], tmp_path, NUMBA_DISABLE_JIT="1")
    assert "loss: " in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_wheel_holds_the_configs_and_neither_weights_nor_results(installed):
    (package,) = installed.parent.glob("lib/python*/site-packages/dio_lightning")
    said = wheels.run([str(installed / "python"), "-c", "import dio_lightning as d; print(d.__file__)"], installed)
    assert Path(said.strip()) == package / "__init__.py", "not this tree"
    for name in ("LICENSE-niivue", "THIRD_PARTY-niivue.txt"):
        (copy,) = package.parent.glob(f"dio_lightning-*.dist-info/licenses/**/{name}")
        assert copy.read_bytes() == (package / "reports/vendor" / name).read_bytes()
    shipped = package / "experiments"
    files = [path for path in shipped.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".yaml"} and not list(shipped.glob("*/*/*"))
    assert {str(path.relative_to(shipped)) for path in files} == {
        str(path.relative_to(ROOT / "experiments")) for path in ROOT.glob("experiments/*/*.yaml")
    }
    assert (package / "reports/templates/page.html").is_file(), "what is no Python went by way of the source archive"
    site = package.parent
    assert (site / "data_modules/sources/synthetic.py").is_file()
    assert not (site / "experiments").exists() and not (site / "tests").exists()
