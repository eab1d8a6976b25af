"""Names of files: what means one pair among all of them, and what is read where several could be meant."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from data_modules import PairsCSV, SyntheticPairs
from dio_lightning.callbacks import Panels
from dio_lightning.fields.names import find_all, find_field, full_name, own_names, possible_names
from dio_lightning.modules.base import RegistrationModule

ONE, TWO = ("sub01_0000", "sub01_0001"), ("sub02_0000", "sub02_0001")


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_a_short_name_that_two_pairs_could_have_is_no_name_of_theirs():
    """B6: both would be 0000_0001."""
    assert own_names([ONE])[ONE][0] == "0000_0001"
    names = own_names([ONE, TWO])
    assert names == {ONE: ("sub01_0000_sub01_0001",), TWO: ("sub02_0000_sub02_0001",)}
    # a pair that is listed twice is one pair
    assert own_names([ONE, ONE])[ONE][0] == "0000_0001"


@pytest.mark.parametrize("seed", range(5))
def test_names_that_are_written_are_all_different_and_are_read_back(tmp_path, seed):
    """B6, over random ids: what the writer takes is what the reader finds, for all pairs and for any part of them."""
    rng = np.random.default_rng(seed)
    parts = ["0000", "0001", "0002", "sub01", "sub02", "a-b", "a.b", "x y", "Brain"]
    ids = ["_".join(rng.choice(parts, rng.integers(1, 4))) for _ in range(60)]
    pairs = [(str(rng.choice(ids)), str(rng.choice(ids))) for _ in range(150)]
    seen: dict[str, tuple[str, str]] = {}
    pairs = [pair for pair in pairs if seen.setdefault(full_name(*pair), pair) == pair]
    names = own_names(pairs)
    written = {pair: own[0] for pair, own in names.items()}
    assert len(set(written.values())) == len(names) == len(set(pairs))
    for pair, own in names.items():
        assert not set(own) & {name for other in names if other != pair for name in names[other]}
    touch(tmp_path, *(f"disp_{name}.nii.gz" for name in written.values()))
    found = find_all(tmp_path, pairs)
    assert {pair: path.name for pair, path in found.items()} == {p: f"disp_{n}.nii.gz" for p, n in written.items()}


def test_ids_that_no_file_name_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"the pairs a/b <- c and a-b <- c would share the file name a-b_c"):
        own_names([("a/b", "c"), ("a-b", "c")])
    with pytest.raises(ValueError, match="would share the file name a_b_c"):
        own_names([("a_b", "c"), ("a", "b_c")])


def test_modalities_that_share_learn2regs_short_name_are_told_apart():
    """0001_0002 is what Learn2Reg looks for in both cases; evaluation refused what prediction had written."""
    names = own_names([("L_0001_0000", "L_0002_0000"), ("L_0001_0000", "L_0002_0001")])
    assert [own[0] for own in names.values()] == ["0001_0000_0002_0000", "0001_0000_0002_0001"]


def test_a_folder_with_short_and_long_names_is_refused_with_both(tmp_path):
    touch(tmp_path, "disp_0000_0001.nii.gz", "disp_sub01_0000_sub01_0001.nii.gz", "disp_sub02_0000_sub02_0001.npz")
    with pytest.raises(ValueError, match=r"disp_0000_0001.nii.gz fits the pairs sub01_0000 <- sub01_0001 and sub02"):
        find_all(tmp_path, [ONE, TWO])
    with pytest.raises(ValueError, match=r"has disp_0000_0001.nii.gz and disp_sub01_0000_sub01_0001.nii.gz for fixed"):
        find_all(tmp_path, [ONE])
    (tmp_path / "disp_0000_0001.nii.gz").unlink()
    assert find_all(tmp_path, [ONE, TWO])[TWO].name == "disp_sub02_0000_sub02_0001.npz"
    assert find_field(tmp_path, *ONE).name == "disp_sub01_0000_sub01_0001.nii.gz"


def test_a_file_of_another_name_is_mentioned_where_one_is_missing(tmp_path):
    touch(tmp_path, "disp_0009_0008.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of 2 .* \(it has disp_0009_0008.nii.gz, which belongs to no"):
        find_all(tmp_path, [("0001", "0002"), ("0002", "0003")])


def test_possible_names_begin_with_the_one_that_is_written():
    assert possible_names("Brain_0011_0000", "Brain_0012_0000") == (
        "0011_0012",
        "0011_0000_0012_0000",
        "Brain_0011_0000_Brain_0012_0000",
    )


def subjects(root, count=2, shape=(12, 14, 13)):
    """Two scans of every subject, whose names differ in their folder's part alone, and a table of pairs."""
    lines = ["fixed,moving,fixed_label,moving_label"]
    for i in range(1, count + 1):
        names = [f"sub{i:02d}_{j:04d}" for j in (0, 1)]
        for j, name in enumerate(names):
            label = np.zeros(shape, np.uint8)
            label[3 + j : 8 + j, 4:9, 3:9] = 1
            noise = np.random.default_rng(10 * i + j).integers(0, 20, shape)
            image = (1000.0 * label + noise - 500).astype(np.int16)
            nib.save(nib.Nifti1Image(image, np.diag([2.0, 2, 2, 1])), root / f"{name}.nii.gz")
            nib.save(nib.Nifti1Image(label, np.diag([2.0, 2, 2, 1])), root / f"{name}_label.nii.gz")
        lines.append(",".join([f"{n}.nii.gz" for n in names] + [f"{n}_label.nii.gz" for n in names]))
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")
    return root / "pairs.csv"


def test_pairs_of_a_split_are_named_without_reading_images(tmp_path, monkeypatch):
    data = PairsCSV(str(subjects(tmp_path)), cache=False)
    data.setup("test")
    monkeypatch.setattr(data.subjects, "pair", lambda *_: pytest.fail("no image may be read"))
    assert data.pair_ids("test") == [ONE, TWO]


@pytest.mark.parametrize("options", [{}, {"plane": "axial", "slices": (2, 9), "every": 3}])
def test_listed_ids_are_those_of_the_samples(tmp_path, options):
    data = PairsCSV(str(subjects(tmp_path)), common_grid=True, **options)
    data.setup("test")
    samples = [(s["fixed_id"], s["moving_id"]) for s in data.dataset("test")]
    assert data.pair_ids("test") == samples and len(samples) == (6 if options else 2)
    synthetic = SyntheticPairs((12, 12), test_pairs=2)
    drawn = [synthetic.dataset("test")[index] for index in (0, 1)]
    assert synthetic.pair_ids("test") == [(s["fixed_id"], s["moving_id"]) for s in drawn]


TRAINER = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
ZERO = ["--model", "DIO", "--model.features", "Intensity", "--model.features.levels", "[1]"]
ZERO += ["--model.layer", "OptimizerLayer", "--model.layer.iterations", "[3]"]


def test_what_predict_writes_for_colliding_pairs_evaluate_and_submit_read(tmp_path, command, rows, monkeypatch, capsys):
    """B6: refused after the first solve until now."""
    data = ["--data", "PairsCSV", "--data.csv", subjects(tmp_path), "--data.common_grid", "true"]
    command("predict", *ZERO, *data, *TRAINER, "--trainer.default_root_dir", "run")
    names = ["sub01_0000_sub01_0001", "sub02_0000_sub02_0001"]
    files = sorted(path.name for path in (tmp_path / "run/predictions").iterdir())
    assert files == [f"{kind}_{name}.nii.gz" for kind in ("disp", "warped") for name in names]
    command("test", *ZERO, *data, *TRAINER, "--trainer.default_root_dir", "test")
    command("evaluate", "run/predictions", *data, "--out", "out", *TRAINER[:2])
    for one, two in zip(rows(tmp_path / "test"), rows(tmp_path / "out"), strict=True):
        assert float(one["dice"]) == pytest.approx(float(two["dice"]), abs=1e-6)
    # one picture a pair
    assert len(list((tmp_path / "test/panels").iterdir())) == 2
    capsys.readouterr()
    command("submit", "run/predictions", *data, "--out", "out.zip")
    said = capsys.readouterr()
    assert "with 2 displacement fields" in said.out and "looks for disp_0000_0001 for 2 pairs" in said.err


def test_pairs_that_cannot_be_named_are_refused_before_the_first_solve(tmp_path, command, capsys, monkeypatch):
    subjects(tmp_path, 1)
    for name in ("a_b", "c", "a", "b_c"):
        (tmp_path / f"{name}.nii.gz").write_bytes((tmp_path / "sub01_0000.nii.gz").read_bytes())
    (tmp_path / "pairs.csv").write_text("fixed,moving\na_b.nii.gz,c.nii.gz\na.nii.gz,b_c.nii.gz\n")
    monkeypatch.setattr(RegistrationModule, "predict_step", lambda *_: pytest.fail("nothing may be solved"))
    with pytest.raises(SystemExit):
        command("predict", *ZERO, "--data", "PairsCSV", "--data.csv", tmp_path / "pairs.csv", *TRAINER)
    assert "would share the file name a_b_c" in capsys.readouterr().err


def test_panels_of_colliding_pairs_do_not_replace_one_another(tmp_path):
    """B6's kind: a picture of the second pair was written over the first."""
    trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=False, default_root_dir=str(tmp_path))
    panels = Panels(pairs=2)
    panels.on_test_start(trainer, None)
    for fixed, moving in (ONE, TWO):
        batch = {"fixed": torch.rand(1, 1, 8, 9), "moving": torch.rand(1, 1, 8, 9), "fixed_id": [fixed]}
        panels.on_test_batch_end(
            trainer, None, {"displacement": torch.zeros(1, 2, 8, 9)}, {**batch, "moving_id": [moving]}, 0
        )
    assert sorted(path.stem for path in (tmp_path / "panels").iterdir()) == ["0000_0001", "sub02_0000_sub02_0001"]
