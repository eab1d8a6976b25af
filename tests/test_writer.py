"""Predicted fields in the layout that Learn2Reg's evaluation reads."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from dio_lightning.callbacks import FieldWriter, replacing
from dio_lightning.fields.names import pair_name

SIZE = (7, 9, 8)


MODULE = SimpleNamespace(predict_step=lambda pair, index: None)


def trainer_in(folder):
    return SimpleNamespace(default_root_dir=folder, strategy=SimpleNamespace(barrier=lambda: None), world_size=1)


def pair(size=SIZE):
    affine = torch.tensor([[-2.0, 0, 0, 7], [0, 0, 3, -5], [0, -1, 0, 4], [0, 0, 0, 1]], dtype=torch.float64)
    ids = {"fixed_id": ["Brain_0011_0000"], "moving_id": ["Brain_0012_0000"]}
    return {"fixed": torch.rand(1, 1, *size), "moving": torch.rand(1, 1, *size), "affine": affine[None], **ids}


def write(writer, folder, batch, u):
    trainer = trainer_in(folder)
    writer.setup(trainer, MODULE, "predict")
    writer.write_on_batch_end(trainer, MODULE, u, [0], batch, 0, 0)


def test_a_written_field_warps_the_image_as_learn2reg_does_it(tmp_path):
    batch, u = pair(), torch.randn(1, 3, *SIZE)
    write(FieldWriter(), tmp_path, batch, u)
    field = nib.load(tmp_path / "predictions" / "disp_0011_0012.nii.gz")
    warped = nib.load(tmp_path / "predictions" / "warped_0011_0012.nii.gz")
    displacement = field.get_fdata()
    assert field.get_data_dtype() == np.float32 and displacement.shape == (*SIZE, 3)
    np.testing.assert_array_equal(displacement, u[0].movedim(0, -1).numpy())
    for image in (field, warped):
        np.testing.assert_allclose(image.affine, batch["affine"][0].numpy())
    points = np.meshgrid(*map(np.arange, SIZE), indexing="ij") + np.moveaxis(displacement, -1, 0)
    expected = map_coordinates(batch["moving"][0, 0].numpy(), points, order=1, mode="nearest")
    np.testing.assert_allclose(warped.get_fdata(), expected, atol=1e-4)


def test_a_2d_field_is_one_slice(tmp_path):
    batch = {
        "fixed": torch.rand(2, 1, 6, 5),
        "moving": torch.rand(2, 1, 6, 5),
        "spacing": torch.tensor([[2.0, 3.0]] * 2),
    }
    writer, trainer = FieldWriter(out=str(tmp_path / "fields")), trainer_in(tmp_path)
    writer.setup(trainer, MODULE, "predict")
    writer.write_on_batch_end(trainer, MODULE, torch.randn(2, 2, 6, 5), [4, 5], batch, 0, 0)
    names = sorted(file.name for file in (tmp_path / "fields").iterdir())
    assert names[:2] == ["disp_fixed0x4_moving0x4.nii.gz", "disp_fixed0x5_moving0x5.nii.gz"] and len(names) == 4
    field = nib.load(tmp_path / "fields" / names[0])
    assert field.shape == (6, 5, 1, 2)
    np.testing.assert_allclose(np.diag(field.affine), [2, 3, 1, 1])


def test_fields_of_an_earlier_run_are_safe(tmp_path):
    batch, u = pair(), torch.zeros(1, 3, *SIZE)
    write(FieldWriter(warped=False), tmp_path, batch, u)
    assert [file.name for file in (tmp_path / "predictions").iterdir()] == ["disp_0011_0012.nii.gz"]
    with pytest.raises(FileExistsError, match=r"disp_0011_0012.nii.gz exists"):
        FieldWriter().setup(trainer_in(tmp_path), MODULE, "predict")
    write(FieldWriter(warped=False, overwrite=True), tmp_path, batch, u + 1)
    assert nib.load(tmp_path / "predictions" / "disp_0011_0012.nii.gz").get_fdata().min() == 1


def test_two_pairs_never_share_a_file(tmp_path):
    batch, u = pair(), torch.zeros(1, 3, *SIZE)
    writer = FieldWriter()
    write(writer, tmp_path, batch, u)
    with pytest.raises(ValueError, match="would both be written"):
        writer.write_on_batch_end(
            trainer_in(tmp_path), MODULE, u, [1], {**batch, "fixed_id": ["Other_0011_0000"]}, 1, 0
        )


@pytest.mark.parametrize(
    ("fixed", "moving", "name"),
    [
        ("Brain_0011_0000", "Brain_0012_0000", "0011_0012"),
        ("0395", "0396", "0395_0396"),
        ("imagesTr/Brain_0011_0000.nii.gz", "0012", "0011_0012"),
        ("Lung_0001_0000", "Lung_0001_0001", "0001_0000_0001_0001"),
        ("sub-01/anat T1", "b_2", "anat-T1_b-2"),
        ("../..", "x", "unnamed_x"),
    ],
)
def test_names_of_pairs(fixed, moving, name):
    assert pair_name(fixed, moving) == name


def test_a_file_that_fails_while_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "kept.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def written(folder, batch, u, **options):
    writer = FieldWriter(out=str(folder), warped=False, **options)
    write(writer, folder, batch, u)
    return [file.name for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_npz_holds_one_array_of_half_precision_unless_told_otherwise(tmp_path, dtype):
    u = torch.randn(1, 3, *SIZE)
    assert written(tmp_path, pair(), u, format="npz", dtype=dtype) == ["disp_0011_0012.npz"]
    with np.load(tmp_path / "disp_0011_0012.npz") as arrays:
        (field,) = arrays.values()
    assert field.dtype == (dtype or "float16") and field.shape == (*SIZE, 3)
    np.testing.assert_array_equal(field, u[0].movedim(0, -1).numpy().astype(field.dtype))


@pytest.mark.parametrize("format", ["nii", "npz"])
def test_half_resolution_keeps_the_ends_of_the_grid_and_full_voxels(tmp_path, format):
    batch = pair()
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in SIZE], indexing="ij"))[None]
    u = 0.1 * grid + torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
    (name,) = written(tmp_path, batch, u, format=format, resolution="half", channels="first")
    half = np.load(tmp_path / name)["displacement"] if format == "npz" else nib.load(tmp_path / name).get_fdata()
    assert half.shape == (3, 4, 5, 4)
    # a linear field is sampled exactly, wherever the samples are
    for axis, (n, h) in enumerate(zip(SIZE, half.shape[1:], strict=True)):
        line = np.moveaxis(half[axis], axis, 0)[:, 0, 0]
        np.testing.assert_allclose(line, 0.1 * np.linspace(0, n - 1, h) + axis + 1, atol=2e-3)
    if format == "nii":
        affine = nib.load(tmp_path / name).affine
        last = np.array([n - 1 for n in SIZE])
        np.testing.assert_allclose(affine[:3, :3] @ [3, 4, 3], batch["affine"][0, :3, :3].numpy() @ last)


def test_an_axis_of_one_voxel_keeps_its_spacing_at_half_resolution(tmp_path):
    batch = pair((7, 1, 8))
    (name,) = written(tmp_path, batch, torch.zeros(1, 3, 7, 1, 8), resolution="half")
    affine = nib.load(tmp_path / name).affine
    np.testing.assert_allclose(affine[:3, 1], batch["affine"][0, :3, 1].numpy())


def test_a_field_in_the_other_format_would_contradict_the_new_one(tmp_path):
    u = torch.zeros(1, 3, *SIZE)
    written(tmp_path, pair(), u)
    with pytest.raises(FileExistsError, match=r"disp_0011_0012.nii.gz exists"):
        written(tmp_path, pair(), u, format="npz")
    assert written(tmp_path, pair(), u, format="npz", overwrite=True) == ["disp_0011_0012.npz"]


@pytest.mark.parametrize("options", [{"format": "h5"}, {"dtype": "float16"}, {"resolution": "third"}])
def test_what_cannot_be_written_is_refused_at_once(options):
    with pytest.raises(ValueError, match="FieldWriter: "):
        FieldWriter(**options)


def test_processes_that_know_no_list_of_pairs_write_full_names(tmp_path):
    """B6: without a data module no process knows the pairs of the others."""
    trainer, writer, u = trainer_in(tmp_path), FieldWriter(warped=False), torch.zeros(1, 3, *SIZE)
    trainer.world_size = 2
    writer.setup(trainer, MODULE, "predict")
    for fixed, moving in (("sub01_0000", "sub01_0001"), ("sub02_0000", "sub02_0001")):
        batch = {**pair(), "fixed_id": [fixed], "moving_id": [moving]}
        writer.write_on_batch_end(trainer, MODULE, u, [0], batch, 0, 0)
    names = sorted(file.name for file in (tmp_path / "predictions").iterdir())
    assert names == ["disp_sub01_0000_sub01_0001.nii.gz", "disp_sub02_0000_sub02_0001.nii.gz"]


def test_a_field_under_another_name_of_its_pair_would_contradict_the_new_one(tmp_path):
    batch, u = pair(), torch.zeros(1, 3, *SIZE)
    trainer, writer = trainer_in(tmp_path), FieldWriter(warped=False, overwrite=True)
    ids = (batch["fixed_id"][0], batch["moving_id"][0])
    trainer.datamodule = SimpleNamespace(pair_ids=lambda split: [ids])
    (tmp_path / "predictions").mkdir()
    for name in ("disp_0011_0000_0012_0000.npz", "disp_Brain_0011_0000_Brain_0012_0000.nii.gz", "disp_0003_0004.npz"):
        (tmp_path / "predictions" / name).touch()
    writer.setup(trainer, MODULE, "predict")
    writer.write_on_batch_end(trainer, MODULE, u, [0], batch, 0, 0)
    names = sorted(file.name for file in (tmp_path / "predictions").iterdir())
    assert names == ["disp_0003_0004.npz", "disp_0011_0012.nii.gz"]


def test_the_moving_image_is_warped_from_its_own_grid(tmp_path):
    batch, u = pair(), 0.5 * torch.randn(1, 3, *SIZE)
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([1.0, 2.0, -1.0])
    # voxel y of the moving grid is where voxel y + (1, 2, -1) of the fixed one is
    elsewhere = {**batch, "moving": torch.rand(1, 1, 9, 10, 11), "moving_affine": (batch["affine"][0] @ shift)[None]}
    write(FieldWriter(), tmp_path, elsewhere, u)
    at = np.meshgrid(*map(np.arange, SIZE), indexing="ij") + u[0].numpy() - np.array([1, 2, -1])[:, None, None, None]
    expected = map_coordinates(elsewhere["moving"][0, 0].numpy(), at, order=1, mode="nearest")
    warped = nib.load(tmp_path / "predictions" / "warped_0011_0012.nii.gz")
    np.testing.assert_allclose(warped.get_fdata(), expected, atol=1e-4)
