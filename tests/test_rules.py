"""What `check` calls an error every command refuses, with the same sentence, before any work and without a trace."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from miniature import SHAPE, change_json, image, listed, write, write_json

from data_modules import Learn2Reg, PairsCSV
from data_modules.volumes import VolumePairs

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
COLUMNS = "fixed,moving,fixed_label,moving_label,fixed_mask,moving_mask,fixed_points,moving_points"
CONFIG = """
model:
  class_path: VoxelMorph
  init_args:
    network:
      class_path: VxmUNet
      init_args: {in_channels: 2, encoder: [4, 4], decoder: [4, 4], final: [4]}
    objective: {class_path: Objective, init_args: {image: {class_path: SSD}}}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "model.yaml"
    path.write_text(CONFIG)
    return path


def table(root: Path) -> VolumePairs:
    """One pair with everything that a pair can have; it is for training, validation and test."""
    for i, side in enumerate(("fixed", "moving")):
        rng = np.random.default_rng(i)
        write(root / f"{side}.nii.gz", rng.integers(0, 200, SHAPE).astype(np.int16), AFFINE)
        write(root / f"{side}_label.nii.gz", rng.integers(0, 4, SHAPE).astype(np.uint8), AFFINE)
        write(root / f"{side}_mask.nii.gz", rng.integers(0, 2, SHAPE).astype(np.uint8), AFFINE)
        np.savetxt(root / f"{side}.csv", rng.uniform(1, 6, (4, 3)), delimiter=",", fmt="%.3f")
    cells = [
        f"{side}{end}" for end in (".nii.gz", "_label.nii.gz", "_mask.nii.gz", ".csv") for side in ("fixed", "moving")
    ]
    (root / "pairs.csv").write_text(f"{COLUMNS}\n{','.join(cells)}\n")
    return PairsCSV(str(root / "pairs.csv"))


def folder(root: Path) -> VolumePairs:
    """Two subjects for training, two for validation, two for test."""
    for n in range(1, 7):
        rng = np.random.default_rng(n)
        write(root / image(n), rng.integers(0, 200, SHAPE).astype(np.int16), AFFINE)
        write(root / image(n).replace("images", "labels"), rng.integers(0, 4, SHAPE).astype(np.uint8), AFFINE)
    lists = {"registration_val": listed((image(3), image(4))), "registration_test": listed((image(5), image(6)))}
    write_json(root, pairings="unpaired", tensorImageShape={"0": [*SHAPE]}, **lists)
    return Learn2Reg(str(root))


def stored(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def moving(change: Callable[[np.ndarray], np.ndarray], kind: str = "", affine: np.ndarray = AFFINE) -> Callable:
    """Replace the moving image, label map or mask by what becomes of its values."""

    def apply(root: Path) -> None:
        path = root / f"moving{kind}.nii.gz"
        write(path, change(stored(path)), affine)

    return apply


def with_header(**fields: object) -> Callable:
    """Overwrite fields of the moving image's header."""

    def apply(root: Path) -> None:
        content = gzip.decompress((root / "moving.nii.gz").read_bytes())
        header = nib.Nifti1Header(content[:348])
        for name, value in fields.items():
            header[name] = value
        # nibabel would mend what it saves
        (root / "moving.nii.gz").write_bytes(gzip.compress(header.binaryblock + content[348:]))

    return apply


def every(*paths: str) -> Callable:
    """Swap two axes of all files of a case."""

    def apply(root: Path) -> None:
        for path in paths:
            write(root / path, stored(root / path).swapaxes(1, 2), AFFINE)

    return apply


def at(number: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        values[1, 2, 3] = number
        return values

    return change


def points(change: Callable[[np.ndarray], np.ndarray], header: str = "") -> Callable:
    def apply(root: Path) -> None:
        values = change(np.loadtxt(root / "moving.csv", delimiter=","))
        np.savetxt(root / "moving.csv", values, delimiter=",", header=header, comments="")

    return apply


FAR = AFFINE.copy()
FAR[:3, 3] = 1000
NAN = np.array([np.nan, 0, 0, 0])
ZERO = {f"srow_{axis}": np.zeros(4) for axis in "xyz"}
TABLE: dict[str, tuple[Callable, str]] = {
    "image missing": (lambda r: (r / "moving.nii.gz").unlink(), "moving.nii.gz does not exist, expected the image"),
    "label missing": (lambda r: (r / "moving_label.nii.gz").unlink(), "moving_label.nii.gz does not exist"),
    "landmarks missing": (lambda r: (r / "moving.csv").unlink(), "moving.csv does not exist, expected the landmarks"),
    "no volume": (lambda r: (r / "moving.nii.gz").write_text("no"), "moving.nii.gz cannot be read ("),
    "cut off": (
        lambda r: (r / "moving.nii.gz").write_bytes((r / "moving.nii.gz").read_bytes()[:-300]),
        "moving.nii.gz is cut off (",
    ),
    "four axes": (moving(lambda x: np.stack([x, x], -1)), "has shape 8x9x10x2, expected two or three axes"),
    "A2 complex": (moving(lambda x: x.astype(np.complex64)), "has the type complex64, expected real numbers"),
    "A2 NaN in the affine": (with_header(srow_x=NAN), "(sform), expected an invertible one"),
    "B1 sform of zeros": (with_header(pixdim=np.zeros(8), **ZERO), "(sform), expected an invertible one"),
    "A2 disjoint": (
        lambda r: [moving(np.copy, kind, FAR)(r) for kind in ("", "_label", "_mask")],
        "do not overlap in world coordinates",
    ),
    "B4 two axes": (
        lambda r: (
            [moving(lambda x: x[..., 2], kind)(r) for kind in ("", "_label", "_mask")]
            + [np.savetxt(r / "moving.csv", np.ones((4, 2)), delimiter=",")]
        ),
        "has 2 axes (8x9), expected 3 (8x9x10) as in",
    ),
    "label grid": (moving(lambda x: x[1:], "_label"), "moving_label.nii.gz has shape 7x9x10, expected 8x9x10 as in"),
    "mask affine": (moving(np.copy, "_mask", np.eye(4)), "moving_mask.nii.gz has the affine"),
    "A2 constant": (moving(np.ones_like), "moving.nii.gz is 1 everywhere, expected an image"),
    "NaN": (moving(at(np.nan)), "moving.nii.gz has 1 voxels that are NaN or infinite"),
    "beyond float32": (moving(at(1e200)), "moving.nii.gz has 1 voxels that are NaN or infinite"),
    "A2 empty label map": (moving(np.zeros_like, "_label"), "moving_label.nii.gz is 0 everywhere, expected labels"),
    "B7 fraction": (moving(at(2.0049999), "_label"), "has the value 2.0049999, expected integers from 0 to 32767"),
    "label NaN": (moving(at(np.nan), "_label"), "has the value nan, expected integers"),
    "negative label": (moving(at(-1), "_label"), "has the value -1, expected integers from 0 to 32767"),
    "large label": (moving(at(576073732), "_label"), "has the value 576073732, expected integers from 0 to 32767"),
    "empty mask": (moving(np.zeros_like, "_mask"), "moving_mask.nii.gz is 0 everywhere, expected a mask"),
    "mask NaN": (moving(at(np.nan), "_mask"), "moving_mask.nii.gz has 1 voxels that are NaN or infinite"),
    "landmarks outside": (points(lambda p: p + 5), "moving.csv has "),
    "landmark count": (points(lambda p: p[:3]), "moving.csv has 3 landmarks, expected 4 as in"),
    "landmark header": (points(np.copy, "x,y,z"), "moving.csv cannot be read as landmarks"),
    "landmark columns": (points(lambda p: p[:, :2]), "moving.csv has 4 rows of 2 numbers, expected rows of 3"),
}
FOLDER: dict[str, tuple[Callable, str]] = {
    "another grid": (
        lambda r: [
            write(r / path, np.ones((8, 9, 9), np.uint8) * np.arange(9, dtype=np.uint8), AFFINE)
            for n in (2, 4, 6)
            for path in (image(n), image(n).replace("images", "labels"))
        ],
        "has shape 8x9x9, expected 8x9x10 as in",
    ),
    "swapped axes": (
        every(*(p for n in (2, 4, 6) for p in (image(n), image(n).replace("images", "labels")))),
        "has shape 8x10x9, expected 8x9x10 as in its dataset JSON: its axes look swapped",
    ),
    "no label": (
        lambda r: [(r / image(n).replace("images", "labels")).unlink() for n in (2, 4, 6)],
        "has no label, expected one as for",
    ),
    "copy of a training image": (
        lambda r: [(r / image(n)).write_bytes((r / image(1)).read_bytes()) for n in (3, 5)],
        "one is for training, the other for validation or test",
    ),
    "leak": (
        lambda r: change_json(r, "Mini", training_paired_images=listed((image(1), image(5)), (image(1), image(3)))),
        "leaks: ",
    ),
    "one id": (
        lambda r: [
            write(r / image(1, folder="Ts"), np.arange(720.0).reshape(SHAPE), AFFINE),
            change_json(r, "Mini", registration_test=listed((image(1, folder="Ts"), image(6)))),
        ],
        "are both Mini_0001_0000, expected one image for one id",
    ),
    "pair twice": (
        lambda r: change_json(r, "Mini", registration_test=listed((image(5), image(6)), (image(5), image(6)))),
        "entry 1 of 'registration_test' repeats entry 0",
    ),
    "no images": (lambda r: [path.unlink() for path in r.rglob("*.*")], "has no images, expected a *_dataset.json"),
}
RULES = {f"table: {name}": (table, *rule) for name, rule in TABLE.items()}
RULES |= {f"folder: {name}": (folder, *rule) for name, rule in FOLDER.items()}
COMMANDS = ("fit", "validate", "test", "predict", "evaluate", "submit")


@pytest.mark.parametrize("make", [table, folder])
def test_healthy_data_are_accepted(make: Callable[[Path], VolumePairs], tmp_path: Path) -> None:
    module = make(tmp_path)
    assert module.check().count("error") == 0
    module.setup()


@pytest.mark.parametrize("command_name", COMMANDS)
@pytest.mark.parametrize("rule", RULES)
def test_what_check_calls_an_error_every_command_refuses(
    rule: str, command_name: str, config: Path, tmp_path: Path, command, capsys
) -> None:
    make, break_it, sentence = RULES[rule]
    root = tmp_path / "d"
    root.mkdir()
    make(root)
    break_it(root)
    module = PairsCSV(str(root / "pairs.csv")) if make is table else Learn2Reg(str(root))
    errors = [finding for finding in module.check().findings if finding.severity == "error"]
    assert errors and any(sentence in f"{' '.join(e.files)} {e.sentence}" for e in errors), errors
    data = (
        ["--data", "PairsCSV", "--data.csv", root / "pairs.csv"]
        if make is table
        else ["--data", "Learn2Reg", "--data.root", root]
    )
    before = sorted(tmp_path.rglob("*"))
    fields = tmp_path / "fields"
    fields.mkdir()
    what = {"evaluate": [fields], "submit": [fields, "--out", tmp_path / "s.zip"]}.get(
        command_name, ["--config", config]
    )
    with pytest.raises(SystemExit) as stopped:
        command(command_name, *what, *data)
    said = capsys.readouterr().err.replace(f"{root}/", "")
    assert stopped.value.code == 2
    first = errors[0].sentence.replace(f"{root}/", "")
    assert any(e.sentence.replace(f"{root}/", "")[:300] in said for e in errors), (said, first)
    fields.rmdir()
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert not left, left
