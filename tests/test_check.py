"""`dio-lightning check`: healthy folders of every layout pass, every broken file is named, scores are right."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from miniature import AFFINE, SHAPE, change_json, image, listed, nlst, oasis, write, write_json, write_points

from data_modules import Learn2Reg
from dio_lightning.checking.command import examined
from dio_lightning.checking.text import show
from dio_lightning.cli import main


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    """Exit code and output."""
    try:
        main(["check", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    print(printed.err, file=sys.stderr)
    return code, printed.out


def learn2reg(capsys: pytest.CaptureFixture, root: Path, *more: object) -> tuple[int, str]:
    return run(capsys, "--data", "Learn2Reg", "--data.root", root, *more)


def broken(capsys: pytest.CaptureFixture, root: Path, **settings: object) -> tuple[int, str]:
    """As `learn2reg`, without a command line to parse."""
    report, scores = examined(Learn2Reg(str(root), **settings))
    show(report, scores)
    return int(report.count("error") > 0), capsys.readouterr().out


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def dice(fixed: np.ndarray, moving: np.ndarray) -> float:
    """Mean over the labels that both have."""
    both = sorted({*np.unique(fixed)} & {*np.unique(moving)} - {0})
    return float(
        np.mean([2 * ((fixed == k) & (moving == k)).sum() / ((fixed == k).sum() + (moving == k).sum()) for k in both])
    )


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    """Six subjects as in OASIS, of which two pairs are held out; smooth labels that all subjects have."""
    i, j, k = np.indices(SHAPE)
    for n in range(1, 7):
        rng = np.random.default_rng(n)
        label = (1 + (i + n) // 3 % 2 + 2 * (j // 5)) * (k > 1)
        name = f"Mini_{n:04d}_0000.nii.gz"
        write(tmp_path / f"imagesTr/{name}", rng.integers(0, 200, SHAPE).astype(np.uint8))
        write(tmp_path / f"labelsTr/{name}", label.astype(np.uint8))
        write(tmp_path / f"masksTr/{name}", (k > 1).astype(np.uint8))
    write_json(
        tmp_path,
        pairings="unpaired",
        labels={"0": {str(n): f"structure {n}" for n in range(5)}},
        tensorImageShape={"0": list(SHAPE)},
        training=[{"image": image(n)} for n in range(1, 7)],
        registration_val=listed((image(3), image(4))),
        registration_test=listed((image(5), image(6)), (image(6), image(5))),
    )
    return tmp_path


@pytest.fixture
def lungs(tmp_path: Path) -> Path:
    return nlst(tmp_path)


def test_healthy_brains_pass_with_their_initial_dice(brains: Path, capsys: pytest.CaptureFixture) -> None:
    out = brains / "report.json"
    code, text = learn2reg(capsys, brains, "--json", out)
    report = json.loads(out.read_text())
    assert code == 0 and report["findings"] == []
    assert text.splitlines()[-2:] == ["0 errors, 0 warnings", f"wrote {out}"]
    labels = {n: stored(brains / f"labelsTr/Mini_{n:04d}_0000.nii.gz") for n in (3, 4, 5, 6)}
    assert report["scores"]["val"]["dice"]["mean"] == pytest.approx(dice(labels[3], labels[4]))
    test = [dice(labels[5], labels[6]), dice(labels[6], labels[5])]
    assert report["scores"]["test"]["dice"] == {
        "mean": pytest.approx(np.mean(test)), "std": pytest.approx(np.std(test)), "n": 2,
        "worst": pytest.approx(min(test)), "pair": "Mini_0005_0000 Mini_0006_0000",
    }  # fmt: skip
    assert report["scores"]["val"]["mask_dice"]["mean"] == 1.0
    for word in ("shape [voxels]", "8x9x10", "2x2x3", "LAS", "drawn at random", "80.0%"):
        assert word in text
    assert [case["id"] for case in report["cases"]] == [f"Mini_{n:04d}_0000" for n in (1, 2, 3, 4, 5, 6)]
    assert report["cases"][0]["labels"] == [1, 2, 3, 4] and report["cases"][0]["shape"] == [8, 9, 10]


def test_healthy_lungs_pass_with_their_initial_error(lungs: Path, capsys: pytest.CaptureFixture) -> None:
    window = ("--data.normalise", "window", "--data.clip", "[-1000, 500]", "--json", lungs / "report.json")
    code, text = learn2reg(capsys, lungs, *window)
    assert code == 0 and text.splitlines()[-2] == "0 errors, 1 warning"
    assert f"warning: {lungs}: has the same pairs for validation and test" in text
    errors = []
    for n in (101, 102):
        fixed, moving = (np.loadtxt(lungs / f"keypointsTr/NLST_{n:04d}_{m:04d}.csv", delimiter=",") for m in (0, 1))
        errors.append(np.linalg.norm((fixed - moving) * np.abs(np.diag(AFFINE)[:3]), axis=1).mean())
    found = json.loads((lungs / "report.json").read_text())["scores"]["val"]["tre"]
    assert found["mean"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert found["worst"] == pytest.approx(max(errors), abs=1e-3) and "val, test" in text


def change(path: Path, data: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> None:
    write(path, data(stored(path)), affine)


def without_codes(path: Path) -> None:
    volume = nib.Nifti1Image(stored(path), None)  # pyright: ignore
    nib.save(volume, path)  # pyright: ignore


def with_nan(data: np.ndarray) -> np.ndarray:
    data = data.astype(np.float32)
    data[0, 0, :2] = np.nan
    return data


IMAGE, LABEL, MASK = (f"{kind}Tr/Mini_0003_0000.nii.gz" for kind in ("images", "labels", "masks"))
BRAINS: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "missing image": (lambda r: (r / IMAGE).unlink(), f"error: {IMAGE}: does not exist, expected the image", 1),
    "truncated": (
        lambda r: (r / LABEL).write_bytes((r / LABEL).read_bytes()[:-20]),
        f"error: {LABEL}: cannot be read (", 1,
    ),
    "no volume": (lambda r: (r / IMAGE).write_text("no"), f"error: {IMAGE}: cannot be read", 1),
    "label grid": (lambda r: change(r / LABEL, lambda x: x[1:]), f"{LABEL}: has shape 7x9x10, expected 8x9x10", 1),
    "label affine": (lambda r: change(r / LABEL, np.copy, np.eye(4)), f"{LABEL}: has the affine [[1.0, 0.0", 1),
    "swapped axes": (
        lambda r: [change(r / p, lambda x: x.swapaxes(1, 2)) for p in (IMAGE, LABEL, MASK)],
        f"error: {IMAGE}: has shape 8x10x9, expected 8x9x10 as in its dataset JSON: its axes look swapped", 1,
    ),
    "orientation": (
        lambda r: [change(r / p, np.copy, np.diag([2.0, 2, 3, 1])) for p in (IMAGE, LABEL, MASK)],
        f"warning: {IMAGE}: has orientation RAS, most others have orientation LAS", 1,
    ),
    "spacing": (
        lambda r: [change(r / p, np.copy, np.diag([-2.0, 2, 6, 1])) for p in (IMAGE, LABEL, MASK)],
        f"warning: {IMAGE}: has spacing 2x2x6 mm, most others have spacing 2x2x3 mm", 1,
    ),
    "no affine": (lambda r: without_codes(r / IMAGE), f"warning: {IMAGE}: has a header without affine", 1),
    "fractions": (lambda r: change(r / LABEL, lambda x: x * np.float32(0.5)), f"{LABEL}: has the value 0.5", 1),
    "negative": (lambda r: change(r / LABEL, lambda x: x - np.int16(1)), f"{LABEL}: has the value -1, expected", 1),
    "empty label": (lambda r: change(r / LABEL, np.zeros_like), f"error: {LABEL}: is 0 everywhere", 1),
    "unknown label": (
        lambda r: change(r / LABEL, lambda x: np.where(x == 4, 9, x).astype(np.uint8)),
        f"warning: {LABEL}: has label 9, to which the data set gives no name", 0,
    ),
    "missing label": (
        lambda r: change(r / LABEL, lambda x: np.where(x == 4, 0, x).astype(np.uint8)),
        f"warning: {LABEL}: lacks label 4 (structure 4), which most others have", 0,
    ),
    "NaN": (lambda r: change(r / IMAGE, with_nan), f"error: {IMAGE}: has 2 voxels that are NaN or infinite", 1),
    "constant": (lambda r: change(r / IMAGE, np.ones_like), f"error: {IMAGE}: is 1 everywhere, expected an image", 1),
    "other scale": (
        lambda r: change(r / IMAGE, lambda x: 100.0 * x), "of the median case", 0,
    ),
    "outlier": (
        lambda r: change(r / IMAGE, lambda x: np.where(x == x.max(), 30000, x.astype(np.int16))),
        f"warning: {IMAGE}: has its largest value 30000 far above", 0,
    ),
    "empty mask": (lambda r: change(r / MASK, np.zeros_like), f"error: {MASK}: is 0 everywhere, expected a mask", 1),
    "small mask": (
        lambda r: change(r / MASK, lambda x: np.pad(x[:2, :2, 2:4], [(0, 6), (0, 7), (2, 6)])),
        f"warning: {MASK}: covers 1.1% of the voxels, the median mask 80.0%", 0,
    ),
    "no mask": (lambda r: (r / MASK).unlink(), f"error: {IMAGE}: has no mask, expected one as for", 1),
    "copy": (
        lambda r: (r / "imagesTr/Mini_0004_0000.nii.gz").write_bytes((r / IMAGE).read_bytes()),
        f"warning: imagesTr/Mini_0004_0000.nii.gz: holds the same values as {IMAGE}", 0,
    ),
    "leaking copy": (
        lambda r: (r / IMAGE).write_bytes((r / "imagesTr/Mini_0001_0000.nii.gz").read_bytes()),
        f"error: {IMAGE}: holds the same values as imagesTr/Mini_0001_0000.nii.gz: one is for training", 1,
    ),
    "leak": (
        lambda r: change_json(r, "Mini", training_paired_images=listed((image(1), image(5)), (image(1), image(2)))),
        "leaks: ", 1,
    ),
    "two of one id": (
        lambda r: (
            write(r / "imagesTs/Mini_0001_0000.nii.gz", np.arange(720.0).reshape(SHAPE)),
            change_json(r, "Mini", registration_test=listed((image(1, folder="Ts"), image(6)))),
        ),
        "are both Mini_0001_0000, expected one image for one id", 1,
    ),
    "JSON key": (
        lambda r: change_json(r, "Mini", registration_val=[{"fixed": image(3)}]),
        "entry 0 of 'registration_val' is {'fixed'", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BRAINS)
def test_a_broken_brain_is_named(name: str, brains: Path, capsys: pytest.CaptureFixture) -> None:
    break_it, sentence, expected = BRAINS[name]
    break_it(brains)
    code, text = broken(capsys, brains)
    assert sentence in text
    assert code == expected and (text.splitlines()[-1].startswith("0 errors") == (expected == 0))


def points_of(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = root / "keypointsTr/NLST_0101_0001.csv"
    write_points(root, path.stem, change(np.loadtxt(path, delimiter=",")))


POINTS = "keypointsTr/NLST_0101_0001.csv"
LUNGS: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "outside": (
        lambda r: points_of(r, lambda p: p + np.array([0, 0, 5])),
        f"error: {POINTS}: has ", 1,
    ),
    "reversed": (
        lambda r: points_of(r, lambda p: np.array([[9.0, 8, 7]] * 5)),
        "the first in row 1: (9, 8, 7); with reversed axes all are inside", 1,
    ),
    "outside of the mask": (
        lambda r: points_of(r, lambda p: np.vstack([p[:4], [[0.0, 0, 0]]])),
        f"warning: {POINTS}: has 1 of 5 landmarks outside of the mask", 0,
    ),
    "count": (lambda r: points_of(r, lambda p: p[:4]), f"error: {POINTS}: has 4 landmarks, expected 5", 1),
    "header": (lambda r: (r / POINTS).write_text("x,y,z\n1,1,1\n"), f"error: {POINTS}: cannot be read as landmarks", 1),
    "two numbers": (lambda r: (r / POINTS).write_text("1,1\n"), f"error: {POINTS}: has 1 rows of 2 numbers", 1),
    "beyond the window": (
        lambda r: change(r / image(101, 1, "NLST"), lambda x: x + np.int16(3000)),
        "imagesTr/NLST_0101_0001.nii.gz: spans", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LUNGS)
def test_a_broken_lung_is_named(name: str, lungs: Path, capsys: pytest.CaptureFixture) -> None:
    break_it, sentence, expected = LUNGS[name]
    break_it(lungs)
    code, text = broken(capsys, lungs, normalise="window", clip=(-1000, 500))
    assert sentence in text and code == expected


def test_hounsfield_units_without_a_window_are_told(lungs: Path, capsys: pytest.CaptureFixture) -> None:
    code, text = broken(capsys, lungs)
    assert code == 0 and "and 9 more: has values like Hounsfield units and no clip" in text


def test_all_problems_are_told_at_once(brains: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("missing image", "fractions"):
        BRAINS[name][0](brains)
    (brains / "imagesTr/Mini_0006_0000.nii.gz").write_text("no")
    change(brains / "labelsTr/Mini_0001_0000.nii.gz", lambda x: x * np.float32(0.5))
    code, text = broken(capsys, brains)
    assert code == 1 and text.splitlines()[-1] == "3 errors, 0 warnings"  # one sentence names both label maps
    for path in (IMAGE, LABEL, "imagesTr/Mini_0006_0000.nii.gz", "labelsTr/Mini_0001_0000.nii.gz"):
        assert path in text


def test_the_axes_of_oasis_are_explained() -> None:
    from data_modules.checking.headers import swapped

    text = swapped((160, 192, 224), (160, 224, 192))
    assert "Learn2Reg's OASIS files are 160x224x192" in text and "neurite's" in text
    assert swapped((1, 2), (1, 2)) == swapped((1, 2), (1, 3)) == ""


def test_a_config_of_another_command_will_do(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = oasis(tmp_path / "data")
    config = tmp_path / "config.yaml"
    config.write_text("model: {class_path: Nothing}\ndata: {class_path: OASIS, init_args: {root: nowhere}}\n")
    code, text = run(capsys, "--config", config, "--data.root", root)
    assert code == 0 and "OASIS" in text and "dice" in text and text.splitlines()[-1] == "0 errors, 1 warning"
    assert "has the same pairs for validation and test" in text


def test_nlst_names_its_window(lungs: Path, capsys: pytest.CaptureFixture) -> None:
    code, text = run(capsys, "--data", "NLST", "--data.root", lungs)
    assert code == 0 and "tre [mm]" in text and text.splitlines()[-1] == "0 errors, 1 warning"


def test_a_table_of_pairs(brains: Path, capsys: pytest.CaptureFixture) -> None:
    row = ",".join(f"{kind}Tr/Mini_000{n}_0000.nii.gz" for kind in ("images", "labels") for n in (1, 2))
    (brains / "pairs.csv").write_text(f"fixed,moving,fixed_label,moving_label\n{row}\n")
    code, text = run(capsys, "--data", "PairsCSV", "--data.csv", brains / "pairs.csv")
    assert code == 0 and "pairs.csv: has no column 'split': every pair is for training" in text
    expected = dice(*(stored(brains / f"labelsTr/Mini_000{n}_0000.nii.gz") for n in (1, 2)))
    assert f"{expected:.4g} ± 0" in text


def test_neurite_folders(brains: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for n in range(1, 7):
        folder = tmp_path / f"neurite/OASIS_OAS1_{n:04d}_MR1"
        for kind, name in (("images", "aligned_norm"), ("labels", "aligned_seg35")):
            write(folder / f"{name}.nii.gz", stored(brains / f"{kind}Tr/Mini_{n:04d}_0000.nii.gz"))
    code, text = run(capsys, "--data", "NeuriteOASIS", "--data.root", tmp_path / "neurite")
    assert code == 0 and text.splitlines()[-1] == "0 errors, 0 warnings"
    (folder / "aligned_seg35.nii.gz").unlink()
    code, text = run(capsys, "--data", "NeuriteOASIS", "--data.root", tmp_path / "neurite")
    assert code == 1 and "error: OASIS_OAS1_0006_MR1/aligned_seg35.nii.gz: does not exist" in text


def test_klein_folders_may_differ_in_spacing_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for n in (1, 2, 3):
        rng = np.random.default_rng(n)
        folder, affine = tmp_path / f"IBSR_{n:02d}", np.diag([1.0, 1.5 if n == 1 else 1.0, 1.0, 1.0])
        write(folder / f"IBSR_{n:02d}_ana_strip.nii.gz", rng.integers(0, 200, (12, 12, 12)).astype(np.int16), affine)
        label = rng.choice([0, 2, 40, 50 + n], (12, 12, 12)).astype(np.int16)
        write(folder / f"IBSR_{n:02d}_seg_ana.nii.gz", label, affine)
    options = ("--data.dataset", "IBSR18", "--data.crop_size", "[16, 16, 16]")
    code, text = run(capsys, "--data", "Klein", "--data.root", tmp_path, *options)
    assert code == 0 and text.splitlines()[-1] == "0 errors, 0 warnings"
    assert "note: IBSR_01/IBSR_01_ana_strip.nii.gz: has spacing 1x1.5x1 mm" in text and "has label 51" in text


def test_pairs_without_files_are_held_to_the_contract(capsys: pytest.CaptureFixture) -> None:
    size = ("--data.size", "[16, 16]", "--data.train_pairs", 2, "--data.val_pairs", 1, "--data.test_pairs", 1)
    code, text = run(capsys, "--data", "SyntheticPairs", *size)
    assert code == 0 and "16x16" in text and "tre [mm]" in text


def test_what_is_no_problem_of_the_data_has_code_2(brains: Path, capsys: pytest.CaptureFixture) -> None:
    assert learn2reg(capsys, brains / "nowhere")[0] == 2
    assert learn2reg(capsys, brains, "--data.nothing", 1)[0] == 2
    assert run(capsys, "--data.root", brains)[0] == 2
    (brains / "old.json").write_text("{}")
    assert learn2reg(capsys, brains, "--json", brains / "old.json")[0] == 2
    assert (brains / "old.json").read_text() == "{}"
    assert run(capsys, "--help")[0] == 0
