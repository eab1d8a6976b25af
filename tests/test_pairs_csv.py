"""Pairs from a table: columns, paths, splits, ids, two grids in a pair."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data_modules import PairsCSV
from data_modules.sources.tables import distinct_names

HEADER = "fixed,moving,fixed_label,moving_label,fixed_mask,moving_mask,fixed_points,moving_points,split"


def write(path: Path, shape: tuple[int, ...] = (6, 7, 8), spacing: float = 1.0, labels: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*"/".join(path.parts[-3:]).encode()])
    data = rng.integers(0, 3, shape).astype(np.uint8) if labels else rng.random(shape, np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([spacing, spacing, spacing, 1])), path)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three visits of two people, in folders of their own; the second person's images are smaller."""
    root = tmp_path_factory.mktemp("images")
    for person, shape, spacing in [("anna", (6, 7, 8), 1.0), ("bert", (5, 6, 4), 2.0)]:
        for visit in ("one", "two", "three"):
            folder = root / person / visit
            write(folder / "t1.nii.gz", shape, spacing)
            write(folder / "label.nii.gz", shape, spacing, labels=True)
            write(folder / "mask.nii.gz", shape, spacing, labels=True)
            np.savetxt(folder / "points.csv", [[1, 2, 3], [2.5, 4, 1]], delimiter=",")
    return root


def table(root: Path, *lines: str, name: str = "pairs.csv") -> Path:
    path = root / name
    path.write_text("\n".join(lines) + "\n")
    return path


def row(fixed: str, moving: str, split: str, *kinds: str) -> str:
    kinds = kinds or ("label.nii.gz", "mask.nii.gz", "points.csv")
    cells = [f"{side}/{kind}" for kind in kinds for side in (fixed, moving)]
    return ",".join([f"{fixed}/t1.nii.gz", f"{moving}/t1.nii.gz", *cells, split])


def ready(path: Path, stage: str | None = None, **options: object) -> PairsCSV:
    data = PairsCSV(str(path), **options)  # type: ignore[arg-type]
    data.setup(stage)
    return data


def sentence(path: Path, error: type[Exception] = ValueError, stage: str = "test", **options: object) -> str:
    with pytest.raises(error) as caught:
        ready(path, stage, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_column(images: Path, tmp_path: Path) -> None:
    lines = [row("anna/one", "anna/two", "train"), row("anna/two", "anna/one", "train")]
    path = table(tmp_path, HEADER, *lines, row("bert/one", "bert/two", "val"), row("anna/three", "bert/three", "test"))
    data = ready(path, root=str(images))
    for split, loader, count in [
        ("train", data.train_dataloader(), 2),
        ("val", data.val_dataloader(), 1),
        ("test", data.test_dataloader(), 1),
    ]:
        batches = list(loader)
        assert len(batches) == count, split
    batch = batches[0]
    assert (batch["fixed_id"], batch["moving_id"]) == (["anna_three_t1"], ["bert_three_t1"])
    assert batch["fixed"].shape == batch["fixed_label"].shape == batch["fixed_mask"].shape == (1, 1, 6, 7, 8)
    assert batch["moving"].shape == batch["moving_label"].shape == (1, 1, 5, 6, 4)
    assert_close(batch["moving_affine"][0].diagonal(), torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    assert_close(batch["fixed_points"][0].T, torch.tensor([[1.0, 2, 3], [2.5, 4, 1]]))
    assert (data.num_labels, data.spatial_dims) == (2, 3)


def test_without_split_all_rows_are_everywhere(images: Path) -> None:
    """Paths are relative to the file, absolute ones and a byte order mark are taken, rows may be blank."""
    absolute = images / "anna/three/t1.nii.gz"
    path = table(
        images, "\ufefffixed,moving", "anna/one/t1.nii.gz,anna/two/t1.nii.gz", "", f"{absolute},anna/two/t1.nii.gz"
    )
    data = ready(path, batch_size=2)
    expected = ["one_t1", "three_t1"]
    assert data.pairs("train") == data.pairs("val") == data.pairs("test")
    (batch,) = data.test_dataloader()
    assert batch["fixed_id"] == expected and "moving_affine" not in batch and data.num_labels == 0
    assert sorted(next(iter(data.train_dataloader()))["fixed_id"]) == expected


def test_names() -> None:
    paths = [Path(p) for p in ("/d/a/x.nii.gz", "/d/b/x.nii.gz", "/d/b/y.img", "/e/b/x.nii")]
    assert [*distinct_names(paths).values()] == ["a_x", "d_b_x", "y", "e_b_x"]
    with pytest.raises(ValueError, match=r"a/x.nii and another file get the id 'd_a_x'"):
        distinct_names([Path("/d/a/x.nii"), Path("/d/a/x.nii.gz")])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["fixed,target", "a,b"], "has no column 'moving'"),
        (["fixed;moving", "a;b"], "separates its columns by ';', expected ','"),
        (["fixed,moving,labels", "a,b,c"], "has the column 'labels', expected some of fixed, moving, fixed_label"),
        (["fixed,moving,moving", "a,b,c"], "has the column 'moving' twice"),
        (["fixed,moving,fixed_points", "a,b,c"], "has the column 'fixed_points' without 'moving_points'"),
        (["fixed,moving"], "has no rows"),
        ([""], "has no column 'fixed'"),
        (["fixed,moving", "a,b", "a,"], "line 3 has no moving, expected a path of an image"),
        (["fixed,moving", "a,b,c"], "line 2 has 3 cells, expected 2"),
        (["fixed,moving,split", "a,b,training"], "line 2 has the split 'training', expected one of train, val, test"),
        (
            ["fixed,moving,fixed_label,moving_label", "a,b,c,d", "b,a,,"],
            "line 3 has no fixed_label, expected a path as line 2 has a label",
        ),
        (["fixed,moving", "a,b", "b,a", "a,b"], "line 4 repeats the pair of line 2"),
        (["fixed,moving", "a,b", "a,a"], "line 3 pairs"),
        (["fixed,moving", "a,b", "b,./sub/../b"], "with itself, expected two images"),
        (["fixed,moving,split", "a,b,train", "a,b,test"], "line 3 repeats the pair of line 2"),
        (["fixed,moving,split", "a,b,train", "c,a,test"], "a is in line 2 for training too"),
    ],
)
def test_broken_tables(tmp_path: Path, lines: list[str], expected: str) -> None:
    path = table(tmp_path, *lines)
    told = sentence(path)
    assert told.startswith(str(path)) and expected in told


def test_atlas_and_missing_splits(images: Path) -> None:
    """One fixed image for all rows may be in every split; a split that is not there has no pairs."""
    one, two, three = (f"anna/{visit}/t1.nii.gz" for visit in ("one", "two", "three"))
    path = table(images, "fixed,moving,split", f"{one},{two},train", f"{one},{three},test", name="atlas.csv")
    assert len(ready(path, "test").pairs("test")) == 1
    assert "has no row with the split 'val'" in sentence(path, stage="fit")


def test_broken_files(images: Path, tmp_path: Path) -> None:
    assert "nowhere.csv does not exist" in sentence(tmp_path / "nowhere.csv", FileNotFoundError)
    path = table(tmp_path, "fixed,moving", "anna/one/t1.nii.gz,anna/four/t1.nii.gz")
    assert f"{images / 'anna/four/t1.nii.gz'} does not exist" in sentence(path, FileNotFoundError, root=str(images))
    lines = ["fixed,moving,fixed_points,moving_points", "t1.nii.gz,mask.nii.gz,points.csv,points_4d.csv"]
    path = table(tmp_path, *lines)
    assert "points_4d.csv does not exist" in sentence(path, FileNotFoundError, root=str(images / "anna/one"))
    path = table(tmp_path, "fixed,moving", "anna/one/t1.nii.gz,bert/one/t1.nii.gz")
    assert "bert/one/t1.nii.gz has shape 5x6x4, expected 6x7x8" in sentence(path, root=str(images), common_grid=True)
    lines = ["fixed,moving,fixed_label,moving_label", "t1.nii.gz,t1b.nii.gz,label.nii.gz,half.nii.gz"]
    for name in ("t1", "t1b", "label"):
        write(tmp_path / f"{name}.nii.gz", labels=True)
    write(tmp_path / "half.nii.gz")
    assert f"{tmp_path / 'half.nii.gz'} has the value" in sentence(table(tmp_path, *lines))


def test_command_line(images: Path, tmp_path: Path, command, rows) -> None:
    path = table(tmp_path, HEADER, row("anna/one", "anna/two", "test"), row("anna/one", "bert/two", "test"))
    config = Path(__file__).parents[1] / "experiments/classical/identity.yaml"
    given = ["--data", "PairsCSV", "--data.csv", path, "--data.root", images]
    command("test", "--config", config, *given, "--trainer.accelerator", "cpu")
    found = rows(Path("runs/identity_brains"))
    assert [row["moving_id"] for row in found] == ["anna_two_t1", "bert_two_t1"]
    assert float(found[0]["tre"]) == 0 and float(found[0]["dice"]) > 0
