"""Two scans in, a transform out: known transforms come back, whatever images look like and however they are stored."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from dummies import ROOT
from scans import SPACING, affine_of, moved, scene, turned, write
from scipy.ndimage import map_coordinates

import dio_lightning
from dio_lightning.implicit import Adam, Stagnation
from dio_lightning.losses import LNCC, LabelPrompt
from dio_lightning.registration import Registration, register
from dio_lightning.registration.deformable import local_correlation
from dio_lightning.transformations import FreeForm, Rigid
from dio_lightning.transforms import Affine, Chain
from dio_lightning.updates import ImageDescent


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"stages": ()}, "stages are none"),
        ({"stages": ("deformable", "rigid")}, "deformable ones last"),
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
