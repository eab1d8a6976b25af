"""Klein's sets in mindboggle's layout: which pairs, common labels, spacing, size, and every sentence."""

from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from nibabel.analyze import AnalyzeHeader, AnalyzeImage
from scipy.ndimage import zoom
from torch.testing import assert_close

from data_modules import Klein
from data_modules.preparation.conform import Conform
from dio_lightning.fields import warp

SHAPE = (12, 10, 14)
SIZE = (16, 8, 14)


def write(path: Path, data: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    """Analyze if the name ends in .img, with a fourth axis of one voxel as some of the files have; else NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".img":
        nib.save(nib.Nifti1Image(data, np.diag([*spacing, 1.0])), path)  # type: ignore[attr-defined]
        return
    header = AnalyzeHeader()
    header.set_data_dtype(data.dtype)
    volume = AnalyzeImage(data[..., None], None, header)
    volume.header.set_zooms((*spacing, 1.0))
    nib.save(volume, path)  # type: ignore[attr-defined]


def brain(i: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    data = np.random.default_rng(i).integers(1, 900, shape).astype(np.int16)
    data[0], data[-1] = 0, -3
    return data


def labels(i: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """All subjects have 3, 20 and 150; subject i has 60 + i alone."""
    found = np.array([0, 20, 3, 150, 60 + i], np.int16)
    return found[np.random.default_rng(50 + i).integers(0, 5, shape)]


@pytest.fixture
def cumc(tmp_path: Path) -> Path:
    """Subjects 1, 2 and 10, whose order by name is 1, 10, 2."""
    for i in (1, 2, 10):
        write(tmp_path / f"Brains/m{i}.img", brain(i))
        write(tmp_path / f"Atlases/m{i}.img", labels(i))
    return tmp_path


@pytest.fixture
def ibsr(tmp_path: Path) -> Path:
    """Two sizes and spacings."""
    for i, shape, spacing in [(1, SHAPE, (0.9, 1.5, 1.0)), (2, SHAPE, (0.9, 1.5, 1.0)), (18, (8, 6, 9), (1.0, 1.5, 1))]:
        folder = tmp_path / f"IBSR_{i:02d}"
        write(folder / f"IBSR_{i:02d}_ana_strip.nii.gz", brain(i, shape), spacing)
        write(folder / f"IBSR_{i:02d}_seg_ana.nii.gz", labels(i, shape), spacing)
    return tmp_path


@pytest.fixture
def lpba(tmp_path: Path) -> Path:
    """Every image (i) registered to every other (j); subject i is 100 i + j, to tell files apart."""
    for i in (1, 2, 11):
        for j in (1, 2, 11):
            data = np.full(SHAPE, 100 * i + j, np.int16)
            data[0] = 0
            write(tmp_path / f"registered_pairs/l{i}_to_l{j}.img", data)
            write(tmp_path / f"registered_label_pairs/l{i}_to_l{j}.img", labels(100 * i + j))
    return tmp_path


def ready(root: Path, dataset: str, **options: object) -> Klein:
    data = Klein(str(root), dataset, **{"crop_size": SIZE, **options})  # type: ignore[arg-type]
    data.setup("test")
    return data


def sentence(root: Path, dataset: str, error: type[Exception] = ValueError, **options: object) -> str:
    with pytest.raises(error) as caught:
        ready(root, dataset, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listed(data: Klein) -> list[tuple[str, str]]:
    return [(fixed.id, moving.id) for fixed, moving in data.pairs("test")]


def test_analyze_as_stored(cumc: Path) -> None:
    data = ready(cumc, "CUMC12", spacing="native", crop=False)
    assert listed(data) == [("m1", "m2"), ("m1", "m10"), ("m2", "m1"), ("m2", "m10"), ("m10", "m1"), ("m10", "m2")]
    assert data.label_names == {0: "background", 1: "label_3", 2: "label_20", 3: "label_150"} and data.num_labels == 3
    batch = list(data.test_dataloader())[1]
    assert_close(batch["moving"][0, 0].numpy(), (brain(10).clip(0) / brain(10).max()).astype(np.float32))
    contiguous = sum(k * (labels(10) == label) for k, label in enumerate((3, 20, 150), start=1))
    assert batch["moving_label"].dtype == torch.int16
    assert np.array_equal(batch["moving_label"][0, 0].numpy(), contiguous)
    assert_close(batch["affine"][0] @ torch.tensor([5.5, 4.5, 6.5, 1], dtype=torch.float64), torch.eye(4).double()[3])
    assert "moving_affine" not in batch and data.spatial_dims == 3
    assert_close(warp(batch["moving"], torch.zeros(1, 3, *SHAPE)), batch["moving"])


def test_mgh(tmp_path: Path) -> None:
    for i in (3, 7):
        write(tmp_path / f"Brains/g{i}.img", brain(i))
        write(tmp_path / f"Atlases/g{i}.img", labels(i))
    assert listed(ready(tmp_path, "MGH10")) == [("g3", "g7"), ("g7", "g3")]


def test_crop_is_zero_padding_and_the_centre(cumc: Path) -> None:
    data = ready(cumc, "CUMC12", batch_size=6)
    (batch,) = data.test_dataloader()
    assert batch["fixed"].shape == batch["fixed_label"].shape == (6, 1, *SIZE)
    padded = np.pad(brain(1).clip(0), ((2, 2), (0, 0), (0, 0)))[:, 1:9]
    assert_close(batch["fixed"][0, 0].numpy(), (padded / padded.max()).astype(np.float32))
    assert np.array_equal(
        batch["fixed_label"][0, 0].numpy() == 2, np.pad(labels(1) == 20, ((2, 2), (0, 0), (0, 0)))[:, 1:9]
    )
    assert "moving_affine" not in batch


def test_lpba_pairs(lpba: Path) -> None:
    """l{i}_to_l{j}: i moves, j is fixed, and labels that only moved images have do not count."""
    data = ready(lpba, "LPBA40", spacing="native", crop=False, normalise="none", cache=False)
    pairs = listed(data)
    assert len(pairs) == len({*pairs}) == 3 * 2
    assert pairs[0] == ("l1_to_l1", "l2_to_l1") and ("l2_to_l2", "l11_to_l2") in pairs
    batch = next(iter(data.test_dataloader()))
    assert batch["fixed"].max() == 101 and batch["moving"].max() == 201
    assert data.num_labels == 3


def test_isotropic(ibsr: Path) -> None:
    """Sizes are those of SciPy's zoom; a ramp in mm stays that ramp, and labels stay labels."""
    data = ready(ibsr, "IBSR18", crop=False)
    assert listed(data)[:2] == [("IBSR_01", "IBSR_02"), ("IBSR_01", "IBSR_18")]
    same, other = list(data.test_dataloader())[:2]
    assert same["fixed"].shape[2:] == zoom(brain(1), (0.9, 1.5, 1.0), order=1).shape == (11, 15, 14)
    assert other["moving"].shape[2:] == (8, 9, 9) and torch.equal(other["spacing"], torch.ones(1, 3))
    assert "moving_affine" not in same and other["moving_affine"][0, 0, 3] == -3.5
    assert set(same["fixed_label"].unique().tolist()) == {0, 1, 2, 3}


def test_resampling_keeps_places() -> None:
    affine = torch.diag(torch.tensor([0.8, 1.5, 1.0, 1.0], dtype=torch.float64))
    x, y, _ = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in (20, 10, 8)), indexing="ij")
    ramp, half = 50 + 0.8 * x + 2 * 1.5 * y, 30 * (x > 0).float()
    stored = {"image": MetaTensor(ramp[None], affine=affine), "label": MetaTensor(half[None], affine=affine)}
    found = Conform(isotropic=True, size=None)(stored)
    image, label = (cast(MetaTensor, found[kind]) for kind in ("image", "label"))
    assert image.shape == label.shape == (1, 16, 15, 8)
    place = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in image.shape[1:])).T
    world = image.affine[:3, :3] @ place + image.affine[:3, 3:]
    expected = (50 + world[0] + 2 * world[1]).reshape(image.shape[1:])
    assert_close(image.as_tensor()[0, 1:-1, 1:-1].double(), expected[1:-1, 1:-1], atol=1e-3, rtol=0)
    assert torch.equal(label.as_tensor()[0].flatten() > 0, world[0] > 0)


def test_native_spacings_differ(ibsr: Path) -> None:
    """Cut to one size, images of two spacings still lie on two grids."""
    batch = list(ready(ibsr, "IBSR18", spacing="native").test_dataloader())[1]
    assert batch["fixed"].shape == batch["moving"].shape == (1, 1, *SIZE)
    assert_close(batch["spacing"], torch.tensor([[0.9, 1.5, 1.0]]))
    assert_close(batch["moving_affine"][0].diagonal(), torch.tensor([1.0, 1.5, 1, 1]).double())
    same = next(iter(ready(ibsr, "IBSR18").test_dataloader()))
    assert "moving_affine" not in same and same["fixed"].shape == (1, 1, *SIZE)


def test_fits_nothing(cumc: Path) -> None:
    data = Klein(str(cumc), "CUMC12")
    with pytest.raises(ValueError, match=r"\(CUMC12\) is a test set without train pairs, expected test, predict"):
        data.setup("fit")


def test_missing_files(cumc: Path) -> None:
    (cumc / "Brains/m2.hdr").unlink()
    told = sentence(cumc, "CUMC12", FileNotFoundError)
    assert told == f"{cumc / 'Brains/m2.hdr'} does not exist, expected the header of m2.img"
    (cumc / "Atlases/m10.img").unlink()
    (cumc / "Brains/m2.img").unlink()
    told = sentence(cumc, "CUMC12", FileNotFoundError)
    assert told == f"{cumc / 'Atlases/m10.img'} does not exist, expected the label of m10"
    assert "has 0 images Brains/g*, expected those of MGH10" in sentence(cumc, "MGH10", FileNotFoundError)


def test_missing_pair(lpba: Path) -> None:
    (lpba / "registered_pairs/l2_to_l11.img").unlink()
    assert "l2_to_l11.img does not exist, expected the image" in sentence(lpba, "LPBA40", FileNotFoundError)


def test_broken_labels(cumc: Path) -> None:
    path = cumc / "Atlases/m2.img"
    write(path, labels(2).astype(np.float32) + 0.5)
    assert f"{path} has the value" in sentence(cumc, "CUMC12") and "integers" in sentence(cumc, "CUMC12")
    write(path, labels(2, (12, 14, 10)))
    assert f"{path} has shape 12x14x10, expected 12x10x14" in sentence(cumc, "CUMC12")
    write(path, np.full(SHAPE, 77, np.int16))
    assert f"{path} shares no label" in sentence(cumc, "CUMC12")
    path.write_bytes(path.read_bytes()[:40])
    assert str(path) in sentence(cumc, "CUMC12")


def test_broken_image(cumc: Path) -> None:
    data = brain(1).astype(np.float32)
    data[4, 4, 4] = np.nan
    write(cumc / "Brains/m1.img", data)
    assert "Brains/m1.img has 1 voxels that are NaN" in sentence(cumc, "CUMC12")


def test_options_that_do_not_fit(cumc: Path) -> None:
    assert "crop_size is [0, 8, 8]" in sentence(cumc, "CUMC12", crop_size=(0, 8, 8))
    assert "plane is 'axial', expected none" in sentence(cumc, "CUMC12", plane="axial")


def test_command_line(cumc: Path, command, rows) -> None:
    config = Path(__file__).parents[1] / "experiments/classical/identity.yaml"
    given = [
        "--data",
        "Klein",
        "--data.root",
        cumc,
        "--data.dataset",
        "CUMC12",
        "--data.crop",
        "false",
        "--trainer.limit_test_batches",
        "1",
    ]
    command("test", "--config", config, *given, "--trainer.accelerator", "cpu")
    (row,) = rows(Path("runs/identity_brains"))
    assert (row["fixed_id"], row["moving_id"]) == ("m1", "m2")
    masks = [(labels(1) == label, labels(2) == label) for label in (3, 20, 150)]
    dice = [2 * (one & two).sum() / (one.sum() + two.sum()) for one, two in masks]
    assert float(row["dice"]) == pytest.approx(np.mean(dice), abs=1e-4)
