"""Whether two grids are one is decided once, where their corners lie, and everybody obeys the pair that says so."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from data_modules import PairsCSV
from dio_lightning.callbacks import FieldWriter
from dio_lightning.fields.placing import SAME_GRID, corners_apart, same_grid
from dio_lightning.headers import read_header
from dio_lightning.registration.scan import Scan
from dio_lightning.transforms import ImageGrid

SIZE = (64, 60, 8)
IDENTITY = ["--model", "DIO", "--model.features", "Intensity", "--model.features.levels", "[1]"]
IDENTITY += ["--model.layer", "OptimizerLayer", "--model.layer.iterations", "[0]"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


def turned(degrees: float) -> np.ndarray:
    affine, angle = np.eye(4), np.deg2rad(degrees)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


def shifted(mm: float, edges: tuple[float, ...] = (1.0, 1.0, 1.0)) -> np.ndarray:
    affine = np.diag([*edges, 1.0])
    affine[1, 3] = mm
    return affine


HALF, WIDER = turned(0.5), np.diag([1.0095, 1, 1, 1])


def saved(root, moving: np.ndarray, label: np.ndarray | None = None) -> str:
    """A pair of one scene, its moving image on a grid of its own, with landmarks at the same places of the world."""
    scene = gaussian_filter(np.random.default_rng(0).random(SIZE), (4, 4, 2))
    scene = (scene - scene.min()) / np.ptp(scene) * 1000
    x = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"))
    at = np.tensordot(moving[:3, :3], x, 1) + moving[:3, 3].reshape(3, 1, 1, 1)
    values = map_coordinates(scene, at, order=3, mode="nearest")
    points = np.array([[10.0, 12, 3], [50, 10, 4], [12, 48, 5], [48, 45, 2]])
    there = (points - moving[:3, 3]) @ np.linalg.inv(moving[:3, :3]).T
    for name, image, affine, marks in (("a", scene, np.eye(4), points), ("b", values, moving, there)):
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), root / f"{name}.nii.gz")
        nib.save(
            nib.Nifti1Image((image > 500).astype(np.uint8), affine if label is None else label),
            root / f"{name}_label.nii.gz",
        )
        np.savetxt(root / f"{name}.csv", marks, delimiter=",")
    columns = "fixed,moving,fixed_points,moving_points,fixed_label,moving_label"
    (root / "p.csv").write_text(f"{columns}\na.nii.gz,b.nii.gz,a.csv,b.csv,a_label.nii.gz,b_label.nii.gz\n")
    return str(root / "p.csv")


def batch_of(csv: str, **options) -> dict:
    data = PairsCSV(csv, cache=False, **options)
    data.setup("test")
    return next(iter(data.test_dataloader()))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("size", "one", "other", "expected"),
    [
        (SIZE, np.eye(4), np.eye(4), 0.0),
        (SIZE, np.eye(4), shifted(0.3), 0.3),
        (SIZE, shifted(0.0, (2.0, 2.0, 5.0)), shifted(0.3, (2.0, 2.0, 5.0)), 0.15),
        # a chord of the corner's radius
        (SIZE, np.eye(4), HALF, 2 * np.hypot(63.5, 59.5) * np.sin(np.deg2rad(0.25))),
        (SIZE, np.eye(4), WIDER, 0.0095 * 63.5),
        ((1, 9, 9), np.eye(4), np.diag([3.0, 1, 1, 1]), 1.0),
        # of a plane, the third column says nothing
        ((64, 60), np.eye(4), np.diag([1.0, 1, 7, 1]), 0.0),
        ((64, 60), np.eye(4), HALF, 2 * np.hypot(63.5, 59.5) * np.sin(np.deg2rad(0.25))),
    ],
)
def test_corners_lie_apart_by_closed_forms_and_no_voxel_further(size, one, other, expected):
    assert corners_apart(size, one, other) == pytest.approx(expected, abs=1e-12)
    assert corners_apart(size, other, one) == pytest.approx(expected, abs=1e-12)
    voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).reshape(len(size), -1)
    moved = (other - one)[:3, : len(size)] @ voxels + (other - one)[:3, 3:]
    edge = np.linalg.norm(one[:3, : len(size)], axis=0).min()
    assert np.linalg.norm(moved, axis=0).max() / edge <= expected + 1e-12
    assert same_grid(size, one, size, other) == (expected <= SAME_GRID)
    assert ImageGrid(size, one).like(ImageGrid(size, other)) == (expected <= SAME_GRID)


def test_another_size_or_no_number_is_another_grid():
    assert not same_grid(SIZE, np.eye(4), (64, 60, 9), np.eye(4))
    assert not same_grid(SIZE, np.eye(4), SIZE, np.full((4, 4), np.nan))


@pytest.mark.parametrize("moving", [HALF, WIDER], ids=["turned", "wider"])
def test_what_coincides_in_the_world_has_no_error_before_registration(tmp_path, command, rows, moving):
    """Both grids agree to 1 % of every entry of their affines, and are half a voxel apart at the corners."""
    csv = saved(tmp_path, moving)
    assert "moving_affine" in batch_of(csv)
    data = ["--data", "PairsCSV", "--data.csv", csv, *QUIET]
    command("test", *IDENTITY, *data, "--trainer.default_root_dir", "t")
    (row,) = rows(tmp_path / "t")
    assert float(row["tre"]) == pytest.approx(0, abs=1e-4)
    command("predict", *IDENTITY, *data, "--trainer.default_root_dir", "p")
    warped = nib.load("p/predictions/warped_a_b.nii.gz").get_fdata()
    inner = (slice(6, -6), slice(6, -6), slice(2, -2))
    fixed = nib.load("a.nii.gz").get_fdata()
    assert np.corrcoef(warped[inner].ravel(), fixed[inner].ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("moving", [HALF, WIDER, shifted(0.011)], ids=["turned", "wider", "shifted"])
def test_a_common_grid_is_refused_with_the_distance_that_its_numbers_do_not_show(tmp_path, moving):
    csv = saved(tmp_path, moving)
    away = f"{corners_apart(SIZE, np.eye(4), moving):.3g}"
    with pytest.raises(ValueError, match=rf"b.nii.gz lies on another grid .* \(a corner is {away} voxels away\)"):
        batch_of(csv, common_grid=True)
    saved(tmp_path, np.eye(4), label=moving)
    with pytest.raises(ValueError, match=rf"label.nii.gz has the affine .* \(a corner is {away} voxels away\)"):
        batch_of(csv)


def test_grids_that_differ_by_rounding_are_one(tmp_path):
    """By what float32 and six written digits make of an affine, and up to a hundredth of a voxel; not beyond."""
    rounded = np.eye(4)
    rounded[:3, :3] += 1e-6 * np.random.default_rng(0).standard_normal((3, 3))
    for moving, one in ((rounded, True), (shifted(0.009), True), (shifted(0.011), False), (turned(0.005), True)):
        csv = saved(tmp_path, moving)
        assert ("moving_affine" not in batch_of(csv)) == one
        if one:
            batch_of(csv, common_grid=True)
        fixed = Scan.of(tmp_path / "a.nii.gz")
        if one:
            assert fixed.companion(tmp_path / "b.nii.gz", "the other").grid.like(fixed.grid)
        else:
            with pytest.raises(ValueError, match="lies on another grid"):
                fixed.companion(tmp_path / "b.nii.gz", "the other")


@pytest.mark.parametrize("one", [True, False], ids=["one grid", "two grids"])
def test_the_writer_obeys_the_pair_and_decides_nothing_again(tmp_path, one):
    """A pair on one grid has u in voxels of the moving file, whatever the header of that file says now."""
    saved(tmp_path, HALF)
    header = read_header(tmp_path / "b.nii.gz")
    u = np.random.default_rng(1).normal(size=(3, *SIZE)).astype(np.float32)
    pair = {
        "fixed": torch.rand(1, 1, *SIZE),
        "moving": torch.from_numpy(header.values().copy())[None, None],
        "affine": torch.eye(4, dtype=torch.float64)[None],
        "fixed_id": ["a"],
        "moving_id": ["b"],
        "moving_file": [str(tmp_path / "b.nii.gz")],
    }
    if not one:
        pair["moving_affine"] = torch.from_numpy(header.affine)[None]
    trainer = SimpleNamespace(default_root_dir=tmp_path, strategy=SimpleNamespace(barrier=lambda: None), world_size=1)
    writer, module = FieldWriter(), SimpleNamespace(predict_step=lambda pair, index: None)
    writer.setup(trainer, module, "predict")  # type: ignore[arg-type]
    writer.write_on_batch_end(trainer, module, torch.from_numpy(u)[None], [0], pair, 0, 0)  # type: ignore[arg-type]
    at = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij")) + u
    if not one:
        at = np.tensordot(np.linalg.inv(header.affine)[:3, :3], at, 1)
    expected = map_coordinates(header.values().astype(float), at, order=1, mode="nearest")
    found = nib.load(tmp_path / "predictions/warped_a_b.nii.gz").get_fdata()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_moving_image_that_was_brought_to_the_fixed_grid_is_no_file(tmp_path):
    data = PairsCSV(saved(tmp_path, HALF), cache=False)
    data.setup("fit")
    sample = next(iter(data.train_dataloader()))
    assert not sample.keys() & {"moving_affine", "moving_file", "fixed_file"}
