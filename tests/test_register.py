"""Two scans in, a transform out: known transforms come back, whatever images look like and however they are stored."""

import json
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from dummies import ROOT
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates

import dio_lightning
from dio_lightning.implicit import Adam, Stagnation
from dio_lightning.losses import LNCC, LabelPrompt
from dio_lightning.registration import Registration, Scan, register
from dio_lightning.registration.deformable import local_correlation
from dio_lightning.registration.similarity import normalised_information
from dio_lightning.registration.starts import _rotation
from dio_lightning.transformations import FreeForm, Rigid
from dio_lightning.transforms import Affine, Chain
from dio_lightning.updates import ImageDescent

SPACING = 4.0


def scene(size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A head of sorts: an egg with structures inside, none of its mirror images like itself, between 0 and 200."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1.25, 1.25, n) for n in size], indexing="ij")
    radius = sum((x * (1 + 0.25 * k)) ** 2 for k, x in enumerate(axes)) + 0.25 * axes[0] * axes[1]
    inside = 1 / (1 + np.exp(30 * (radius - 0.9)))
    texture = gaussian_filter(generator.normal(size=size), 1.6)
    return 200 * inside * (0.6 + 0.12 * texture / texture.std()).clip(0.1, 1)


def affine_of(size: tuple[int, ...], spacing: float = SPACING) -> np.ndarray:
    affine = np.diag([*[spacing] * len(size), *[1.0] * (4 - len(size))])
    affine[: len(size), 3] = -spacing * (np.array(size) - 1) / 2
    return affine


def turned(size: tuple[int, ...], degrees: float, shift: float, scale: float = 1.0) -> np.ndarray:
    """A world transform (4, 4): about an oblique axis in 3-D, in the plane in 2-D."""
    angle = np.radians(degrees)
    rotation = _rotation(angle, -0.6 * angle, 0.8 * angle) if len(size) == 3 else _rotation(0, 0, angle)
    matrix = np.eye(4)
    matrix[: len(size), : len(size)] = scale * rotation[: len(size), : len(size)]
    matrix[: len(size), 3] = shift * np.array([1, -0.7, 0.5])[: len(size)]
    return matrix


def moved(image: np.ndarray, affine: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The image on its own grid with moving(T x) = fixed(x): SciPy's cubic splines."""
    d = image.ndim
    voxels = np.linalg.inv(affine) @ np.linalg.inv(truth) @ affine
    return affine_transform(image, voxels[:d, :d], voxels[:d, 3], order=3, mode="constant").clip(0)


def error(result: Registration, truth: np.ndarray) -> float:
    """Mean distance in mm over the foreground of the fixed image."""
    inside = (result.fixed.values[0, 0] > 20).numpy()
    points = result.fixed.grid.points().numpy()[:, inside].T
    expected = points @ truth[:3, :3].T + truth[:3, 3]
    d = len(result.fixed.grid.size)
    return float(np.linalg.norm((result.transform.points(points) - expected)[:, :d], axis=1).mean())


SIZES = [(44, 40), (34, 32, 30)]


@pytest.mark.parametrize("contrast", ["same", "inverted", "cropped"])
@pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
def test_a_rigid_transform_comes_back_from_far(size, contrast) -> None:
    fixed, affine, truth = scene(size), affine_of(size), turned(size, 25, 18)
    moving = moved(fixed, affine, truth)
    if contrast == "inverted":
        moving = np.where(moving > 5, 230 - moving, 0)
    if contrast == "cropped":
        moving = moving[: -len(moving) // 6]
    result = register(fixed, moving, fixed_affine=affine, moving_affine=affine, stages=("rigid",))
    assert error(result, truth) < 0.25 * SPACING
    rotation = result.transform.links[0].matrix[:3, :3]  # type: ignore[union-attr]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert result.quality.verdict == "good", result.quality


@pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
def test_an_affine_transform_comes_back(size) -> None:
    fixed, affine, truth = scene(size), affine_of(size), turned(size, 12, 10, 1.12)
    result = register(
        fixed, moved(fixed, affine, truth), fixed_affine=affine, moving_affine=affine, stages=("rigid", "affine")
    )
    assert error(result, truth) < 0.25 * SPACING


def stored_as(image: nib.Nifti1Image, axes: tuple[int, ...], flips: tuple[bool, ...]) -> nib.Nifti1Image:
    """The same image in the same world, its array axes in another order and direction."""
    orientation = np.array([[axis, -1 if flip else 1] for axis, flip in zip(axes, flips, strict=True)])
    return image.as_reoriented(orientation)


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_the_transform_does_not_depend_on_how_an_image_is_stored(which) -> None:
    size = (30, 28, 26)
    fixed, affine, truth = scene(size), affine_of(size), turned(size, 10, 6)
    images = {"fixed": nib.Nifti1Image(fixed, affine), "moving": nib.Nifti1Image(moved(fixed, affine, truth), affine)}
    points = Scan.of(images["fixed"]).grid.points()[:, ::5, ::5, ::5].flatten(1).numpy().T
    stages = ("rigid",)
    expected = register(images["fixed"], images["moving"], stages=stages).transform.points(points)
    ways = list(product(permutations(range(3)), product((False, True), repeat=3)))
    for axes, flips in ways[13::29]:
        stored = images | {which: stored_as(images[which], axes, flips)}
        ours = register(stored["fixed"], stored["moving"], stages=stages).transform.points(points)
        assert np.linalg.norm(ours - expected, axis=1).mean() < 0.1 * SPACING, (axes, flips)


def test_two_grids_of_other_voxels_and_a_deformation(tmp_path) -> None:
    """What is written is what SimpleITK makes of it, and the inverse leads back."""
    size = (34, 30, 32)
    fixed, affine = scene(size), affine_of(size)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij")).astype(float)
    bend = 1.5 * np.sin(grid[1] / 5)
    bent = map_coordinates(fixed, grid + np.stack([bend, 0 * bend, 0 * bend]), order=3)
    truth = turned(size, 8, 6)
    nib.save(nib.Nifti1Image(fixed.astype(np.int16), affine), tmp_path / "fixed.nii.gz")
    oblique = truth @ affine
    nib.save(nib.Nifti1Image(bent.astype(np.float32), oblique), tmp_path / "moving.nii.gz")
    result = dio_lightning.register(tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz")
    result.save(tmp_path / "out")
    warped = nib.load(tmp_path / "out/warped.nii.gz")
    assert warped.get_data_dtype() == np.float32 and np.allclose(warped.affine, affine)
    ours = np.asarray(warped.dataobj)
    inner = (slice(4, -4),) * 3
    assert np.abs(ours - fixed)[inner].mean() < 0.03 * 200
    read = sitk.ReadTransform(str(tmp_path / "out/transform.h5"))
    reference = sitk.ReadImage(str(tmp_path / "fixed.nii.gz"))
    theirs = sitk.Resample(sitk.ReadImage(str(tmp_path / "moving.nii.gz")), reference, read, sitk.sitkLinear, 0.0)
    theirs = sitk.GetArrayFromImage(theirs).T
    assert np.abs(theirs - ours)[inner].mean() < 0.005 * 200
    points = result.fixed.grid.points()[:, 6:-6:4, 6:-6:4, 6:-6:4].flatten(1).numpy().T
    lps = np.diag([-1.0, -1.0, 1.0])
    moved_points = np.array([read.TransformPoint(point) for point in (points @ lps).tolist()]) @ lps
    np.testing.assert_allclose(result.warp_points(points), moved_points, atol=0.02)
    back = result.inverse.points(result.warp_points(points))
    assert np.linalg.norm(back - points, axis=1).mean() < 0.1 * SPACING
    assert result.quality.verdict == "good" and result.quality.folds == 0


def test_labels_ride_along_and_may_be_prompts() -> None:
    size = (40, 36)
    fixed, affine = scene(size), affine_of(size)
    labels = [np.zeros(size, np.int16), np.zeros(size, np.int16)]
    labels[0][14:24, 12:22] = 17
    labels[1][17:27, 12:22] = 17
    images = {"fixed_affine": affine, "moving_affine": affine, "stages": ("deformable",)}
    dice = {}
    for terms in ((), (LabelPrompt([17], weight=30.0),)):
        maps = {"fixed_labels": nib.Nifti1Image(labels[0], affine), "moving_labels": nib.Nifti1Image(labels[1], affine)}
        result = register(fixed, fixed.copy(), terms=terms, transformation=FreeForm(), **images, **maps)
        warped = np.asarray(result.warp_labels(labels[1]).dataobj)
        assert set(np.unique(warped)) <= {0, 17}
        dice[len(terms)] = 2 * ((warped == 17) & (labels[0] == 17)).sum() / ((warped == 17).sum() + 100)
    assert dice[0] < 0.75 and dice[1] > 0.9


def test_unrelated_images_are_not_called_good() -> None:
    size = (40, 36)
    noise = np.random.default_rng(1).normal(size=size) ** 2
    result = register(
        scene(size), noise, fixed_affine=affine_of(size), moving_affine=affine_of(size), stages=("rigid",)
    )
    assert result.quality.verdict == "failed"


def test_normalised_information_is_its_definition() -> None:
    a, b = torch.rand(2, 1, 6, 7), torch.rand(1, 1, 6, 7)
    for i, ours in enumerate(normalised_information(a, b, 4).tolist()):
        joint = np.histogram2d(
            *[np.rint(3 * x.flatten().numpy()) for x in (a[i], b[0])], bins=[np.arange(-0.5, 4)] * 2
        )[0]
        p = joint / joint.sum()
        entropy = [-(q[q > 0] * np.log(q[q > 0])).sum() for q in (p.sum(0), p.sum(1), p)]
        assert ours == pytest.approx((entropy[0] + entropy[1]) / entropy[2])


@pytest.mark.parametrize("size", [(9, 8), (7, 9, 8)])
def test_the_rigid_model_is_a_rotation_about_the_middle(size) -> None:
    d, z = len(size), 2 * torch.randn(1, len(size), len(size) + 1, dtype=torch.float64)
    u = Rigid().displacement(z, size)
    rotation = Rigid().linear(z, size)[0]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(d, dtype=torch.float64))
    assert torch.linalg.det(rotation) > 0
    x = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij")).flatten(1)
    centre = (torch.tensor(size, dtype=torch.float64)[:, None] - 1) / 2
    expected = rotation @ (x - centre) + centre + z[0, :, d:] - x
    torch.testing.assert_close(u[0].flatten(1), expected)


def write(folder: Path, name: str, values: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1]) if affine is None else affine), folder / name)
    return str(folder / name)


def singular(folder: Path, values: np.ndarray) -> str:
    """A file whose sform has no third axis."""
    path = Path(write(folder, "singular.nii", values))
    image = nib.load(path)
    image.header["srow_z"] = [0, 0, 0, 0]
    with open(path, "r+b") as file:
        image.header.write_to(file)
    return str(path)


def wrong_inputs(folder: Path) -> dict[str, tuple[str, str]]:
    """What may be given for an image, and what the sentence says of it."""
    good = scene((12, 12, 12)).astype(np.float32)
    (folder / "text.nii.gz").write_text("no image")
    cut = Path(write(folder, "cut.nii.gz", good)).read_bytes()
    (folder / "cut.nii.gz").write_bytes(cut[: len(cut) // 2])
    holes = good.copy()
    holes[3, 3, 3] = np.nan
    rgb = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return {
        "nowhere": (str(folder / "none.nii.gz"), "does not exist"),
        "text": (str(folder / "text.nii.gz"), "cannot be read"),
        "cut": (str(folder / "cut.nii.gz"), "cannot be read"),
        "4-D": (write(folder, "4d.nii.gz", np.stack([good, good], -1)), "has 4 dimensions"),
        "constant": (write(folder, "constant.nii.gz", 0 * good + 3), "is 3 everywhere"),
        "NaN": (write(folder, "nan.nii.gz", holes), "1 values that are NaN"),
        "singular": (singular(folder, good), "affine that is not invertible"),
        "thin": (write(folder, "thin.nii.gz", good[:1]), "expected at least 4 along axis 0"),
        "complex": (write(folder, "complex.nii.gz", good.astype(np.complex64)), "complex64"),
        "colour": (write(folder, "colour.nii.gz", rgb), "expected real numbers"),
    }


@pytest.mark.parametrize(
    "kind", ["nowhere", "text", "cut", "4-D", "constant", "NaN", "singular", "thin", "complex", "colour"]
)
@pytest.mark.parametrize("place", ["fixed", "moving"])
def test_wrong_input_is_one_sentence_before_any_work(kind, place, command, tmp_path, capsys) -> None:
    path, sentence = wrong_inputs(tmp_path)[kind]
    good = write(tmp_path, "good.nii.gz", scene((12, 12, 12)).astype(np.float32))
    images = (path, good) if place == "fixed" else (good, path)
    with pytest.raises(SystemExit) as stop:
        command("register", *images, "--out", "out")
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in printed and Path(path).name in printed
    assert len(printed.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_the_command_leaves_whole_files_and_its_verdict(command, tmp_path, capsys) -> None:
    size = (40, 36)
    fixed, affine, truth = scene(size), affine_of(size), turned(size, 15, 10)
    paths = [
        write(tmp_path, f"{name}.nii.gz", values.astype(np.float32), affine)
        for name, values in (("fixed", fixed), ("moving", moved(fixed, affine, truth)))
    ]
    atlas = write(tmp_path, "atlas.nii.gz", (moved(fixed, affine, truth) > 60).astype(np.uint8), affine)
    command("register", *paths, "--out", "out", "--stages", "rigid", "--warp-labels", atlas)
    assert capsys.readouterr().out.startswith("good: ")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("warped.nii.gz", "transform.h5", "inverse.h5", "affine.tfm", "report.json", "picture.png"),
        "warped_atlas.nii.gz",
    }
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["quality"]["verdict"] == "good" and report["stages"][0]["stage"] == "rigid"
    warped = np.asarray(nib.load(tmp_path / "out/warped_atlas.nii.gz").dataobj).reshape(size)
    assert 2 * ((warped > 0) & (fixed > 60)).sum() / ((warped > 0).sum() + (fixed > 60).sum()) > 0.95
    with pytest.raises(SystemExit):
        command("register", *paths, "--out", "out", "--stages", "rigid")
    assert "warped.nii.gz exists" in capsys.readouterr().err
    command("register", *paths, "--out", "out", "--stages", "rigid", "--overwrite", "--json")
    assert json.loads(capsys.readouterr().out)["quality"]["verdict"] == "good"
    noise = write(tmp_path, "noise.nii.gz", np.random.default_rng(1).normal(size=size) ** 2, affine)
    with pytest.raises(SystemExit) as stop:
        command("register", paths[0], noise, "--out", "noise", "--stages", "rigid")
    assert stop.value.code == 3 and (tmp_path / "noise/report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"stages": ()}, "stages are none"),
        ({"stages": ("deformable", "rigid")}, "a deformable one last"),
        ({"stages": ("rigged",)}, "stages are rigged"),
        ({"moving": scene((12, 12, 12))}, "have 2 and 3 dimensions"),
        ({"fixed_labels": scene((16, 16))}, "labels of one image alone"),
        ({"stages": ("rigid",), "transformation": FreeForm()}, "transformation is for the deformable stage"),
        ({"stages": ("rigid",), "model": "weights.safetensors"}, "model is for the deformable stage"),
        ({"device": "tpu9"}, "device is 'tpu9', expected one that this machine has"),
        ({"device": "cuda:99"}, "device is 'cuda:99', expected one that this machine has"),
        ({"fixed_labels": scene((16, 16)), "moving_labels": scene((16, 16))}, "expected whole numbers up to 32767"),
        (
            {"terms": [LabelPrompt([5])], "fixed_labels": np.eye(16), "moving_labels": np.eye(16)},
            "has no label 5, which is to be matched",
        ),
    ],
)
def test_what_cannot_be_is_said(arguments, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        register(**({"fixed": scene((16, 16)), "moving": scene((16, 16))} | arguments))


def test_the_default_is_the_shipped_config_of_local_correlation() -> None:
    config = yaml.safe_load((ROOT / "experiments/classical/lncc.yaml").read_text())["model"]["init_args"]
    settings, module = config["layer"]["init_args"], local_correlation((80, 96, 112))
    update, solver, stop = (settings[key]["init_args"] for key in ("update", "solver", "stop"))
    assert list(module.features.levels) == config["features"]["init_args"]["levels"]
    assert list(module.layer.iterations) == settings["iterations"]
    assert module.layer.solver == Adam(**solver) and module.layer.stop == Stagnation(**stop)
    assert type(module.layer.transformation).__name__ == settings["transformation"]["class_path"].rpartition(".")[2]
    ours = module.layer.update
    assert isinstance(ours, ImageDescent) and isinstance(ours.similarity, LNCC)
    assert ours.similarity.window == update["similarity"]["init_args"]["window"]
    assert (ours.sigma, ours.regularity) == (update["sigma"], update["regularity"])
    assert module.layer.field_sigma == settings["field_sigma"]


@pytest.mark.parametrize("kind", ["text", "4-D", "complex", "plane"])
def test_a_file_to_warp_that_cannot_be_is_refused_before_any_work(kind, command, tmp_path, capsys) -> None:
    good = write(tmp_path, "good.nii.gz", scene((12, 12, 12)).astype(np.float32))
    plane = write(tmp_path, "plane.nii.gz", scene((12, 12)).astype(np.float32))
    wrong = {**wrong_inputs(tmp_path), "plane": (plane, "has 2 dimensions, expected 3")}[kind]
    with pytest.raises(SystemExit) as stop:
        command("register", good, good, "--out", "out", "--warp-images", wrong[0])
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and wrong[1] in printed and len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused_before_any_work(command, tmp_path, capsys) -> None:
    good = write(tmp_path, "good.nii.gz", scene((12, 12, 12)).astype(np.float32))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/inverse.h5").write_text("another's")
    for folder, sentence in ((good + "/out", "is a file, expected a folder"), ("out", "inverse.h5 exists")):
        with pytest.raises(SystemExit) as stop:
            command("register", good, good, "--out", folder)
        assert stop.value.code == 2 and sentence in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["inverse.h5"]


def test_stages_go_on_from_a_given_affine() -> None:
    size = (40, 36)
    fixed, affine, truth = scene(size), affine_of(size), turned(size, 70, 5)
    images = {"fixed_affine": affine, "moving_affine": affine, "stages": ("rigid",)}
    near = turned(size, 66, 3)
    result = register(fixed, moved(fixed, affine, truth), start=Chain([Affine(near)]), **images)
    assert error(result, truth) < 0.25 * SPACING


@pytest.mark.real
def test_two_acquired_brains_on_their_native_grids(data_root, tmp_path) -> None:
    """Colin27 and MNI152 as distributed, thinned to every third voxel so that the test stays short."""
    thin = {}
    for name in ("colin27_ch2bet", "mni152_t1"):
        image = nib.load(data_root / f"brain_real/native_{name}.nii.gz")
        values, affine = np.asarray(image.dataobj)[::3, ::3, ::3], image.affine @ np.diag([3, 3, 3, 1])
        thin[name] = write(tmp_path, f"{name}.nii.gz", values, affine)
    result = register(thin["mni152_t1"], thin["colin27_ch2bet"])
    assert result.quality.verdict == "good" and result.quality.overlap > 0.9
    assert result.quality.information > result.quality.start
