"""The moving image as it is stored, where the displacement takes it: intensities, type and scale of its file."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import map_coordinates

from data_modules import PairsCSV
from dio_lightning.callbacks import FieldWriter
from dio_lightning.callbacks.volumes import save_volume, warped_file
from dio_lightning.fields import on_moving_grid
from dio_lightning.fields.placing import same_grid
from dio_lightning.headers import Unreadable, read_header

SIZE = (9, 11, 8)
FIXED = np.array([[-2.0, 0.1, 0, 7], [0.1, 2, 0, -5], [0, 0, 2.0, 4], [0, 0, 0, 1]])
MOVING = np.array([[0, -1.5, 0, 18], [2.5, 0, 0, -10], [0, 0, 3.0, -3], [0, 0, 0, 1]])


def stored(path, values, affine=FIXED, scale=None, unit="mm"):
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    image.header.set_xyzt_units(unit)
    if scale is not None:
        image.header.set_slope_inter(*scale)
    nib.save(image, path)
    return path


def expected(path, u, affine):
    """By SciPy: the file's values at the place of the world where x + u(x) lies."""
    header = read_header(path)
    at = np.stack(np.meshgrid(*map(np.arange, u.shape[1:]), indexing="ij")) + u
    matrix = np.linalg.solve(header.affine, affine)
    d = len(u)
    there = np.tensordot(matrix[:d, :d], at, 1) + matrix[:d, 3].reshape(-1, *[1] * d)
    return map_coordinates(header.values().astype(float), there, order=1, mode="nearest")


def carried(path, u, affine=FIXED, size=None):
    """What the writer asks for: the pair says whether the file lies on another grid than u."""
    header, u = read_header(path), torch.as_tensor(u)
    pair = {"affine": torch.from_numpy(affine)[None]}
    if not same_grid(header.shape, header.affine, header.shape, affine):
        pair["moving_affine"] = torch.from_numpy(header.affine)[None]
    return warped_file(on_moving_grid(u[None].double(), pair)[0], path, size or header.shape)


TYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64", ">i2", ">f4"]


@pytest.mark.parametrize("moving", [FIXED, MOVING], ids=["one grid", "two grids"])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_warped_file_has_the_type_and_the_values_of_the_moving_one(tmp_path, dtype, moving):
    """A13: HU stay HU, in the type of the moving file."""
    rng = np.random.default_rng(0)
    low, high = (0, 250) if np.dtype(dtype).kind == "u" else (-120, 120)
    values = rng.uniform(low, high, (10, 12, 9) if moving is MOVING else SIZE).astype(dtype)
    path = stored(tmp_path / "moving.nii.gz", values, moving)
    u = rng.normal(size=(3, *SIZE)).astype(np.float32)
    array, header = carried(path, u)
    save_volume(tmp_path / "warped.nii.gz", array, FIXED, header.scale)
    found = nib.load(tmp_path / "warped.nii.gz")
    assert found.get_data_dtype() == np.dtype(dtype).newbyteorder("=") and found.shape == SIZE
    tolerance = 0.5 + 1e-6 if np.dtype(dtype).kind in "iu" else 1e-4
    np.testing.assert_allclose(found.get_fdata(), expected(path, u, FIXED), atol=tolerance)
    np.testing.assert_allclose(found.affine, FIXED, atol=1e-6)


@pytest.mark.parametrize("scale", [(0.5, -1024.0), (2.0, 0.0), (1.0, 10.0), (1e-3, 0.25)])
def test_the_scale_of_the_moving_file_is_kept(tmp_path, scale):
    """A13: slope and intercept give the same intensities when they are read."""
    values = np.random.default_rng(1).integers(-2000, 2000, SIZE).astype(np.int16)
    path = stored(tmp_path / "moving.nii.gz", values, scale=scale)
    u = np.full((3, *SIZE), 0.3, np.float32)
    array, header = carried(path, u)
    assert array.dtype == np.int16
    save_volume(tmp_path / "warped.nii.gz", array, FIXED, header.scale)
    found = read_header(tmp_path / "warped.nii.gz")
    assert found.scale == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(found.values(), expected(path, u, FIXED), atol=0.5 * scale[0] + 1e-4)


def test_an_identity_gives_back_every_value_exactly(tmp_path):
    """Values that float32 does not hold are neither rounded nor clipped."""
    for values in (
        np.arange(np.prod(SIZE)).reshape(SIZE).astype(np.uint32) + np.uint32(576_073_732),
        np.array([[[0, 255]]], np.uint8).repeat(4, 0).repeat(5, 1),
        np.random.default_rng(0).normal(size=SIZE),
    ):
        path = stored(tmp_path / "moving.nii.gz", values)
        array, _ = carried(path, torch.zeros(3, *values.shape))
        np.testing.assert_allclose(array, values, rtol=1e-12, atol=1e-14)
        if values.dtype.kind != "f":
            np.testing.assert_array_equal(array, values)


def test_two_axes_and_other_formats(tmp_path):
    flat = np.random.default_rng(0).uniform(0, 1000, (9, 7)).astype(np.int16)
    affine = np.diag([2.0, -1.5, 1, 1])
    path = stored(tmp_path / "flat.nii.gz", flat, affine)
    u = np.random.default_rng(1).normal(size=(2, 9, 7)).astype(np.float32)
    array, _ = carried(path, u, affine)
    assert array.shape == (9, 7, 1)
    np.testing.assert_allclose(array[..., 0], expected(path, u, affine), atol=0.5 + 1e-6)
    values = np.random.default_rng(2).uniform(0, 255, SIZE).astype(np.uint8)
    nib.save(nib.MGHImage(values, MOVING), tmp_path / "moving.mgz")
    u = np.zeros((3, *SIZE), np.float32)
    array, _ = carried(tmp_path / "moving.mgz", u)
    assert array.dtype == np.uint8
    np.testing.assert_allclose(array, expected(tmp_path / "moving.mgz", u, FIXED), atol=0.5 + 1e-6)


def test_what_is_no_image_of_the_pair_is_refused(tmp_path):
    path = stored(tmp_path / "complex.nii.gz", np.zeros(SIZE, np.complex64))
    with pytest.raises(Unreadable, match=r"complex.nii.gz holds complex64 in 3 dimensions, expected real numbers in 3"):
        carried(path, torch.zeros(3, *SIZE))
    path = stored(tmp_path / "flat.nii.gz", np.zeros((4, 5), np.float32))
    with pytest.raises(Unreadable, match="in 2 dimensions"):
        carried(path, torch.zeros(3, *SIZE))
    path = stored(tmp_path / "other.nii.gz", np.zeros(SIZE, np.float32))
    with pytest.raises(Unreadable, match=r"other.nii.gz has shape 9x11x8, expected 9x11x9 as in its pair"):
        carried(path, torch.zeros(3, *SIZE), size=(9, 11, 9))


@pytest.mark.parametrize("unit", ["mm", "micron", "meter"])
def test_written_files_lie_on_the_fixed_grid_in_millimetres(tmp_path, unit):
    """A1 and A5: a qform that disagrees, and a unit, are read once; both forms of what is written are the sform."""
    scale = np.diag([*[{"mm": 1.0, "micron": 1e3, "meter": 1e-3}[unit]] * 3, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    sform = turn @ np.diag([2.0, 2.0, 3.0, 1.0])
    sform[:3, 3] = 12, -8, 10
    values = np.random.default_rng(3).integers(-1000, 1000, (3, *SIZE)).astype(np.int16)
    for name, image in zip(("fixed", "moving"), values, strict=False):
        file = nib.Nifti1Image(image, scale @ sform)
        file.set_qform(scale @ np.diag([2.0, 2.0, 3.0, 1.0]), 1)
        file.set_sform(scale @ sform, 2)
        file.header.set_xyzt_units(unit)
        nib.save(file, tmp_path / f"{name}.nii.gz")
    affine = read_header(tmp_path / "fixed.nii.gz").affine
    np.testing.assert_allclose(affine, sform, rtol=1e-5, atol=1e-5)
    batch = {
        "fixed": torch.rand(1, 1, *SIZE),
        "moving": torch.rand(1, 1, *SIZE),
        "affine": torch.from_numpy(affine)[None],
        "fixed_id": ["a"],
        "moving_id": ["b"],
        "moving_file": [str(tmp_path / "moving.nii.gz")],
    }
    trainer = SimpleNamespace(default_root_dir=tmp_path, strategy=SimpleNamespace(barrier=lambda: None), world_size=1)
    writer, module = FieldWriter(), SimpleNamespace(predict_step=lambda pair, index: None)
    writer.setup(trainer, module, "predict")
    writer.write_on_batch_end(trainer, module, torch.zeros(1, 3, *SIZE), [0], batch, 0, 0)
    for kind in ("disp", "warped"):
        found = nib.load(tmp_path / f"predictions/{kind}_a_b.nii.gz")
        assert found.header.get_xyzt_units()[0] == "mm"
        for form, code in (found.get_sform(coded=True), found.get_qform(coded=True)):
            np.testing.assert_allclose(form, sform, rtol=1e-5, atol=1e-4)
            assert code == 2
        np.testing.assert_allclose(found.header.get_zooms()[:3], [2, 2, 3], rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(found.dataobj), values[1])
    # an independent reader agrees on where it lies
    image = sitk.ReadImage(tmp_path / "predictions/warped_a_b.nii.gz")
    there = np.array(image.TransformIndexToPhysicalPoint((8, 10, 7))) * [-1, -1, 1]
    np.testing.assert_allclose(there, (sform @ [8, 10, 7, 1])[:3], atol=1e-4)


def test_a_shear_has_no_quaternion_and_no_qform(tmp_path):
    """A6's kind: a qform without its shear would mislead who asks it first."""
    sheared = np.array([[2.0, 1.0, 0, 3], [0, 2.0, 0, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])
    save_volume(tmp_path / "sheared.nii.gz", np.zeros(SIZE, np.float32), sheared)
    found = nib.load(tmp_path / "sheared.nii.gz")
    assert int(found.header["qform_code"]) == 0 and int(found.header["sform_code"]) == 2
    np.testing.assert_allclose(found.affine, sheared)


def table(root, **images):
    for name, (values, affine) in images.items():
        stored(root / f"{name}.nii.gz", values, affine)
    (root / "pairs.csv").write_text("fixed,moving\nfixed.nii.gz,moving.nii.gz\n")
    return str(root / "pairs.csv")


def test_samples_say_which_files_they_are_unless_they_are_slices_or_resampled(tmp_path):
    values = np.random.default_rng(0).integers(-1000, 1000, (2, 20, 18, 16)).astype(np.int16)
    csv = table(tmp_path, fixed=(values[0], np.diag([2.0, 2, 2, 1])), moving=(values[1], np.diag([2.0, 2, 2, 1])))
    for common in (True, False):
        data = PairsCSV(csv, common_grid=common)
        data.setup("predict")
        batch = next(iter(data.predict_dataloader()))
        assert batch["fixed_file"] == [str(tmp_path / "fixed.nii.gz")]
        assert batch["moving_file"] == [str(tmp_path / "moving.nii.gz")]
    sliced = PairsCSV(csv, common_grid=True, plane="axial")
    sliced.setup("predict")
    assert not {"fixed_file", "moving_file"} & set(next(iter(sliced.predict_dataloader())))

    class Doubled(PairsCSV):
        def preparation(self):
            from monai.transforms.spatial.dictionary import Zoomd

            return [Zoomd(("image",), 0.5, allow_missing_keys=True)]

    other = Doubled(csv)
    other.setup("predict")
    assert not {"fixed_file", "moving_file"} & set(next(iter(other.predict_dataloader())))


IMAGE_SPACE = ["--model", "DIO", "--model.features", "Intensity", "--model.features.levels", "[1]"]
IMAGE_SPACE += ["--model.layer", "OptimizerLayer", "--model.layer.iterations", "[3]"]


def test_predict_writes_hu_of_a_moving_image_on_another_grid(tmp_path, command):
    """A13: 0 to 1 until now, whatever the image."""
    rng = np.random.default_rng(0)
    fixed = rng.integers(-1000, 1000, (16, 18, 14)).astype(np.int16)
    moving = rng.integers(-1000, 1000, (14, 16, 12)).astype(np.int16)
    affine = np.array([[2.2, 0, 0, 1], [0, 2.2, 0, -1], [0, 0, 2.2, 0], [0, 0, 0, 1]])
    csv = table(tmp_path, fixed=(fixed, np.diag([2.0, 2, 2, 1])), moving=(moving, affine))
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    command(
        "predict", *IMAGE_SPACE, "--data", "PairsCSV", "--data.csv", csv, *quiet, "--trainer.default_root_dir", "run"
    )
    u = np.moveaxis(nib.load("run/predictions/disp_fixed_moving.nii.gz").get_fdata(), -1, 0)
    warped = nib.load("run/predictions/warped_fixed_moving.nii.gz")
    assert warped.get_data_dtype() == np.int16 and warped.shape == (16, 18, 14)
    np.testing.assert_allclose(
        np.asarray(warped.dataobj), expected(tmp_path / "moving.nii.gz", u, np.diag([2.0, 2, 2, 1])), atol=0.51
    )


@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_a_command_writes_where_the_sform_says(tmp_path, command, unit):
    """A1 and A5 from files to files: forms that disagree on the fixed side, in another unit; and fields read back."""
    scale = np.diag([*[{"mm": 1.0, "micron": 1e3}[unit]] * 3, 1.0])
    sform, qform = np.diag([2.0002, 2.0, 2.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0])
    qform[:3, 3] = 12, -8, 10
    for name, values in zip(
        ("fixed", "moving"), np.random.default_rng(0).integers(0, 99, (2, 16, 18, 14)), strict=True
    ):
        file = nib.Nifti1Image(values.astype(np.int16), scale @ sform)
        file.set_qform(scale @ qform, 1)
        file.set_sform(scale @ sform, 2)
        file.header.set_xyzt_units(unit)
        nib.save(file, tmp_path / f"{name}.nii.gz")
    (tmp_path / "pairs.csv").write_text("fixed,moving\nfixed.nii.gz,moving.nii.gz\n")
    data = ["--data", "PairsCSV", "--data.csv", tmp_path / "pairs.csv"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    command("predict", *IMAGE_SPACE, *data, *quiet, "--trainer.default_root_dir", "run")
    for kind in ("disp", "warped"):
        found = nib.load(f"run/predictions/{kind}_fixed_moving.nii.gz")
        assert found.header.get_xyzt_units()[0] == "mm"
        for form in (found.get_sform(), found.get_qform()):
            np.testing.assert_allclose(form, sform, rtol=1e-5, atol=1e-5)
    command("evaluate", "run/predictions", *data, *quiet[:2], "--out", "out")
    assert (tmp_path / "out/metrics.csv").is_file()
