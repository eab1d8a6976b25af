"""What a mistyped word gets: the nearest name or the choices (D2), or what is missing (D1)."""

import sys
from pathlib import Path

import pytest

from dio_lightning.cli import main
from dio_lightning.errors import one_sentence
from dio_lightning.usage import choices, declaration, named_class, nearest, owner_of, parameters

ROOT = Path(__file__).parents[1]
TINY = ["--config", str(ROOT / "tests/conf/tiny.yaml")]
METHOD = ["--config", str(ROOT / "experiments/lab/deqreg.yaml")]
NO_DATA = "no data set chosen yet: add --config with a file that names one, or --data CLASS"
NO_MODEL = "no model chosen yet: add --config with a file that names one, or --model CLASS"


def sentence(capsys, *arguments):
    """The one line on stderr of a command line that is refused."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0].removeprefix("dio-lightning: error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", *TINY, "--data=Learn2Reg", "--data.roots", "x"], "did you mean 'root'?"),
        (["fit", *TINY, "--data.roots", "x"], "(in data_modules.SyntheticPairs), its options are size, num_labels"),
        (["fit", *TINY, "--model.layer.itertions", "[1, 1]"], "did you mean 'iterations'?"),
        (
            ["fit", *TINY, "--model.layer.transformation", "Demons"],
            "no class 'Demons' (expected one of Affine, BSpline, Diffeomorphism, FreeForm, Rigid, StationaryVelocity",
        ),
        (["fit", *TINY, "--model.optimizer", "Adamm"], "did you mean 'Adam'?"),
        (["fit", *TINY, "--model.layer.solver", "adam"], "did you mean 'Adam'?"),
        (["fit", *TINY, "--trainer.max_epoch", "3"], "did you mean '--trainer.max_epochs'?"),
        (["fit", *TINY, "--trainer.callbacks", "Pannels"], "did you mean 'Panels'?"),
        (["fit", *TINY, "--model.objective.label", "Dce"], "did you mean 'Dice'?"),
        (["fit", *TINY, "--model", "DIOO"], "did you mean 'DIO'?"),
        (
            ["fit", *TINY, "--data", "data_modules.learn2reg.Learn2Reg"],
            "no class 'data_modules.learn2reg.Learn2Reg', it is data_modules.Learn2Reg now",
        ),
        (["fit", *TINY, "--overwrit"], "did you mean '--overwrite'?"),
        (["fot"], "evaluate, submit, did you mean 'fit'?"),
        (["compare", "a", "b", "--out", "t.md", "--overwite"], "did you mean '--overwrite'?"),
        (["study", "convergance", "x"], "did you mean 'convergence'?"),
        (["study", "memory", "x", "--out", "o", "--stps", "3"], "did you mean '--steps'?"),
        (["check", "--data", "Learn2Reg", "--data.roots", "x"], "did you mean 'root'?"),
        (["check", "--data", "Learn2Rg"], "did you mean 'Learn2Reg'?"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_typo_gets_the_nearest_name_or_the_choices(capsys, arguments, words):
    assert words in sentence(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fit", "--data.root", "x"], NO_DATA),
        (["fit", *METHOD], NO_DATA),
        (["check", "--data.root", "x"], NO_DATA),
        (["test", "--model.layer.iterations", "[1,1]", "--data", "SyntheticPairs"], NO_MODEL),
        (["fit", "--data", "SyntheticPairs"], NO_MODEL),
        (
            ["fit"],
            "neither data set nor model chosen yet: add --config with a file that names both, or --data and --model",
        ),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else "",
)
def test_what_is_not_chosen_yet_is_said(capsys, arguments, expected):
    assert sentence(capsys, *arguments) == expected


def test_a_class_of_a_file_in_the_working_folder(capsys, tmp_path, monkeypatch):
    """The script, unlike `python -m`, has no working folder on its path; it comes last, so that it hides nothing."""
    (tmp_path / "mine_of_usage.py").write_text("from dio_lightning import VoxelMorph\n\nclass Mine(VoxelMorph): ...\n")
    (tmp_path / "torch.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [place for place in sys.path if place])
    words = "(in mine_of_usage: Mine), did you mean 'Mine'?"
    assert sentence(capsys, "fit", *TINY, "--model", "mine_of_usage.Mien").endswith(words)
    assert "No module named 'mine_of_usgae'" in sentence(capsys, "fit", *TINY, "--model", "mine_of_usgae.Mine")
    assert sys.path[-1] == str(tmp_path) and named_class("mine_of_usage.Mine").__name__ == "Mine"


def test_where_a_parameter_is_declared():
    class Base:
        def __init__(self, root: str, clip: int | None = None) -> None: ...

    class Same(Base):
        def __init__(self, root: str, **options) -> None: ...

    class Other(Base):
        def __init__(self, csv: str, root: str | None = None, **options) -> None: ...

    class Closed(Base):
        def __init__(self, csv: str) -> None: ...

    assert owner_of(Same, "clip") is Base and owner_of(Same, "root") is Same and owner_of(Closed, "clip") is None
    assert declaration(Same, "root") == declaration(Base, "root") != declaration(Other, "root")
    assert parameters(Other) == ["csv", "root", "clip"] and parameters(Closed) == ["csv"] and parameters(None) == []


def test_choices_are_concrete_classes_of_known_packages():
    solver = named_class("dio_lightning.implicit.Solver")
    assert sorted(cls.__name__ for cls in choices(solver | None)) == [
        "Adam",
        "Anderson",
        "Broyden",
        "GradientDescent",
        "Picard",
    ]
    assert named_class("nowhere.Solver") is None and named_class("dio_lightning.implicit.fixed_point") is None


def test_nothing_near_is_no_guess():
    assert nearest("zzz", ["root", "clip"]) == ""
    assert nearest("ROOT", ["root"]) == ", did you mean 'root'?"


def test_an_option_keeps_its_dashes_in_a_sentence():
    assert one_sentence("--metrics: no such score") == "--metrics: no such score"
