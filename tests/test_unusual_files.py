"""Files as people have them: headers of two minds, units, FreeSurfer's files and labels, spreadsheets, macOS."""

import importlib
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from miniature import SHAPE, change_json, image, oasis, write, write_case
from scipy.ndimage import gaussian_filter

from data_modules import Learn2Reg, PairsCSV, SubjectsCSV
from data_modules.preparation.labels import chosen_labels
from dio_lightning.fields.placing import same_grid
from dio_lightning.headers import read_header

SIZE = (32, 36, 28)
SHIFT = np.array([3, -2, 1])
GRID = np.diag([2.0, 2.0, 2.0, 1.0])


def phantom(shift: np.ndarray = np.zeros(3, int)) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label map, shifted by whole voxels."""
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.standard_normal(SIZE), 3)
    label = np.digitize(noise, np.quantile(noise, [0.4, 0.6, 0.8])).astype(np.uint8)
    label[:6], label[-6:], label[:, :6], label[:, -6:], label[..., :6], label[..., -6:] = 0, 0, 0, 0, 0, 0
    picture = (50 * label + 10 * gaussian_filter(rng.standard_normal(SIZE), 1)).astype(np.float32)
    return np.roll(picture, shift, (0, 1, 2)), np.roll(label, shift, (0, 1, 2))


def pair(root: Path, moving_affine: np.ndarray = GRID, unit: str = "mm", factor: float = 1.0) -> Path:
    """A pair whose moving image is the fixed one, shifted, with landmarks; the table of it."""
    for side, shift, affine in (("fixed", 0 * SHIFT, GRID), ("moving", SHIFT, moving_affine)):
        for name, data in zip((side, f"{side}_label"), phantom(shift), strict=True):
            scaled = affine.copy()
            scaled[:3] *= factor
            volume = nib.Nifti1Image(data, scaled)
            volume.header.set_xyzt_units(unit)
            root.mkdir(exist_ok=True)
            nib.save(volume, root / f"{name}.nii.gz")
        points = np.array([[10, 12, 9], [15, 20, 14], [20, 9, 17.5]]) + shift
        np.savetxt(root / f"{side}.csv", points, delimiter=",", fmt="%.3f")
    columns = [f"{side}{kind}" for kind in ("", "_label", "_points") for side in ("fixed", "moving")]
    files = [f"{side}{end}" for end in (".nii.gz", "_label.nii.gz", ".csv") for side in ("fixed", "moving")]
    (root / "p.csv").write_text(f"{','.join(columns)}\n{','.join(files)}\n")
    return root / "p.csv"


def first(module: PairsCSV | Learn2Reg | SubjectsCSV) -> dict:
    module.setup("test")
    return next(iter(module.test_dataloader()))  # type: ignore[return-value]


def without_warnings(module: Learn2Reg, stage: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.setup(stage)


IDENTITY = ["--model", "DIO", "--model.features", "Intensity", "--model.features.levels", "[1]"]
IDENTITY += ["--model.layer", "OptimizerLayer", "--model.layer.iterations", "[0]"]


@pytest.mark.parametrize("scale", [1 + 1e-4, 1.25])
def test_the_sform_wins_in_every_command(tmp_path: Path, command, capsys, rows, scale: float) -> None:
    """A1: a qform of the scanner beside an sform that pixdim does not know; today's reader took the qform."""
    table = pair(tmp_path / "d")
    sform = GRID.copy()
    sform[0, 0] *= scale
    qform = GRID.copy()
    qform[:3, 3] = 12, -8, 10
    for name in ("moving", "moving_label", "fixed", "fixed_label"):
        path = table.parent / f"{name}.nii.gz"
        volume = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), sform)
        volume.header.set_qform(qform, 1)
        volume.header.set_sform(sform, 2)
        volume.header["pixdim"][1:4] = 2
        nib.save(volume, path)
        assert same_grid(SIZE, read_header(path).affine, SIZE, sform)
    batch = first(PairsCSV(str(table)))
    assert torch.allclose(batch["affine"][0], torch.from_numpy(sform), rtol=1e-6) and "moving_affine" not in batch
    command("test", *IDENTITY, "--data", "PairsCSV", "--data.csv", table, "--trainer.default_root_dir", tmp_path / "t")
    (row,) = rows(tmp_path / "t")
    assert float(row["tre"]) == pytest.approx(np.linalg.norm(SHIFT * [2 * scale, 2, 2]), rel=1e-4)
    predicting = ["--trainer.default_root_dir", tmp_path / "p"]
    command("predict", *IDENTITY, "--data", "PairsCSV", "--data.csv", table, *predicting)
    written = read_header(next((tmp_path / "p/predictions").glob("disp_*.nii.gz")))
    np.testing.assert_allclose(written.affine, sform, rtol=1e-5)
    command("check", "--data", "PairsCSV", "--data.csv", table)
    assert f"{np.round(2 * scale, 3):g}x2x2" in capsys.readouterr().out


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e3), ("meter", 1e-3), ("mm", 1.0), ("unknown", 1.0)])
def test_distances_are_millimetres_whatever_the_unit(tmp_path: Path, unit: str, factor: float) -> None:
    """A5."""
    batch = first(PairsCSV(str(pair(tmp_path / "d", unit=unit, factor=factor))))
    assert torch.allclose(batch["spacing"], torch.full((1, 3), 2.0)) and torch.allclose(
        batch["affine"][0], torch.from_numpy(GRID), atol=1e-5
    )


def test_freesurfers_files_are_read_like_nifti(tmp_path: Path) -> None:
    """B3, in a folder and in a table, beside labels in NIfTI."""
    for i in range(1, 7):
        write_case(tmp_path, f"Mini_{i:04d}_0000")
        path = tmp_path / image(i)
        volume = nib.load(path)
        nib.save(nib.MGHImage(np.asarray(volume.dataobj), volume.affine), str(path).replace(".nii.gz", ".mgz"))
        path.unlink()
    module = Learn2Reg(str(tmp_path))
    batch = first(module)
    assert batch["fixed_id"] == ["Mini_0005_0000"] and "fixed_label" in batch
    report = module.check()
    assert report.count("error") == 0 and not [f for f in report.findings if "Analyze" in f.sentence]


@pytest.mark.parametrize(("error", "accepted"), [(0.0, True), (5e-4, True), (2e-3, False)])
def test_scaled_labels_are_rounded_by_everybody_alike(tmp_path: Path, error: float, accepted: bool) -> None:
    """B7: label·10 with scl_slope 0.1 is a label; what is no label shows its digits."""
    write_case(tmp_path, "Mini_0001_0000")
    write_case(tmp_path, "Mini_0001_0001")
    path = tmp_path / "labelsTr/Mini_0001_0001.nii.gz"
    label = np.asarray(nib.load(path).dataobj).astype(np.int64)
    stored = nib.Nifti1Image((label * 10).astype(np.int16), read_header(path).affine)
    stored.header.set_slope_inter(0.1 * (1 + error / 3), 0)
    nib.save(stored, path)
    module = Learn2Reg(str(tmp_path))
    errors = [finding for finding in module.check().findings if finding.severity == "error"]
    if accepted:
        assert not errors
        with pytest.warns(UserWarning, match="same pairs"):
            batch = first(module)
        assert np.array_equal(batch["moving_label"][0, 0].numpy(), label)
    else:
        with pytest.raises(ValueError, match=r"has the value \d\.0\d{3,}, expected integers") as caught:
            module.setup()
        assert errors[0].sentence in str(caught.value)


def freesurfer(root: Path) -> Path:
    """A pair whose label maps hold what FreeSurfer writes."""
    table = pair(root)
    for side in ("fixed", "moving"):
        path = root / f"{side}_label.nii.gz"
        numbers = np.array([0, 1000, 2035, 576073732], np.int32)
        write(path, numbers[np.asarray(nib.load(path).dataobj)], GRID)
    return table


def test_labels_are_chosen_before_their_range_is_looked_at(tmp_path: Path) -> None:
    """B8, A8: labels beyond 2^24 keep their digits, may be left out, or get other numbers."""
    table = freesurfer(tmp_path / "d")
    with pytest.raises(ValueError, match=r"has the value 576073732, expected .*`--data.labels '\{576073732: 1\}'`"):
        first(PairsCSV(str(table)))
    batch = first(PairsCSV(str(table), labels=[1000, 2035]))
    assert batch["fixed_label"].unique().tolist() == [0, 1000, 2035]
    module = PairsCSV(str(table), labels={"1000": 1, "2035": 1, "576073732": 2})
    batch = first(module)
    original = np.asarray(nib.load(table.parent / "fixed_label.nii.gz").dataobj)
    expected = np.select([original == 576073732, original > 0], [2, 1], 0)
    assert np.array_equal(batch["fixed_label"][0, 0].numpy(), expected) and module.num_labels == 2
    with pytest.raises(ValueError, match=r"labels has 576073732, expected numbers up to 32767: give it another one"):
        first(PairsCSV(str(table), labels=[576073732]))
    # 576073728 is the same number in float32
    with pytest.raises(ValueError, match="has no label map with label 576073728 of `labels`"):
        first(PairsCSV(str(table), labels={"576073728": 1}))


def test_labels_may_be_named(tmp_path: Path, command, capsys) -> None:
    """D2, D3: names of the JSON, a suggestion for a misspelt one, and labels that no image has."""
    oasis(tmp_path / "d")
    batch = first(Learn2Reg(str(tmp_path / "d"), labels=["structure 3", 5], test_split="registration_val"))
    assert batch["fixed_label"].unique().tolist() == [0, 3, 5]
    module = Learn2Reg(str(tmp_path / "d"), labels={"structure 3": 1, "Structure 5": 2})
    module.setup("validate")
    assert module.label_names == {0: "structure 0", 1: "structure 3", 2: "structure 5"} and module.num_labels == 2
    with pytest.raises(ValueError, match=r"labels has 'strcture 3', expected a name .*did you mean structure 3 \(3\)"):
        Learn2Reg(str(tmp_path / "d"), labels="strcture 3").setup("validate")
    with pytest.raises(ValueError, match="expected numbers: the data set gives its labels no names"):
        chosen_labels("hippocampus", {})
    data = ["--data", "Learn2Reg", "--data.root", tmp_path / "d"]
    command("check", *data, "--data.labels", "[1, 2, 99]")
    assert "warning: " in (text := capsys.readouterr().out) and "has no label map with label 99 of `labels`" in text
    for choice in ("structure 7", "[structure 7, 3]", "{structure 7: 1}"):
        command("check", *data, "--data.labels", choice)
        assert "0 errors" in capsys.readouterr().out


def test_what_macos_leaves_beside_files_is_ignored(tmp_path: Path) -> None:
    """B9."""
    oasis(tmp_path)
    for path in [*tmp_path.rglob("*.nii.gz"), *tmp_path.glob("*.json")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
    change_json(tmp_path, "OASIS", training=None)
    module = Learn2Reg(str(tmp_path))
    module.setup("fit")
    assert len(module.layout.cases) == 4 and module.check().count("error") == 0


def test_spreadsheets(tmp_path: Path) -> None:
    """B10: byte-order marks in a JSON, landmarks and tables; semicolons get a sentence of their own."""
    oasis(tmp_path / "a")
    path = tmp_path / "a/OASIS_dataset.json"
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    Learn2Reg(str(tmp_path / "a")).setup("validate")
    table = pair(tmp_path / "b")
    points = table.parent / "moving.csv"
    points.write_text("\ufeff" + points.read_text(), encoding="utf-8")
    table.write_text("\ufeff" + table.read_text(), encoding="utf-8")
    assert first(PairsCSV(str(table)))["moving_points"].shape == (1, 3, 3)
    points.write_text(points.read_text().replace(",", ";"))
    with pytest.raises(ValueError, match=r"moving\.csv cannot be read as landmarks .*separated by ';', expected ','"):
        first(PairsCSV(str(table)))
    table.write_text(table.read_text().replace(",", ";"))
    with pytest.raises(ValueError, match=r"p\.csv separates its columns by ';', expected ','"):
        first(PairsCSV(str(table)))


def test_a_probability_map_is_no_mask(tmp_path: Path) -> None:
    """B11: a warning with both shares, in check and before training."""
    write_case(tmp_path, "Mini_0001_0000")
    write_case(tmp_path, "Mini_0001_0001")
    soft = np.zeros(SHAPE, np.float32)
    soft[:, :, :8], soft[:, :, :1] = 0.01, 0.9
    write(tmp_path / "masksTr/Mini_0001_0001.nii.gz", soft)
    sentence = r"is no mask of two values: 80\.0% of its voxels are above 0 and count as inside, 10\.0% are above half"
    with pytest.warns(UserWarning, match=sentence):
        Learn2Reg(str(tmp_path)).setup("fit")
    assert any("80.0% of its voxels" in finding.sentence for finding in Learn2Reg(str(tmp_path)).check().findings)


@pytest.mark.parametrize(("count", "sizes"), [(30, (24, 3, 3)), (6, (2, 2, 2)), (5, (3, 2, 2)), (3, (3, 3, 3))])
def test_a_folder_of_own_names_is_divided_in_three(tmp_path: Path, count: int, sizes: tuple, monkeypatch) -> None:
    """D4: own names, no JSON; nobody is in two splits unless a warning says so."""
    for i in range(count):
        write_case(tmp_path, f"my brain {i:02d}")
    told: list[str] = []
    monkeypatch.setattr("data_modules.volumes.rank_zero_info", told.append)
    monkeypatch.setattr("data_modules.volumes.rank_zero_warn", told.append)
    module = Learn2Reg(str(tmp_path))
    module.setup()
    images = [module.layout.images(split) for split in ("train", "val", "test")]
    assert tuple(map(len, images)) == sizes
    assert f"{sizes[0]} are for training, {sizes[1]} for validation, {sizes[2]} for test" in told[0]
    apart = not (images[0] & images[1] or images[0] & images[2] or images[1] & images[2])
    assert apart == (count >= 6) and len(told) == (1 if apart else 2)
    if not apart:
        assert "has the same pairs for" in told[1]


def test_a_table_of_subjects(tmp_path: Path) -> None:
    """D5."""
    for i in range(6):
        write_case(tmp_path, f"sub-{i}", points=4)
    columns = "image,label,mask,points,name,split"
    rows = [
        f"imagesTr/sub-{i}.nii.gz,labelsTr/sub-{i}.nii.gz,masksTr/sub-{i}.nii.gz,keypointsTr/sub-{i}.csv,person{i},{split}"
        for i, split in enumerate(["train", "train", "val", "val", "test", "test"])
    ]
    (tmp_path / "subjects.csv").write_text("\n".join([columns, *rows]) + "\n")
    module = SubjectsCSV(str(tmp_path / "subjects.csv"))
    module.setup()
    batch = next(iter(module.test_dataloader()))
    assert (batch["fixed_id"], batch["moving_id"]) == (["person4"], ["person5"])
    assert {"fixed_label", "moving_mask", "fixed_points"} <= batch.keys()
    assert {case.id for case in module.layout.split_cases("train")} == {"person0", "person1"}
    (tmp_path / "plain.csv").write_text("\n".join(["image", *(row.split(",")[0] for row in rows)]) + "\n")
    plain = SubjectsCSV(str(tmp_path / "plain.csv"))
    assert [len(plain.layout.images(split)) for split in ("train", "val", "test")] == [2, 2, 2]
    for text, sentence in {
        "picture\na.nii": "has no column 'image' in its first row",
        "image,mood\na.nii,1": "has the column 'mood', expected some of image, label, mask, points, name, split",
        "image\na.nii\na.nii": "line 3 repeats the image of line 2, expected every subject once",
        "image\na.nii\nb.nii\n./a.nii": "line 4 repeats the image of line 2, expected every subject once",
        "image\na.nii\nsub/../a.nii": "line 3 repeats the image of line 2, expected every subject once",
        "image,split\na.nii,train\nb.nii,train\nc.nii,test": "has one subject with the split 'test', expected at",
        "image,label\na.nii,b.nii\nc.nii,": "line 3 has no label, expected a path as line 2 has a label",
    }.items():
        (tmp_path / "bad.csv").write_text(text + "\n")
        with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
            SubjectsCSV(str(tmp_path / "bad.csv")).setup("test")


def test_an_atlas_alone_may_have_labels(tmp_path: Path, command) -> None:
    """D6: label propagation; the fixed image has none, so that predict carries those of the atlas to its grid."""
    table = pair(tmp_path / "d")
    table.write_text("fixed,moving,moving_label\nfixed.nii.gz,moving.nii.gz,moving_label.nii.gz\n")
    module = PairsCSV(str(table))
    batch = first(module)
    assert "moving_label" in batch and "fixed_label" not in batch
    assert module.check().count("error") == 0
    command("predict", *IDENTITY, "--data", "PairsCSV", "--data.csv", table, "--trainer.default_root_dir", tmp_path)
    (written,) = (tmp_path / "predictions").glob("label_*.nii.gz")
    header = read_header(written)
    assert header.dtype == np.int16 and same_grid(header.shape, header.affine, header.shape, GRID)
    np.testing.assert_array_equal(header.values(), phantom(SHIFT)[1])


LAYOUT = '''
"""Images of one folder, in consecutive pairs."""

from itertools import pairwise

from data_modules.layout import Case, Layout
from data_modules.volumes import VolumePairs
from dio_lightning.headers import is_image


class Flat(VolumePairs):
    """Every image of the folder."""

    def read_layout(self) -> Layout:
        """Consecutive pairs for the test."""
        cases = [Case(path) for path in sorted(self.root.iterdir()) if is_image(path)]
        return Layout([], [], [], list(pairwise(cases)), {})
'''


def test_a_layout_is_one_file_one_export_one_test(tmp_path: Path, command, capsys, rows, monkeypatch) -> None:
    """A file as in sources/, an export as in data_modules/__init__.py, this test: nothing else knows of a layout."""
    package = tmp_path / "more_data"
    package.mkdir()
    (package / "flat.py").write_text(LAYOUT)
    (package / "__init__.py").write_text("from more_data.flat import Flat\n\n__all__ = ['Flat']\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("more_data")
    for i in range(3):
        write(tmp_path / f"d/case_{i:04d}_0000.nii.gz", np.random.default_rng(i).random((16, 16, 16), np.float32), GRID)
    data = ["--data", "more_data.Flat", "--data.root", tmp_path / "d"]
    command("check", *data)
    assert "0 errors" in capsys.readouterr().out
    command("test", *IDENTITY, *data, "--trainer.default_root_dir", tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 2
    (tmp_path / "d/case_0001_0000.nii.gz").write_text("no")
    with pytest.raises(SystemExit):
        command("test", *IDENTITY, *data)
    assert "case_0001_0000.nii.gz cannot be read (" in capsys.readouterr().err
    del sys.modules["more_data"], sys.modules["more_data.flat"]
