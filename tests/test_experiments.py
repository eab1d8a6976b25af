"""Every experiment of the repository builds, and every part of the layer can be changed on the command line."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from dio_lightning.cli import main
from dio_lightning.features import MIND, Intensity
from dio_lightning.implicit import (
    Adam,
    GradientDescent,
    ImplicitAdjoint,
    Never,
    PhantomAdjoint,
    Picard,
    Residual,
    UnrolledAdjoint,
)
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import LNCC, Bending, FeatureDistance, LabelPrompt
from dio_lightning.modules import DIO
from dio_lightning.transformations import BSpline, FreeForm, StationaryVelocity
from dio_lightning.updates import Descent, GaussNewton, ImageDescent, LearnedStep

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/conf/tiny.yaml"
CLASSICAL = [file for file in ROOT.glob("experiments/classical/*.yaml") if "elastix" not in file.stem]
EXPERIMENTS = sorted([*ROOT.glob("experiments/dio/*.yaml"), *CLASSICAL])
NO_METHODS = ("data", "contrast", "slices")
LABS = ("lab", "updates", "brains", "brains_updates", "shift")
METHODS = sorted(f for lab in LABS for f in ROOT.glob(f"experiments/{lab}/*.yaml") if f.stem not in NO_METHODS)
# dotted path below `model`: short, and as a config file nests it
FORMS = {"short": "layer.{}", "long": "init_args.layer.init_args.{}"}


@pytest.fixture
def built(monkeypatch, tmp_path):
    """The command that a command line has built but not run, as its CLI object."""

    class Built(Exception):
        pass

    def stop(cli, subcommand):
        raise Built(cli)

    def build(*arguments):
        # the folder of a data set is not looked up before the command runs
        monkeypatch.setattr(LightningCLI, "_run_subcommand", stop)
        with pytest.raises(Built) as found:
            main([*map(str, arguments), "--trainer.default_root_dir", str(tmp_path)])
        return found.value.args[0]

    return build


def nested(config: Path, *keys: str):
    value = yaml.safe_load(config.read_text())["model"]["init_args"]
    for key in keys:
        value = value[key]
    return value


def test_there_are_experiments():
    assert len(EXPERIMENTS) >= 6


def parameters_anywhere(value: object, seen: dict[int, object]) -> list[torch.nn.Parameter]:
    """Every parameter that can be reached from an object through attributes, lists and dictionaries."""
    if id(value) in seen or isinstance(value, str | bytes | type):
        return []
    seen[id(value)] = value
    if isinstance(value, torch.nn.Parameter):
        return [value]
    inner: list[object] = []
    if isinstance(value, dict):
        inner = [*value.values()]
    elif isinstance(value, list | tuple | set):
        inner = [*value]
    elif type(value).__module__.split(".")[0] in ("dio_lightning", "torch") and hasattr(value, "__dict__"):
        inner = [*vars(value).values()]
    return [parameter for part in inner for parameter in parameters_anywhere(part, seen)]


def assert_saved(model: torch.nn.Module) -> None:
    """Section C of the cases: what can be trained is counted, saved and restored."""
    found = parameters_anywhere(model, {})
    assert {id(p) for p in found} == {id(p) for p in model.parameters()} and len(found) <= len(model.state_dict())


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_an_experiment_builds(file, built):
    cli = built("fit" if file.parent.name == "dio" else "test", "--config", file, "--trainer.accelerator", "cpu")
    assert isinstance(cli.model, DIO)
    layer = nested(file, "layer", "init_args")
    assert list(cli.model.layer.iterations) == layer["iterations"]
    for part in ("update", "solver", "transformation", "adjoint", "stop"):
        if part in layer:
            found, given = getattr(cli.model.layer, part), layer[part]
            assert type(found).__name__ == given["class_path"].rsplit(".", 1)[1]
            settings = given.get("init_args", {})
            terms = [term["class_path"].rsplit(".", 1)[1] for term in settings.get("terms", ())]
            assert [type(term).__name__ for term in getattr(found, "terms", ())] == terms
            plain = {k: v for k, v in settings.items() if not isinstance(v, dict) and k != "terms"}
            assert all(getattr(found, key) == value for key, value in plain.items())
    assert (cli.model.objective is None and cli.model.anatomy is None) == (file.parent.name == "classical")
    assert len(list(cli.model.parameters())) == 0 or file.parent.name == "dio"
    assert_saved(cli.model)
    if cli.subcommand == "fit":
        assert cli.model.configure_optimizers()


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_a_method_builds_beside_the_data_that_all_share_and_takes_its_grid(file, built):
    cli = built("fit", "--config", file.parent / "data.yaml", "--config", file, "--trainer.accelerator", "cpu")
    assert type(cli.model).__name__ == yaml.safe_load(file.read_text())["model"]["class_path"].rsplit(".", 1)[1]
    assert cli.model.configure_optimizers()
    assert_saved(cli.model)
    weights, d = cli.model.objective.weights, 2 if file.parent.name in ("lab", "updates") else 3
    assert (weights["image"], weights["regularity"], cli.model.objective.image.window) == (1.0, 0.25, 5)
    batches = {"lab": 4, "updates": 4, "brains_updates": 2}
    assert cli.datamodule.steps_per_epoch > 0 and cli.datamodule.batch_size == batches.get(file.parent.name, 1)
    size = (12, 16, 10)[:d]
    with torch.no_grad():
        assert cli.model(torch.rand(1, 1, *size), torch.rand(1, 1, *size))[-1].value.shape == (1, d, *size)


OTHER_CLASSES = [
    ("update", ["=dio_lightning.updates.GaussNewton"], GaussNewton(sigma=2.0)),
    ("solver", ["=dio_lightning.implicit.Picard"], Picard()),
    ("transformation", ["=dio_lightning.transformations.FreeForm"], FreeForm()),
    ("adjoint", ["=dio_lightning.implicit.ImplicitAdjoint"], ImplicitAdjoint()),
    ("stop", ["=dio_lightning.implicit.Never"], Never()),
]
OTHER_SETTINGS = [
    ("update", ["=GaussNewton", ".damping=0.02"], GaussNewton(sigma=2.0, damping=0.02)),
    ("solver", ["=GradientDescent", ".rate=0.5"], GradientDescent(0.5)),
    ("transformation", ["=StationaryVelocity", ".squarings=5"], StationaryVelocity(5)),
    ("adjoint", [".steps=3"], PhantomAdjoint(3)),
    ("stop", ["=Residual", ".rtol=0.01"], Residual(0.01)),
]
SAME_CLASSES = [("update", [".sigma=1.5"], Descent(sigma=1.5)), ("solver", [".rate=0.1"], Adam(0.1))]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts", [OTHER_CLASSES, OTHER_SETTINGS, SAME_CLASSES], ids=["class", "settings", "same"])
def test_each_part_of_the_layer_can_be_changed_on_the_command_line(built, tmp_path, form, parts):
    """Another class drops the old one's arguments, except those that it has too."""
    given = {
        "update": {"class_path": "dio_lightning.updates.Descent", "init_args": {"sigma": 2.0}},
        "transformation": {
            "class_path": "dio_lightning.transformations.Diffeomorphism",
            "init_args": {"max_step": 0.4},
        },
        "stop": {"class_path": "dio_lightning.implicit.Stagnation", "init_args": {"eps": 0.01}},
    }
    (tmp_path / "given.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"layer": {"init_args": given}}}}))
    words = []
    for part, options, _ in parts:
        flag = f"--model.{FORMS[form].format(part)}"
        words += [flag + ("" if option[0] == "=" or form == "short" else ".init_args") + option for option in options]
    layer = built("test", "--config", TINY, "--config", tmp_path / "given.yaml", *words).model.layer
    found = {part: getattr(layer, part) for part, _, _ in parts}
    assert found == {part: expected for part, _, expected in parts}


def test_a_config_file_names_another_update(built, tmp_path):
    update = {"class_path": "dio_lightning.updates.GaussNewton", "init_args": {"damping": 0.05}}
    override = {"model": {"init_args": {"layer": {"init_args": {"update": update}}}}}
    (tmp_path / "override.yaml").write_text(yaml.safe_dump(override))
    layer = built("test", "--config", TINY, "--config", tmp_path / "override.yaml").model.layer
    assert layer.update == GaussNewton(damping=0.05)


@pytest.mark.parametrize("kind", [Intensity, MIND])
def test_a_learned_experiment_becomes_a_classical_one(built, kind):
    cli = built("test", "--config", TINY, f"--model.features={kind.__name__}", "--model.features.levels=[2, 1]")
    assert type(cli.model.features) is kind
    assert cli.model.features.levels == (2, 1)


def test_terms_are_added_on_the_command_line(built):
    """One by one, each followed by its settings; the distance of features stays unless another is named."""
    flag = "--model.layer.update"
    words = [f"{flag}.terms+=LabelPrompt", f"{flag}.terms.labels=[17,3]", f"{flag}.terms+=Bending"]
    update = built("test", "--config", TINY, *words, f"{flag}.terms.weight=0.5").model.layer.update
    assert [type(term) for term in update.energy] == [FeatureDistance, LabelPrompt, Bending]
    assert (update.terms[0].labels, update.terms[1].weight) == ((17, 3), 0.5)
    update = built("test", "--config", TINY, f"{flag}.distance=LNCC", f"{flag}.distance.window=5").model.layer.update
    assert [(type(term), term.window) for term in update.energy] == [(LNCC, 5)]
    flag = "--model.layer.transformation"
    assert built("test", "--config", TINY, flag, "BSpline", f"{flag}.spacing=3").model.layer.transformation == BSpline(
        3
    )


def test_an_update_of_no_such_name_is_refused(built, capsys):
    with pytest.raises(SystemExit):
        built("test", "--config", TINY, "--model.layer.update=Newton")
    assert "'Newton'" in capsys.readouterr().err


def test_a_learned_step_in_a_layer_is_trained_counted_and_saved():
    network = torch.nn.Conv2d(4, 2, 3, padding=1)
    layer = OptimizerLayer((2,), LearnedStep(network), Picard(), adjoint=UnrolledAdjoint(), stop=Never())
    module = DIO(Intensity(levels=(1,)), layer)
    assert {f"layer.update.network.{name}" for name in ("weight", "bias")} <= module.state_dict().keys()
    (solution,) = module(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8))
    solution.value.square().sum().backward()
    assert all(p.grad is not None for p in module.layer.parameters()) and len(list(module.layer.parameters())) == 2
    similarity = torch.nn.Bilinear(1, 1, 1)
    held = OptimizerLayer((1,), ImageDescent(similarity))
    assert {id(p) for p in held.parameters()} == {id(p) for p in similarity.parameters()}
