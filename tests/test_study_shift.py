"""The shift of domain: who is scored on what, and what it costs them."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from dio_lightning.domains import Domain, Plan, read_plan
from dio_lightning.fields import gaussian_smooth, jacobian_determinant, on_one_grid, warp
from dio_lightning.loaded import load
from dio_lightning.losses import LNCC
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.scores.rows import PairId
from dio_lightning.scores.store import Solved, Store
from dio_lightning.studies.shift import Shift
from dio_lightning.studies.shift_report import NOTHING, REFINED, Outcome, boxes, figure, markdown
from dio_lightning.studies.shift_solving import Candidate, candidates, refinement, solve
from dio_lightning.transformations import Diffeomorphism, FreeForm
from dio_lightning.updates import ImageDescent

ROOT = Path(__file__).parents[1]
SHAPE = (12, 10, 8)
PAIRS = [("01", "02"), ("02", "01")]
NETWORK = {
    "class_path": "dio_lightning.networks.VxmUNet",
    "init_args": {"in_channels": 2, "encoder": [2], "decoder": [2], "final": [2]},
}
LAYER = {"iterations": [3], "solver": {"class_path": "dio_lightning.implicit.Adam", "init_args": {"rate": 0.5}}}
MODELS = {
    "vxm": {"class_path": "dio_lightning.modules.VoxelMorph", "init_args": {"network": NETWORK}},
    "dio": {
        "class_path": "dio_lightning.modules.DIO",
        "init_args": {
            "features": {"class_path": "dio_lightning.features.Intensity", "init_args": {"levels": [1]}},
            "layer": {"class_path": "dio_lightning.layers.OptimizerLayer", "init_args": LAYER},
        },
    },
}


def write_volume(root: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for folder, volume in (("images", rng.integers(0, 200, SHAPE)), ("labels", rng.integers(0, 4, SHAPE))):
        (root / f"{folder}Tr").mkdir(parents=True, exist_ok=True)
        path = root / f"{folder}Tr/{name}.nii.gz"
        nib.save(nib.Nifti1Image(volume.astype(np.uint8), np.diag([2.0, 2, 2, 1])), path)  # pyright: ignore


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with two people in two contrasts, a file of domains, and weights: two seeds of a network, one config."""
    folder = tmp_path_factory.mktemp("shift")
    splits: dict[str, list[dict[str, str]]] = {}
    for k, contrast in enumerate(("plain", "odd")):
        for i in (1, 2):
            write_volume(folder / "mini", f"Mini_{i:02d}_{contrast}_0000", 10 * k + i)
        name = "./imagesTr/Mini_{}_" + contrast + "_0000.nii.gz"
        splits[contrast] = [{"fixed": name.format(f), "moving": name.format(m)} for f, m in PAIRS]
    content = {"domains": splits, "labels": {"0": {str(i): name for i, name in enumerate(("air", "a", "b", "c"))}}}
    content |= {"pairings": "unpaired", "training": [], "registration_val": splits["plain"]}
    (folder / "mini/Mini_dataset.json").write_text(json.dumps(content))

    def section(root: str, split: str) -> dict:
        settings = {"root": root, "test_split": f"domains/{split}", "batch_size": 2}
        return {"class_path": "data_modules.Learn2Reg", "init_args": settings}

    domains = {name: section("mini", name) for name in ("plain", "odd")} | {"far": section("nowhere/set", "plain")}
    (folder / "domains.yaml").write_text(
        yaml.safe_dump({"domains": domains, "subject": r"Mini_(\d+)"}, sort_keys=False)
    )
    for name, model in MODELS.items():
        data = {"class_path": "data_modules.SyntheticPairs", "init_args": {"size": [12, 12, 12]}}
        config = yaml.safe_dump({"model": model, "data": data, "trainer": {"accelerator": "cpu"}})
        (folder / f"{name}.yaml").write_text(config)
    for seed in (0, 1):
        torch.manual_seed(seed)
        (folder / f"vxm{seed}.yaml").write_text((folder / "vxm.yaml").read_text())
        state = load(str(folder / "vxm.yaml"), ready=False).module.state_dict()
        save_file(
            {key: 0.5 * torch.randn(value.shape) for key, value in state.items()}, folder / f"vxm{seed}.safetensors"
        )
    return folder


@pytest.fixture
def arguments(place) -> list[str]:
    weights = [f"VoxelMorph={place}/vxm{seed}.safetensors" for seed in (0, 1)] + [f"DIO={place}/dio.yaml"]
    return ["study", "shift", *weights, "--domains", f"{place}/domains.yaml", "--root", str(place), "--out", "out"]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def dice_by_hand(root: Path, fixed: str, moving: str) -> float:
    """Mean Dice of labels 1 to 3 of two images as they are."""
    a, b = (np.asarray(nib.load(root / f"labelsTr/{name}.nii.gz").dataobj) for name in (fixed, moving))  # type: ignore
    return float(np.mean([2 * np.sum((a == k) & (b == k)) / (np.sum(a == k) + np.sum(b == k)) for k in (1, 2, 3)]))


def test_every_method_is_scored_on_every_domain_that_is_there(command, place, arguments, tmp_path, capsys) -> None:
    command(*arguments, "--refine-steps", 2)
    rows = table(tmp_path / "out/shift.csv")
    names = [NOTHING, "VoxelMorph", "VoxelMorph" + REFINED, "DIO"]  # nothing is trained in the last one
    assert list(dict.fromkeys(row["method"] for row in rows)) == names
    assert len(rows) == 2 * 2 * (1 + 2 * 2 + 1)
    for row in (row for row in rows if row["method"] == NOTHING):
        expected = dice_by_hand(place / "mini", row["fixed_id"], row["moving_id"])
        assert float(row["dice"]) == pytest.approx(expected, abs=1e-6)
    structures = table(tmp_path / "out/shift_structures.csv")
    assert len(structures) == 3 * len(rows) and {row["name"] for row in structures} == {"a", "b", "c"}
    mine = [float(row["dice"]) for row in structures[:3]]
    assert fmean(mine) == pytest.approx(float(rows[0]["dice"]), abs=1e-6)
    text = (tmp_path / "out/shift.md").read_text()
    assert "Not there: far (nowhere/set)." in text and "VoxelMorph 2" in text and "†" not in text
    assert text in capsys.readouterr().out

    def values(method: str, domain: str) -> list[float]:
        own = [row for row in rows if (row["method"], row["domain"]) == (method, domain)]
        pairs = list(dict.fromkeys((row["fixed_id"], row["moving_id"]) for row in own))
        return [fmean(float(r["dice"]) for r in own if (r["fixed_id"], r["moving_id"]) == pair) for pair in pairs]

    means = {name: [values(name, domain) for domain in ("plain", "odd")] for name in names}
    for name, (plain, odd) in means.items():
        cells = " | ".join(f"{fmean(v):.3f} ± {pstdev(v):.3f}" for v in (plain, odd))
        assert f"| {name} | {cells} |" in text
        assert f"| {name} | {fmean(odd) - fmean(plain):+.3f} |" in text
    assert len({fmean(v) for pair in means.values() for v in pair}) == 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["shift.csv", "shift_structures.csv", "shift.md", "shift.png", "shift.svg", "shift.html"]
    )
    assert all((tmp_path / f"out/shift.{ending}").stat().st_size > 1000 for ending in ("png", "svg"))


def test_files_are_kept_resumed_or_replaced_as_asked(command, place, arguments, tmp_path, capsys) -> None:
    arguments = [*arguments[:2], *arguments[3:], "--refine-steps", 0, "--limit", 1]  # one seed less
    command(*arguments)
    before = table(tmp_path / "out/shift.csv")
    assert len(before) == 2 * 3 and not [row for row in before if REFINED in row["method"]]
    with pytest.raises(SystemExit):
        command(*arguments)
    assert "shift.csv exists" in capsys.readouterr().err
    marked = (tmp_path / "out/shift.csv").read_text().replace(f",{before[1]['dice']},", ",0.125,")
    (tmp_path / "out/shift.csv").write_text(marked)
    command(*arguments, "--resume")
    again = table(tmp_path / "out/shift.csv")
    assert again[1]["dice"] == "0.125"
    assert again[1] | {"dice": ""} == before[1] | {"dice": ""}  # the seconds too: it was not run again
    # another setting of the model: what no weights stand behind is kept, the others are measured again
    command(*arguments, "--resume", "--", "--model.resolution", 2)
    other = table(tmp_path / "out/shift.csv")
    assert other[1]["dice"] != "0.125" and other[1]["key"] != again[1]["key"]
    assert other[0] == again[0] and other[0]["method"] == NOTHING
    command(*arguments, "--overwrite")
    assert {k: v for k, v in table(tmp_path / "out/shift.csv")[1].items() if k != "seconds"} == {
        k: v for k, v in before[1].items() if k != "seconds"
    }


def solved(method: str, domain: str, pair: PairId, dice: float, weights: str = "w", resampled: bool = False) -> Solved:
    scores = {"dice": dice, "folds": 0.0, "sdlogj": 0.1, "seconds": 1.0}
    return Solved(method, weights, domain, pair, scores, {1: dice, 2: 1.0}, resampled, "")


def domain(name: str) -> Domain:
    return Domain(name, {"class_path": "X", "init_args": {"root": "x"}}, Path(), Path())


def study(rows: list[Solved]) -> Outcome:
    names = list(dict.fromkeys(row.domain for row in rows))
    plan = Plan([domain(name) for name in names], names[0], r"s(\d)")
    return Outcome(rows, plan, [], 50, 1)


def test_drops_are_those_of_the_same_people() -> None:
    rows = [solved("DIO", "ref", (f"s{i}_t1", f"s{i + 1}_t1"), 0.5 + 0.1 * i) for i in range(3)]
    # the third pair of the reference is not in "t2", and the order is another one
    rows += [solved("DIO", "t2", (f"s{i}_t2", f"s{i + 1}_t2"), 0.4) for i in (1, 0)]
    rows += [solved("DIO", "else", ("s8", "s9"), 0.3)]
    rows += [
        solved("VoxelMorph", row.domain, row.pair, row.scores["dice"] - 0.2) for row in rows if row.domain == "ref"
    ]
    rows += [solved("VoxelMorph", name, pair, 0.2) for name, pair in (("t2", ("s0", "s1")), ("else", ("s8", "s9")))]
    found = study(rows)
    assert found.drop("DIO", "t2").value == pytest.approx(0.4 - 0.55) and found.drop("DIO", "t2").pairs == 2
    assert found.drop("DIO", "else").value == pytest.approx(0.3 - 0.6) and found.drop("DIO", "else").pairs == 0
    text = markdown(found)
    assert "| DIO | -0.150 | -0.300‡ |" in text
    assert "| VoxelMorph | -0.100 | -0.200‡ |" in text  # 0.2 - 0.3 for the one pair, 0.2 - 0.4 for other people
    assert "‡ Other people" in text and "### SD log J (L2R)" in text


def test_slices_count_as_their_subjects_and_seeds_are_pooled() -> None:
    pairs = [(f"s1_s00{i}", f"s2_s00{i}") for i in range(2)]
    rows = [solved("A", "ref", pair, d + s, f"w{s}") for s in (0.0, 0.2) for pair, d in zip(pairs, (0.2, 0.4))]
    rows += [solved("A", "ref", ("s3", "s4"), 0.8, f"w{s}") for s in (0.0, 0.2)]
    text = markdown(study(rows))
    assert "| A | 0.600 ± 0.200 |" in text  # 0.4 for the first two people, 0.8 for the others
    assert "2 (3 slices, averaged first) in ref" in text and "(A 2)" in text


def test_a_resampled_moving_image_is_marked() -> None:
    text = markdown(study([solved("A", "ref", ("s1", "s2"), 0.5), solved("A", "b", ("s1", "s2"), 0.4, resampled=True)]))
    assert "| A | 0.500 | 0.400† |" in text and "† Moving image resampled" in text


def on_two_grids(thickness: float = 4.0) -> dict:
    """A pair whose moving image has half the slices, twice as thick unless said otherwise."""
    fixed, moving = gaussian_smooth(torch.rand(1, 1, *SHAPE), 1.0), gaussian_smooth(torch.rand(1, 1, 6, 10, 8), 1.0)
    thick = torch.diag(torch.tensor([thickness, 2, 2, 1], dtype=torch.float64))[None]
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))[None]
    labels = {"fixed_label": (fixed > 0.5).short(), "moving_label": (moving > 0.5).short()}
    return {"fixed": fixed, "moving": moving, "affine": affine, "moving_affine": thick, **labels}


@pytest.mark.parametrize("thickness", [2.0, 4.0])
def test_dio_takes_a_moving_image_with_equal_voxels_as_it_is_and_others_do_not(place, thickness) -> None:
    loaded = [load(f"{place}/{name}.yaml", ready=False) for name in ("dio", "vxm")]
    plan, pair = Plan([domain("d")], "d", None, ScoreOptions(surface=False)), on_two_grids(thickness)
    rows = candidates(loaded, (), refinement(1, 1))
    found = solve(rows, plan.domains[0], plan, [("a", "b")], pair, Store(Path("none"), "none"))  # type: ignore[arg-type]
    marks = {row.method: row.resampled for row in found}
    dio, vxm = (one.name for one in loaded)
    assert marks == {NOTHING: False, dio: thickness == 4, vxm: True, vxm + REFINED: True}


def test_a_method_is_solved_once_for_its_two_rows() -> None:
    calls: list[int] = []

    def register(pair) -> torch.Tensor:
        calls.append(1)
        return torch.zeros(1, 3, *SHAPE)

    plan, pair = Plan([domain("d")], "d", None, ScoreOptions(surface=False)), on_two_grids()
    rows = [
        Candidate(name, "w", "", register, lambda pair: True, refine)
        for name, refine in (("A", None), ("A" + REFINED, refinement(1, 1)))
    ]
    plain, refined = solve(rows, plan.domains[0], plan, [("a", "b")], pair, Store(Path("none"), "none"))  # type: ignore[arg-type]
    assert len(calls) == 1 and refined.scores["seconds"] > plain.scores["seconds"]
    assert plain.key != refined.key


def test_boxes_are_over_pairs_where_there_are_enough() -> None:
    few = study([solved("A", "ref", ("s1", "s2"), 0.5), solved("A", "ref", ("s2", "s1"), 0.7)])
    assert boxes(few, "A", "ref") == pytest.approx([0.6, 1.0])
    many = study([solved("A", name, (f"s{i}", "s9"), 0.1 * i) for i in range(8) for name in ("ref", "x")])
    assert boxes(many, "A", "ref") == pytest.approx([0.1 * i for i in range(8)])
    for found, over in ((few, "structures"), (many, "pairs")):
        assert over in figure(found).axes[0].get_ylabel()
    mixed = study([*many.rows, *(solved("A", "y", row.pair, 0.5) for row in few.rows)])
    assert "structures" in figure(mixed).axes[0].get_ylabel()  # one kind of box in one figure


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("transformation", [FreeForm(), Diffeomorphism()], ids=["free", "composed"])
def test_instance_optimisation_raises_similarity_from_a_poor_start(factor, transformation) -> None:
    moving = gaussian_smooth(torch.randn(1, 1, 32, 28), 2.0, truncate=3.0)
    poor = 1.5 * gaussian_smooth(torch.randn(1, 2, 32, 28), 3.0) / 0.1
    pair = {"fixed": 2 - moving, "moving": moving}
    refine = refinement(60, factor)
    assert refine is not None and refinement(0, factor) is None
    refine.layer.update, refine.layer.transformation = ImageDescent(LNCC(5), regularity=0.01), transformation
    better, _ = refine(pair, poor)  # type: ignore[arg-type]
    losses = [float(LNCC(5)(warp(moving, u), pair["fixed"])) for u in (poor, better)]
    assert losses[1] < 0.8 * losses[0]


def test_instance_optimisation_smooths_away_folds_and_takes_two_grids() -> None:
    common = on_one_grid(on_two_grids())  # type: ignore[arg-type]
    still = torch.zeros(1, 3, *SHAPE)
    refine = refinement(10, 1)
    assert refine is not None
    u, _ = refine(common, still)
    losses = [float(LNCC(5)(warp(common["moving"], v), common["fixed"])) for v in (still, u)]
    assert losses[1] < losses[0] and float(jacobian_determinant(u).min()) > 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"refine_steps": -1}, "refine_steps is -1"), ({"refine_resolution": 0}, "refine_resolution 0")],
)
def test_settings_of_instance_optimisation_that_cannot_be_are_refused(settings, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        Shift(weights=[], out=Path(), domains=Path(), **settings)


PART = {"class_path": "data_modules.Learn2Reg", "init_args": {"root": "mini"}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[", "is not YAML"),
        ({"t1": PART}, "expected a mapping `domains`"),
        ({"domains": {"a": PART}, "reference": "b"}, "the reference 'b' is none of the domains"),
        ({"domains": {"a": {"init_args": {}}}}, "domain 'a' is not a class_path with init_args"),
        ({"domains": {"a": {"class_path": "X", "init_args": {}}}}, "domain 'a' has no root"),
        ({"domains": {"a": PART}, "scores": {"colour": 1}}, "scores is {'colour': 1}"),
        ({"domains": {"a": PART}, "subject": "("}, "expected a regular expression"),
        ({"domains": {"a": PART | {"init_args": {"root": "far"}}}}, "expected the reference domain 'a'"),
        ({"domains": {"a": PART | {"init_args": {"root": "mini", "hue": 1}}}}, "domain 'a':"),
    ],
)
def test_a_file_of_domains_that_is_wrong_is_one_sentence(
    command, place, arguments, tmp_path, capsys, content, sentence
) -> None:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (tmp_path / "own.yaml").write_text(text)
    given = ["own.yaml" if before == "--domains" else word for before, word in pairwise(["", *arguments])]
    with pytest.raises(SystemExit):
        command(*given)
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--limit", "0"], "limit is 0"),
        (["--root", "away"], "away is no folder"),
        (["VoxelMorph={place}/dio.yaml"], "are no seeds of one method"),
        (["no registration={place}/dio.yaml"], "choose another"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(
    command, place, arguments, tmp_path, capsys, extra, sentence
) -> None:
    extra = [word.format(place=place) for word in extra]
    weights = [word for word in extra if "=" in word]
    rest = [word for word in extra if "=" not in word]
    with pytest.raises(SystemExit):
        command(*arguments[:3], *weights, *arguments[5:], *rest)
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["contrast", "slices"])
def test_the_domains_of_the_repository_can_be_read(name) -> None:
    plan = read_plan(ROOT / f"experiments/shift/{name}.yaml", ROOT)
    assert plan.reference == "t1" and len({one.name for one in plan.domains}) == len(plan.domains)
    assert plan.people(("SynthSegBrain_0013_t2_0000_s040", "SynthSegBrain_0014_t1_0000_s040")) == ("0013", "0014")


@pytest.mark.real
@pytest.mark.parametrize("name", ["contrast", "slices"])
def test_all_domains_of_the_repository_are_of_the_same_two_people(data_root, name) -> None:
    plan = read_plan(ROOT / f"experiments/shift/{name}.yaml", data_root)
    found = {}
    for one in (one for one in plan.domains if one.exists()):
        data = one.build()
        data.setup("test")
        batches = [*data.test_dataloader()]
        ids = [pair for batch in batches for pair in zip(batch["fixed_id"], batch["moving_id"], strict=True)]
        found[one.name] = {plan.people(pair) for pair in ids}
        assert ("moving_affine" in batches[0]) == (one.name == "aniso to t1")
    assert len(found) >= 6 and all(people == {("0013", "0014"), ("0014", "0013")} for people in found.values())
