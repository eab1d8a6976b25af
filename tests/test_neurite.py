"""neurite-OASIS: a folder per subject, volumes and slices, splits, names."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from torch.testing import assert_close

from data_modules import NeuriteOASIS

SHAPE = (6, 7, 8)
TABLE = """#No. Label Name:   R G B A
0   Unknown                0   0   0   0
1   Left-Cerebral-White-Matter   245 245 245 0
  3  Left-Lateral-Ventricle  120 18 134 0
"""


def write(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1, 1, 1])), path)  # pyright: ignore[reportPrivateImportUsage]


def subject(i: int) -> str:
    return f"OASIS_OAS1_{i:04d}_MR1"


def write_subject(root: Path, i: int) -> None:
    rng, folder = np.random.default_rng(i), root / subject(i)
    for prefix, shape, kinds in [("aligned_", SHAPE, (35, 4)), ("", (9, 9, 9), (35, 4)), ("slice_", (6, 7), (24, 4))]:
        for image in ("orig", "norm"):
            write(folder / f"{prefix}{image}.nii.gz", rng.random(shape, np.float32))
        for kind in kinds:
            write(folder / f"{prefix}seg{kind}.nii.gz", rng.integers(0, 4, shape).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight subjects with gaps in their numbers, as published."""
    root = tmp_path_factory.mktemp("neurite")
    numbers = [457, 1, 3, 2, 7, 5, 9, 10]
    for i in numbers:
        write_subject(root, i)
    (root / "subjects.txt").write_text("\n".join(subject(i) for i in numbers) + "\n")
    for name in ("seg35", "seg24", "seg4"):
        (root / f"{name}_labels.txt").write_text(TABLE)
    return root


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Six subjects without subjects.txt, to be broken."""
    for i in range(1, 7):
        write_subject(tmp_path, i)
    return tmp_path


def sentence(root: Path, error: type[Exception] = ValueError, **options: object) -> str:
    with pytest.raises(error) as caught:
        NeuriteOASIS(str(root), **options).setup()  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listed(data: NeuriteOASIS, split: str) -> list[tuple[str, str]]:
    return [(fixed.id, moving.id) for fixed, moving in data.pairs(split)]  # type: ignore[arg-type]


def test_volumes_load(folder: Path) -> None:
    data = NeuriteOASIS(str(folder), normalise="none")
    data.setup()
    assert listed(data, "val") == [(subject(7), subject(9))]
    assert listed(data, "test") == [(subject(10), subject(457))]
    trained = {case for pair in listed(data, "train") for case in pair}
    assert trained == {subject(i) for i in (1, 2, 3, 5)} and len(listed(data, "train")) == 4 * 3
    assert data.label_names == {0: "Unknown", 1: "Left-Cerebral-White-Matter", 3: "Left-Lateral-Ventricle"}
    assert (data.spatial_dims, data.num_labels) == (3, 3)
    batch = next(iter(data.test_dataloader()))
    stored = nib.load(folder / subject(10) / "aligned_norm.nii.gz").get_fdata()  # type: ignore[attr-defined]
    assert_close(batch["fixed"][0, 0].double().numpy(), stored)
    assert batch["moving_label"].shape == (1, 1, *SHAPE) and batch["moving_id"] == [subject(457)]
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))["fixed"].shape == (1, 1, *SHAPE)


def test_slices_load(folder: Path) -> None:
    data = NeuriteOASIS(str(folder), image="slice_norm", segmentation="slice_seg24", splits=(2, 2, 3), batch_size=2)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["fixed"].shape == (2, 1, 6, 7) and batch["spacing"].shape == (2, 2) and data.spatial_dims == 2
    assert listed(data, "test") == [(subject(7), subject(9)), (subject(9), subject(10))]


@pytest.mark.parametrize(("count", "expected"), [(414, (300, 30, 84)), (100, (73, 7, 20)), (6, (2, 2, 2))])
def test_proportions(tmp_path: Path, count: int, expected: tuple[int, int, int]) -> None:
    for i in range(count):
        (tmp_path / subject(i)).mkdir()
    layout = NeuriteOASIS(str(tmp_path)).layout
    assert (len(layout.cases), len(layout.val) + 1, len(layout.test) + 1) == expected


def test_missing_files(copy: Path) -> None:
    (copy / subject(3) / "aligned_seg35.nii.gz").unlink()
    assert f"{subject(3)}/aligned_seg35.nii.gz does not exist" in sentence(copy, FileNotFoundError)
    (copy / "subjects.txt").write_text("\n".join(subject(i) for i in (1, 2, 4, 5, 6, 8)))
    assert f"{subject(8)}/aligned_norm.nii.gz does not exist" in sentence(
        copy, FileNotFoundError, segmentation=None, splits=(2, 2, 2)
    )


def test_broken_files(copy: Path) -> None:
    path = copy / subject(2) / "aligned_seg35.nii.gz"
    write(path, np.full(SHAPE, 1.5, np.float32))
    assert f"{path} has the value 1.5, expected integers" in sentence(copy)
    write(path, np.zeros((7, 6, 8), np.uint8))
    assert f"{path} has shape 7x6x8, expected 6x7x8" in sentence(copy)
    path.write_bytes(path.read_bytes()[:30])
    assert str(path) in sentence(copy)


def test_broken_lists(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "splits is [4, 2, 3], expected at most the 6 subjects" in sentence(copy, splits=(4, 2, 3))
    (copy / "seg35_labels.txt").write_text("0 Unknown 0 0 0 0\nLeft-Caudate\n")
    assert "seg35_labels.txt: row 2 is 'Left-Caudate'" in sentence(copy)
    (copy / "subjects.txt").write_text(f"{subject(1)}\n{subject(2)}\n{subject(1)}\n")
    assert f"subjects.txt lists {subject(1)} twice" in sentence(copy)
    (copy / "subjects.txt").write_text(f"{subject(1)}\n{subject(2)}\n")
    assert "has 2 subjects, expected at least 6" in sentence(copy)
    assert "has no subject" in sentence(tmp_path_factory.mktemp("empty"), FileNotFoundError)
    assert "is no folder" in sentence(copy / "nowhere", FileNotFoundError)


def test_options_that_do_not_fit(folder: Path) -> None:
    assert "segmentation is 'seg35', expected one of the space of image 'aligned_norm'" in sentence(
        folder, segmentation="seg35"
    )
    assert "splits is [1, 2, 2]" in sentence(folder, splits=(1, 2, 2))


def test_command_line(folder: Path, command, rows) -> None:
    config = Path(__file__).parents[1] / "experiments/classical/identity.yaml"
    given = ["--data.root", folder, "--data.image", "slice_norm", "--data.segmentation", "slice_seg4"]
    command("test", "--config", config, "--data", "data_modules.NeuriteOASIS", *given, "--trainer.accelerator", "cpu")
    (row,) = rows(Path("runs/identity_brains"))
    assert (row["fixed_id"], row["moving_id"]) == (subject(10), subject(457)) and 0 < float(row["dice"]) < 1
