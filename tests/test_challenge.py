"""Fields in files: every layout and its refusals, scores that survive a round trip, and what may be submitted."""

import csv
import json
from pathlib import Path
from zipfile import ZipFile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter, zoom

from data_modules import SyntheticPairs
from dio_lightning.fields.files import read_displacement
from dio_lightning.fields.names import pair_names
from dio_lightning.metrics import sdlogj
from dio_lightning.modules import Precomputed

TINY = str(Path(__file__).parent / "conf/tiny.yaml")
SIZE = (8, 10, 12)
AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


def field(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return np.stack([gaussian_filter(rng.normal(size=size), 1.5) * 6 for _ in size], -1).astype(np.float32)


def write(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, array)
    else:
        nib.save(nib.Nifti1Image(array, affine), path)
    return path


def read(path, size=SIZE):
    return read_displacement(path, size).numpy()


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (3, 0, 1, 2)], ids=["last", "first"])
@pytest.mark.parametrize("suffix", ["nii.gz", "npz"])
def test_channels_may_be_last_or_first(tmp_path, layout, suffix):
    u = field()
    np.testing.assert_array_equal(read(write(tmp_path / f"disp.{suffix}", u.transpose(layout))), np.moveaxis(u, -1, 0))


def test_slices_and_five_axes_are_read(tmp_path):
    u, flat = field(), field(size=(8, 10))
    np.testing.assert_array_equal(read(write(tmp_path / "a.nii.gz", u[:, :, :, None])), np.moveaxis(u, -1, 0))
    for name, array in {"b": flat[:, :, None], "c": flat, "d": np.moveaxis(flat, -1, 0)}.items():
        np.testing.assert_array_equal(
            read(write(tmp_path / f"{name}.npz", array), (8, 10)), np.moveaxis(flat, -1, 0), err_msg=name
        )


@pytest.mark.parametrize("size", [SIZE, (7, 9, 11)], ids=["even", "odd"])
def test_half_resolution_is_enlarged_as_learn2reg_does_it(tmp_path, size):
    halved = field(size=tuple((n + 1) // 2 for n in size)).astype(np.float16)
    for name, array in {"last": halved, "first": np.moveaxis(halved, -1, 0)}.items():
        factors = [n / ((n + 1) // 2) for n in size]
        expected = np.stack([zoom(halved[..., i].astype(float), factors, order=2) for i in range(3)])
        np.testing.assert_allclose(read(write(tmp_path / f"{name}.npz", array), size), expected, atol=1e-5)


def test_a_field_of_itk_is_turned_into_voxels(tmp_path):
    turned = AFFINE.copy()
    turned[:3, :3] = turned[:3, :3] @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    u = field()
    nib.save(nib.Nifti1Image(np.zeros(SIZE, np.float32), turned), tmp_path / "fixed.nii.gz")
    fixed = sitk.ReadImage(tmp_path / "fixed.nii.gz")
    # where SimpleITK says that a voxel and its image lie
    vectors = np.zeros((*SIZE, 3))
    for x in np.ndindex(*SIZE):
        there = fixed.TransformContinuousIndexToPhysicalPoint([float(c) for c in np.array(x) + u[x]])
        vectors[x] = np.subtract(there, fixed.TransformIndexToPhysicalPoint(x))
    image = sitk.GetImageFromArray(vectors.transpose(2, 1, 0, 3), isVector=True)
    image.CopyInformation(fixed)
    sitk.WriteImage(image, tmp_path / "warp.nii.gz")
    np.testing.assert_allclose(read(tmp_path / "warp.nii.gz"), np.moveaxis(u, -1, 0), atol=1e-4)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 10, 11, 3), np.float32), "has shape 8x10x11x3, expected 8x10x12x3$"),
        (np.zeros((12, 10, 8, 3), np.float32), "has shape 12x10x8x3, expected 8x10x12x3: its axes look permuted"),
        (np.zeros((3, 8, 12, 10), np.float32), "axes look permuted"),
        (np.full((*SIZE, 3), np.nan, np.float32), "has 2880 values that are NaN or infinite"),
    ],
)
def test_a_wrong_field_is_one_sentence(tmp_path, array, words):
    path = write(tmp_path / "disp_0001_0002.npz", array)
    with pytest.raises(ValueError, match=rf"disp_0001_0002.npz.* {words}"):
        read(path)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    np.savez(tmp_path / "two.npz", field(), field())
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    whole = write(tmp_path / "whole.nii.gz", field()).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("a,b")
    np.savez(tmp_path / "objects.npz", np.array([None]))
    for name, words in {"two": "holds 2 arrays", "broken": "cannot", "text": "cannot", "objects": "cannot"}.items():
        with pytest.raises(ValueError, match=rf"{name}.npz {words}"):
            read(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"cut.nii.gz cannot be read"):
        read(tmp_path / "cut.nii.gz")


@pytest.mark.parametrize(
    ("fixed", "moving", "names"),
    [
        ("Brain_0011_0000", "Brain_0012_0000", ("0011_0012", "0011_0000_0012_0000")),
        ("Lung_0001_0000", "Lung_0001_0001", ("0001_0001", "0001_0000_0001_0001")),
        ("Thorax_0001_0001", "Thorax_0001_0000", ("0001_0001_0001_0000",)),
        ("Thorax_0001_0002", "Thorax_0003_0002", ("0001_0003", "0001_0002_0003_0002")),
        ("0395", "0396", ("0395_0396", "0395_0000_0396_0000")),
        ("sub-01", "sub-02", ("sub-01_sub-02",)),
    ],
)
def test_learn2regs_own_name_comes_first(fixed, moving, names):
    assert pair_names(fixed, moving) == names


def pair(*ids):
    names = [f"Mini_{i:04d}_0000" for i in ids]
    return {"fixed": torch.zeros(1, 1, *SIZE), "fixed_id": [names[0]], "moving_id": [names[1]]}


def test_a_folder_has_one_file_a_pair(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Precomputed(str(tmp_path / "nowhere"))
    module = Precomputed(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no disp_0001_0002.nii.gz or disp_0001_0000_0002_0000.nii.gz"):
        module.register(pair(1, 2))
    write(tmp_path / "disp_0001_0000_0002_0000.npz", field())
    np.testing.assert_array_equal(module.register(pair(1, 2))[0], np.moveaxis(field(), -1, 0))
    write(tmp_path / "disp_0001_0002.nii.gz", field())
    with pytest.raises(ValueError, match=r"has disp_0001_0002.nii.gz and disp_0001_0000_0002_0000.npz for fixed"):
        module.register(pair(1, 2))


SCORES = ("dice", "hd95", "hd", "hd_missed", "tre", "folds", "sdlogj", "std_logj", "dice_identity")


def scores(folder, name="metrics.csv"):
    with open(folder / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a test of an untrained DIO, and of its fields in two formats."""
    from dio_lightning.cli import main

    root = tmp_path_factory.mktemp("runs")
    quiet = ["--config", TINY, "--trainer.logger", "false"]
    main(["test", "--trainer.default_root_dir", str(root / "test"), *quiet])
    callback = "--trainer.callbacks"
    half = [f"{callback}.format", "npz", f"{callback}.resolution", "half"]
    for name, options in {"nii": [], "half": half}.items():
        main(["predict", *quiet, callback, "FieldWriter", f"{callback}.out", str(root / name), *options])
    return root


def test_written_fields_score_exactly_as_their_method(runs, command, tmp_path):
    command("evaluate", runs / "nii", "--config", TINY, "--out", "out", "--l2r")
    expected, found = scores(runs / "test"), scores(tmp_path / "out")
    official = scores(tmp_path / "out", "metrics_l2r.csv")
    assert len(found) == len(expected) == 3 and "steps" not in found[0]
    for one, two, three in zip(expected, found, official, strict=True):
        for score in SCORES:
            assert one[score] == two[score]
        # spacing is 1, so the quirks show nowhere but in a structure that the warp has lost: it is infinitely far
        lost = int(float(two["hd_missed"])) > 0
        for score in ("dice", "hd95", "tre", "sdlogj"):
            expected_score = np.inf if lost and score == "hd95" else pytest.approx(float(two[score]), rel=1e-6)
            assert float(three[f"{score}_l2r"]) == expected_score
        assert three["std_logj"] == two["std_logj"] and float(three["num_foldings_l2r"]) == 0
    summary = json.loads((tmp_path / "out/summary_l2r.json").read_text())
    dice = [float(row["dice"]) for row in found]
    assert summary["dice"] == pytest.approx({"mean": np.mean(dice), "std": np.std(dice), "30": np.quantile(dice, 0.3)})


def test_evaluate_takes_options_in_any_order_and_keeps_earlier_scores(runs, command, capsys):
    """B12 and D8: all scores went to runs/evaluate, whatever the fields, and nothing said so."""
    for folder, place in (("nii", "runs/evaluate"), ("half", "runs/evaluate_2"), ("nii", "runs/evaluate")):
        command("evaluate", runs / folder, "--data.test_pairs", 3, "--config", TINY)
        shown = capsys.readouterr().out
        assert shown.splitlines()[-1] == f"wrote {place}" and f"({folder}" not in shown
    command("evaluate", runs / "nii", "--data.test_pairs", 2, "--config", TINY, "--out", "out")
    with pytest.raises(SystemExit):
        command("evaluate", runs / "half", "--config", TINY, "--out", "out")
    assert "out holds the scores of another configuration" in capsys.readouterr().err
    assert len(scores(Path("out"))) == 2


def test_half_resolution_costs_little_and_masks_are_obeyed(runs, command, tmp_path):
    command("evaluate", runs / "half", "--config", TINY, "--out", "out", "--l2r", "--masked")
    expected, found = scores(runs / "test"), scores(tmp_path / "out")
    official = scores(tmp_path / "out", "metrics_l2r.csv")
    for one, two, three in zip(expected, found, official, strict=True):
        assert float(two["dice"]) == pytest.approx(float(one["dice"]), abs=0.05)
        assert float(two["tre"]) == pytest.approx(float(one["tre"]), abs=0.5)
        assert float(three["sdlogj_l2r"]) == pytest.approx(float(two["sdlogj"]), rel=1e-6)
    data = SyntheticPairs((24, 20), 3, test_pairs=3)
    first = next(iter(data.test_dataloader()))
    u = torch.from_numpy(read(runs / "half/disp_0000_0000_0000_0001.npz", (24, 20)))[None]
    assert float(official[0]["sdlogj_l2r"]) == pytest.approx(sdlogj(u, 2, first["fixed_mask"]).item(), rel=1e-6)
    assert abs(sdlogj(u).item() - float(official[0]["sdlogj_l2r"])) > 1e-4


@pytest.fixture
def submission(tmp_path):
    """A Learn2Reg folder of two test pairs and a folder with their fields."""
    for i in (1, 2, 3):
        image = np.random.default_rng(i).integers(0, 200, SIZE).astype(np.uint8)
        write(tmp_path / f"data/imagesTr/Mini_{i:04d}_0000.nii.gz", image)
    names = [f"./imagesTr/Mini_{i:04d}_0000.nii.gz" for i in (1, 2, 3)]
    pairs = [{"fixed": names[0], "moving": names[1]}, {"fixed": names[1], "moving": names[2]}]
    content = {"name": "Mini", "pairings": "unpaired", "registration_val": pairs}
    (tmp_path / "data/Mini_dataset.json").write_text(json.dumps(content))
    write(tmp_path / "fields/disp_0001_0002.nii.gz", field())
    write(tmp_path / "fields/disp_0002_0000_0003_0000.npz", field(1).astype(np.float16))
    write(tmp_path / "fields/warped_0001_0002.nii.gz", np.zeros(SIZE, np.float32))
    return tmp_path / "fields"


def submit(command, *options):
    command(
        "submit", "fields", "--data.root", Path("data").resolve(), "--data", "Learn2Reg", "--out", "out.zip", *options
    )


def refusal(command, capsys, *options):
    with pytest.raises(SystemExit) as stopped:
        submit(command, *options)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dio-lightning: error: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


def test_a_submission_is_a_flat_zip_with_the_names_that_learn2reg_looks_for(submission, command, capsys):
    submit(command)
    with ZipFile("out.zip") as archive:
        assert sorted(archive.namelist()) == ["disp_0001_0002.nii.gz", "disp_0002_0003.npz"]
        assert archive.read("disp_0001_0002.nii.gz") == (submission / "disp_0001_0002.nii.gz").read_bytes()
    assert "with 2 displacement fields" in capsys.readouterr().out
    assert "out.zip exists" in refusal(command, capsys)
    write(submission / "disp_0001_0002.nii.gz", np.zeros((*SIZE, 3), np.float32))
    write(submission / "disp_0002_0000_0003_0000.npz", 100 * field(1))
    submit(command, "--overwrite")
    warnings = capsys.readouterr().err
    assert "disp_0001_0002.nii.gz is zero everywhere" in warnings and "on a grid of 12" in warnings


def test_a_submission_that_would_fail_is_refused(submission, command, capsys):
    path = submission / "disp_0001_0002.nii.gz"
    bad = field()
    bad[0, 0, 0, 0] = np.inf
    for array, words in [
        (bad, "has 1 values that are NaN or infinite"),
        (field().astype(np.int16), "has the type int16, expected float32"),
        (np.moveaxis(field(), -1, 0), "has shape 3x8x10x12, expected 8x10x12x3"),
        (field(size=(4, 5, 6)), "has shape 4x5x6x3, expected 8x10x12x3"),
    ]:
        write(path, array)
        assert words in refusal(command, capsys)
    path.unlink()
    write(submission / "disp_0009_0002.nii.gz", field())
    sentence = refusal(command, capsys)
    assert "has no disp_0001_0002.nii.gz" in sentence and "disp_0009_0002.nii.gz belongs to no pair" in sentence
    assert not list(submission.parent.glob("*.zip"))


@pytest.mark.parametrize(
    ("intent", "name", "words"),
    [
        (2006, "", "is a field of FSL in millimetres, expected voxels of the fixed grid: `dio-lightning transform"),
        (2008, "", "holds coefficients of FNIRT, expected voxels of the fixed grid"),
        (1007, "Mapping", "is a deformation of SPM, expected voxels of the fixed grid"),
    ],
)
def test_fields_of_other_tools_are_taken_for_voxels_by_neither_command(
    submission, command, capsys, intent, name, words
):
    path = submission / "disp_0001_0002.nii.gz"
    image = nib.Nifti1Image(field(), AFFINE)
    image.header.set_intent(intent, name=name, allow_unknown=True)
    nib.save(image, path)
    assert words in refusal(command, capsys)
    with pytest.raises(SystemExit):
        command("evaluate", "fields", "--data", "Learn2Reg", "--data.root", Path("data").resolve(), "--out", "scores")
    assert words in capsys.readouterr().err


def test_half_resolution_is_submitted_where_it_is_asked_for(submission, command, capsys):
    for name in ("disp_0001_0002.nii.gz", "disp_0002_0000_0003_0000.npz"):
        (submission / name).unlink()
    write(submission / "disp_0001_0002.npz", field(size=(4, 5, 6)))
    write(submission / "disp_0002_0003.npz", np.moveaxis(field(size=(4, 5, 6)), -1, 0))
    submit(command, "--resolution", "half")
    with ZipFile("out.zip") as archive:
        assert sorted(archive.namelist()) == ["disp_0001_0002.npz", "disp_0002_0003.npz"]


def test_all_missing_fields_are_named_before_any_is_scored(submission, command, capsys, monkeypatch):
    for file in submission.glob("disp_*"):
        file.unlink()
    monkeypatch.setattr(Precomputed, "register", lambda *_: pytest.fail("nothing may be scored"))
    with pytest.raises(SystemExit):
        command("evaluate", "fields", "--data", "Learn2Reg", "--data.root", Path("data").resolve())
    sentence = capsys.readouterr().err
    assert all(word in sentence for word in ("lacks 2 of 2", "disp_0001_0002.nii.gz", "disp_0002_0003.nii.gz"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--l2r", "fields"], "expected FOLDER before all options"),
        ([], "expected FOLDER before all options"),
        (["fields", "--model", "DIO"], "the option --model has no meaning here"),
        (["fields", "--trainer.default_root_dir=x"], "give --out instead"),
        (["nowhere", "--data", "SyntheticPairs"], "nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_sentence(submission, command, capsys, arguments, words):
    with pytest.raises(SystemExit):
        command("evaluate", *arguments)
    assert words in capsys.readouterr().err.splitlines()[-1]
