"""Studies: what they write is what the modules do at that many steps."""

import csv
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
import yaml
from safetensors.torch import save_file

from dio_lightning.fields import resize
from dio_lightning.layers import Run
from dio_lightning.loaded import Loaded, load
from dio_lightning.scores.pairs import one_pair, score_pair
from dio_lightning.scores.records import NO_PAIR, Record, Records
from dio_lightning.studies.convergence import Convergence
from dio_lightning.studies.study import scored_steps

TINY = Path(__file__).parent / "conf/tiny.yaml"
MIN_VOXELS = 20


def network(channels: int) -> dict:
    widths = {"encoder": [4, 4], "decoder": [4, 4], "final": [4]}
    return {
        "class_path": "dio_lightning.networks.VxmUNet",
        "init_args": {"in_channels": channels, "spatial_dims": 2, **widths},
    }


def method(name: str) -> dict:
    if name == "vxm":
        return {"class_path": "dio_lightning.modules.VoxelMorph", "init_args": {"network": network(2)}}
    update = {"class_path": "dio_lightning.updates.LearnedStep", "init_args": {"network": network(4)}}
    settings = {"update": update, "max_steps": 2, "states": 1, "resolution": 1.3}
    return {"class_path": "dio_lightning.modules.DEQReg", "init_args": settings}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder of weights that move things, from their seeds, and their configs."""
    folder = tmp_path_factory.mktemp("weights")
    scores = {"class_path": "dio_lightning.callbacks.RegistrationScores", "init_args": {"min_voxels": MIN_VOXELS}}
    sizes = {"size": [24, 20], "num_labels": 3, "test_pairs": 3, "batch_size": 2}
    for name in ("deq", "vxm"):
        config = {
            "model": method(name),
            "data": {"class_path": "data_modules.SyntheticPairs", "init_args": sizes},
            "trainer": {"accelerator": "cpu", "callbacks": [scores]},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        module = load(str(folder / f"{name}.yaml")).module
        for seed in (0, 1) if name == "deq" else (0,):
            torch.manual_seed(seed)
            state = {key: (0.5 * torch.randn(value.shape)) for key, value in module.state_dict().items()}
            save_file(state, folder / f"{name}{seed}.safetensors")
            (folder / f"{name}{seed}.yaml").write_text((folder / f"{name}.yaml").read_text())
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_hand(loaded: Loaded, step: int) -> tuple[dict[str, list[float]], list[torch.Tensor]]:
    """Scores of every pair when the module is run with this many steps, and its displacements."""
    module, scores, fields = loaded.module, {"dice": [], "folds": [], "sdlogj": []}, []
    for _, batch in loaded.batches():
        with torch.no_grad():
            u = module.align(module.work(batch), batch, Run(steps=step))[-1].value
        for i in range(len(u)):
            fields.append(u[i])
            full = resize(u[i : i + 1], batch["fixed"].shape[2:])
            row, _ = score_pair(full, one_pair(batch, i), loaded.scores)
            for name, values in scores.items():
                values.append(row[name])
    return scores, fields


@pytest.mark.parametrize("name", ["deq0.safetensors", "dio"])
def test_a_row_is_the_module_at_that_many_steps(command, weights, tmp_path, name):
    """DEQReg at a coarser resolution in batches; DIO in levels, of which the finest alone is varied."""
    file = str(TINY if name == "dio" else weights / name)
    command("study", "convergence", f"mine={file}", "--out", tmp_path / "out", "--steps", 4, "--at", 1, 3, 4)
    rows = table(tmp_path / "out/convergence.csv")
    steps = [1, 3, 4] if name == "dio" else [1, 2, 3, 4]  # always the trained ones
    assert [int(row["step"]) for row in rows] == steps
    assert {(row["method"], row["trained_steps"], row["n"]) for row in rows} == {
        ("mine", str((3, 2)[len(steps) - 3]), "3")
    }
    loaded = load(file)
    before = by_hand(loaded, 2)[1]
    for row in rows:
        scores, fields = by_hand(loaded, int(row["step"]))
        for score, values in scores.items():
            assert float(row[score]) == pytest.approx(fmean(values), abs=1e-6)
            assert float(row[f"{score}_std"]) == pytest.approx(pstdev(values), abs=1e-6)
        if int(row["step"]) == 3:
            changes = [((u - v).norm() / u.norm()).item() for u, v in zip(fields, before, strict=True)]
            assert float(row["residual"]) == pytest.approx(fmean(changes), abs=1e-5)
    assert rows[0]["residual"] == ""
    assert len({row["dice"] for row in rows}) > 1


def test_scores_are_those_of_the_trained_config_and_overrides_reach_model_and_data(weights):
    loaded = load(str(weights / "deq1.safetensors"), ["--model.max_steps", "7", "--data.test_pairs", "5"])
    assert (loaded.name, loaded.module.steps, loaded.scores.min_voxels) == ("DEQReg-7", 7, MIN_VOXELS)
    assert not loaded.module.training
    assert [len(ids) for ids, _ in loaded.batches()] == [2, 2, 1]
    assert [ids for ids, _ in loaded.batches(3)][1] == [("test_0002_0000", "test_0002_0001")]


def test_seeds_share_a_row_and_one_step_methods_have_one(command, weights, tmp_path, capsys):
    files = [weights / f"{name}.safetensors" for name in ("deq0", "deq1", "vxm0")]
    arguments = ["study", "convergence", *files, "--out", "out", "--steps", 3, "--limit", 1]
    command(*arguments, "--", "--data.batch_size", 1)
    lines = (tmp_path / "out/convergence.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| DEQReg-2", "| VoxelMorph"]
    assert lines[3].endswith("| – | – | – |")
    assert "seeds: DEQReg-2 2" in lines[-1] and "over 1 pair;" in lines[-1]
    assert lines[0] in capsys.readouterr().out
    rows = table(tmp_path / "out/convergence.csv")
    assert [(row["method"], row["step"]) for row in rows] == [("DEQReg-2", k) for k in "123"] * 2 + [
        ("VoxelMorph", "1")
    ]
    for ending in ("png", "svg"):
        assert (tmp_path / f"out/convergence.{ending}").stat().st_size > 1000
    assert len(list((tmp_path / "out").iterdir())) == 5
    (tmp_path / "out/convergence.md").write_text("mine")
    with pytest.raises(SystemExit):
        command(*arguments)
    assert "convergence.csv exists" in capsys.readouterr().err
    assert (tmp_path / "out/convergence.md").read_text() == "mine"
    command(*arguments[:2], files[2], *arguments[5:], "--overwrite")
    assert (tmp_path / "out/convergence.md").read_text() != "mine"


def test_the_table_reports_trained_best_and_last_steps_over_seeds(tmp_path):
    def curve(weights: str, dice: dict[int, list[float]]) -> list[Record]:
        records = [Record("A|B", weights, 0, NO_PAIR, "trained", 1)]
        for step, values in dice.items():
            ids = [(f"a_s00{i}", f"b_s00{i}") for i in range(2)] + [("c", "d")]
            for pair, value in zip(ids, values, strict=True):
                for name in ("dice", "folds", "sdlogj", "residual"):
                    records.append(Record("A|B", weights, step, pair, name, value / 2 if name == "folds" else value))
        return records

    # slices of one pair are averaged first: .3 and .5 are one number
    one = curve("one", {1: [0.3, 0.5, 0.6], 2: [0.6, 0.8, 0.9], 4: [0.2, 0.2, 0.2]})
    two = curve("two", {1: [0.3, 0.5, 0.8], 2: [0.6, 0.8, 0.7], 4: [0.4, 0.4, 0.4]})
    study, records = Convergence(weights=[], out=tmp_path, steps=4), Records([*one, *two])
    text = study.markdown(records)
    trained, best, last = "1 | 0.550 ± 0.150 | 0.275 ± 0.075", "2 | 0.750 ± 0.050 | 0.375 ± 0.025", "4 | 0.300 ± 0.000"
    assert f"| A\\|B | {trained} | {best} | {last} | 0.150 ± 0.000 |" in text
    assert "over 2 pairs of subjects (3 slices)" in text
    csv_rows = list(csv.DictReader(study.tables(records)[0].splitlines()))
    assert [row["dice"] for row in csv_rows[:2]] == ["0.5", "0.8"]
    dice, folds = study.figure(records).axes
    assert list(dice.lines[0].get_ydata()) == pytest.approx([0.55, 0.75, 0.3])
    assert (list(dice.lines[1].get_xdata()), list(dice.lines[1].get_ydata())) == ([1], [pytest.approx(0.55)])
    assert dice.collections[0].get_paths()[0].get_extents().y0 == pytest.approx(0.2)
    assert folds.get_ylabel() == "folds (%)"


def test_steps_are_scored_more_sparsely_in_3d():
    assert scored_steps(None, 2, 20) == list(range(1, 21))
    assert scored_steps(None, 3, 30, [13]) == [*range(1, 13), 13, 14, 16, 20, 24, 30]
    assert scored_steps([2, 5], 3, 4) == [2, 4]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.safetensors"], "nothing.safetensors does not exist: expected weights"),
        (["{deq}", "{deq}"], "deq0.safetensors is given twice"),
        (["a={deq}", "a={vxm}"], "differ in method or steps (1 and 2)"),
        (["{deq}", "--steps", "3", "--at", "4"], "at is [4], expected steps from 1 to 3"),
        (["{deq}", "--limit", "0"], "limit is 0, expected at least 1"),
        (["{deq}", "--", "--data.colour", "red"], "colour"),
        (["{deq}", "--", "--trainer.precision", "bf16-mixed"], "bf16-mixed, studies run with 32-true alone"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(command, weights, tmp_path, capsys, arguments, sentence):
    files = {name: weights / f"{name}0.safetensors" for name in ("deq", "vxm")}
    with pytest.raises(SystemExit):
        command("study", "convergence", "--out", "out", *(a.format(**files) for a in arguments))
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_of_no_such_name_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        command("study", "divergence")
    assert "expected one of convergence, solvers" in capsys.readouterr().err
    command("study", "--help")
    assert "solvers" in capsys.readouterr().out


def test_a_checkpoint_and_its_export_are_loaded_alike(command, tmp_path):
    command("fit", "--config", TINY, "--trainer.max_epochs", 1, "--trainer.default_root_dir", "run")
    command("export", "--ckpt_path", "run/checkpoints/last.ckpt", "out.safetensors")
    trained = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name in ("run/checkpoints/last.ckpt", "out.yaml"):  # the config stands for the weights beside it
        found = load(str(tmp_path / name)).module.state_dict()
        assert all(torch.equal(value, trained[key]) for key, value in found.items())
