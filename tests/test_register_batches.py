"""`register --csv`: every pair on its own, what was done is not done again, and what is wrong is said first."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from scans import affine_of, scene, write
from tables_of_pairs import SIZE, row, table, third

import dio_lightning
from dio_lightning.losses import Bending
from dio_lightning.registration import register
from dio_lightning.registration.batch import spread
from dio_lightning.registration.command import parser
from dio_lightning.registration.deformable import local_correlation
from dio_lightning.registration.table import _fingerprint

RIGID = ("--stages", "rigid")


def results(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "results.csv", encoding="utf-8") as file:
        return {row["pair"]: row for row in csv.DictReader(file)}


def written(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/report.json")}


def refused(command, capsys, *words) -> list[str]:
    with pytest.raises(SystemExit) as stop:
        command("register", *words)
    assert stop.value.code == 2
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("dio-lightning: error: ")]


def test_every_pair_gets_its_folder_and_its_row_and_a_broken_one_stops_no_other(command, tmp_path, capsys) -> None:
    third(tmp_path, np.full(SIZE, np.nan))
    path = table(tmp_path, [row("m2")])
    with pytest.raises(SystemExit) as stop:
        command("register", "--csv", path, "--out", "out", *RIGID)
    printed = capsys.readouterr()
    assert stop.value.code == 3 and "3 pairs: 2 good, 0 doubtful, 1 failed" in printed.out
    assert "3/3 fixed_m2: failed: " in printed.err
    rows = results(tmp_path / "out")
    assert list(rows) == ["fixed_m0", "fixed_m1", "fixed_m2"]
    for name in ("fixed_m0", "fixed_m1"):
        assert rows[name]["verdict"] == "good" and float(rows[name]["seconds"]) > 0
        assert float(rows[name]["dice"]) > 0.95 and float(rows[name]["tre"]) < 1  # voxels are of 4 mm
        report = json.loads((tmp_path / "out" / name / "report.json").read_text())
        assert report["scores"]["tre"] == float(rows[name]["tre"])
        assert float(rows[name]["information"]) == report["quality"]["information"] > report["quality"]["start"]
        assert (tmp_path / "out" / name / f"warped_{name[-2:]}_seg.nii.gz").exists()
    assert rows["fixed_m2"]["verdict"] == "failed" and "NaN" in rows["fixed_m2"]["sentence"]
    assert rows["fixed_m2"]["dice"] == "" and not (tmp_path / "out/fixed_m2").exists()
    looked_at(tmp_path / "out", rows)


def looked_at(out: Path, rows: dict[str, dict[str, str]]) -> None:
    """Assert that the page has a row a pair, the failed one first, with links, pictures and numbers of the others."""
    page = (out / "report.html").read_text()
    assert page.index("fixed_m2") < page.index("fixed_m0") < page.index("fixed_m1")
    links = re.findall(r'<th scope="row"><a href="([^"]+)"', page)
    assert links == ["fixed_m0/report.html", "fixed_m1/report.html"] and all((out / link).is_file() for link in links)
    for when in ("before", "after"):
        assert page.count(f'aria-label="labels {when}"') == 2
        panel = rf'aria-label="labels {when}".*?(<path .*?/>)'
        assert re.search(panel, page, re.DOTALL)[1] == re.search(panel, (out / links[0]).read_text(), re.DOTALL)[1]
    assert f"<td>{float(rows['fixed_m0']['dice']):.3f}</td>" in page and "has 1440 values that are NaN" in page
    assert not re.search(r'(src|href)="(?!data:|#|fixed_m)', page) and "<section" in page


def test_what_is_done_is_skipped_and_what_is_half_done_or_failed_is_done_again(command, tmp_path, capsys) -> None:
    path, out = table(tmp_path), tmp_path / "out"
    command("register", "--csv", path, "--out", "out", *RIGID)
    first, rows = written(out), results(out)
    (out / "report.html").unlink()
    command("register", "--csv", path, "--out", "out", *RIGID)
    assert written(out) == first and results(out) == rows and "2 pairs registered" in (out / "report.html").read_text()
    assert "1/2 fixed_m0: good, done before" in capsys.readouterr().err
    (out / "fixed_m0/inverse.h5").unlink()
    command("register", "--csv", path, "--out", "out", *RIGID, "--json")
    second, printed = written(out), json.loads(capsys.readouterr().out)
    assert [one["pair"] for one in printed["pairs"]] == ["fixed_m0", "fixed_m1"]
    assert second["fixed_m0"] > first["fixed_m0"] and second["fixed_m1"] == first["fixed_m1"]
    assert (out / "fixed_m0/inverse.h5").exists()
    # another setting, and another content of one file: neither is the result that lies there
    lines = refused(command, capsys, "--csv", path, "--out", "out", "--stages", "affine")
    assert len(lines) == 3 and "fixed_m0/report.json is of other files or settings" in lines[0]
    np.savetxt(tmp_path / "m1.csv", np.full((6, 2), 15.0), delimiter=",")
    lines = refused(command, capsys, "--csv", path, "--out", "out", *RIGID)
    assert len(lines) == 1 and "fixed_m1/report.json is of other" in lines[0]
    assert written(out) == second
    command("register", "--csv", path, "--out", "out", *RIGID, "--overwrite", "--quiet")
    third_time = written(out)
    assert all(third_time[name] > second[name] for name in second)
    assert float(results(out)["fixed_m1"]["tre"]) > 3


def test_all_that_is_wrong_is_listed_before_the_first_pair(command, tmp_path, capsys) -> None:
    third(tmp_path, scene(SIZE))
    write(tmp_path, "m2_seg.nii.gz", np.ones((9, 9), np.uint8), affine_of((9, 9)))
    np.savetxt(tmp_path / "m2.csv", np.full((6, 2), 99.0), delimiter=",")
    solid = write(tmp_path, "solid.nii.gz", scene((8, 8, 8)).astype(np.float32), affine_of((8, 8, 8)))
    more = [row("m2"), row("m2").replace("m2.nii", "gone.nii"), row("m2").replace("m2.nii.gz", Path(solid).name)]
    lines = refused(command, capsys, "--csv", table(tmp_path, more), "--out", "out", *RIGID)
    expected = (
        "m2_seg.nii.gz lies on another grid than",
        "m2.csv has 6 of 6 landmarks outside of the image",
        "gone.nii.gz does not exist",
        "have 2 and 3 dimensions",
        "so no pair was begun",
    )
    for sentence in expected:
        assert any(sentence in line for line in lines), sentence
    assert not (tmp_path / "out").exists()


def test_an_image_with_itself_is_no_pair(command, tmp_path, capsys) -> None:
    path = table(tmp_path, [row("m0").replace("fixed.nii.gz", "m0.nii.gz")])
    (line,) = refused(command, capsys, "--csv", path, "--out", "out", *RIGID)
    assert "line 4 pairs" in line and "m0.nii.gz with itself, expected two images" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--csv", "none.csv"), "none.csv does not exist, expected a table of pairs"),
        (("--csv", "pairs.csv", "fixed.nii.gz", "m0.nii.gz"), "expected neither FIXED nor MOVING"),
        (("--csv", "pairs.csv", "--warp-labels", "m0_seg.nii.gz"), "--warp-labels is for one pair"),
        (("--csv", "pairs.csv", "--jobs", "0"), "--jobs is 0"),
        (("fixed.nii.gz", "m0.nii.gz", "--jobs", "2"), "expected a number of processes, with --csv"),
        (("fixed.nii.gz",), "expected FIXED and MOVING, two images, or --csv"),
        (("--csv", "pairs.csv", "--stages", "rigged"), "stages are rigged"),
        (("--csv", "pairs.csv", "--stages", "rigid", "--model", "m.ckpt"), "model is for the deformable stage"),
        (("--csv", "pairs.csv", "--model", "m.ckpt"), "m.ckpt"),
        (("--csv", "pairs.csv", "--device", "cuda:99"), "device is 'cuda:99'"),
        (("--csv", "pairs.csv", "--bids"), "m0.nii.gz has no name of BIDS"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_before_any_pair(
    words, sentence, command, tmp_path, capsys
) -> None:
    table(tmp_path)
    lines = refused(command, capsys, *words, "--out", "out")
    assert any(sentence in line for line in lines) and not (tmp_path / "out").exists()


def test_a_table_of_something_else_is_not_replaced(command, tmp_path, capsys) -> None:
    path = table(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.csv").write_text("mine\n")
    lines = refused(command, capsys, "--csv", path, "--out", "out", *RIGID)
    assert "results.csv exists and is no table of register" in lines[0]
    assert (tmp_path / "out/results.csv").read_text() == "mine\n"
    (tmp_path / "out/results.csv").rename(tmp_path / "out/report.html")
    lines = refused(command, capsys, "--csv", path, "--out", "out", *RIGID)
    assert "report.html exists and is no page of register" in lines[0]


@pytest.mark.slow
def test_two_processes_do_what_one_does(command, tmp_path) -> None:
    path = table(tmp_path)
    command("register", "--csv", path, "--out", "one", *RIGID, "--quiet")
    command("register", "--csv", path, "--out", "two", *RIGID, "--quiet", "--jobs", "2")
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    for name, expected in one.items():
        assert two[name]["verdict"] == expected["verdict"] == "good"
        assert {key for key in expected if two[name][key] != expected[key]} <= {"seconds"}
    # reports, pages and pictures have times in them
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()} == {*files}
    alike = [name for name in files if name.suffix not in (".json", ".csv", ".png", ".html")]
    assert len(alike) >= 2 * len(one)
    for name in alike:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    # what is done by one is done for two
    before = written(tmp_path / "one")
    command("register", "--csv", path, "--out", "one", *RIGID, "--quiet", "--jobs", "2")
    assert written(tmp_path / "one") == before


def test_the_model_is_loaded_once_and_labels_are_matched_only_on_request(command, tmp_path, monkeypatch) -> None:
    loads, given = [], []

    def spy(*images, model, fixed_labels, moving_labels, terms, fixed_mask, moving_mask, **rest):
        given.append((model, fixed_labels, moving_labels, [*terms], fixed_mask, moving_mask))
        raise ValueError("enough")

    path = table(tmp_path)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{head},fixed_mask", *(f"{row},fixed_seg.nii.gz" for row in rows)]) + "\n")
    monkeypatch.setattr("dio_lightning.registration.pipeline.register", spy)
    monkeypatch.setattr("dio_lightning.api.load", lambda file: loads.append(file) or local_correlation(SIZE))
    for words in ((), ("--prompt-label", "1")):
        with pytest.raises(SystemExit) as stop:
            command("register", "--csv", path, "--out", "out", "--model", "m.ckpt", *words)
        assert stop.value.code == 3
    assert len(loads) == 2 and len(given) == 4 and len({id(one[0]) for one in given}) == 2
    seg = [tmp_path / name for name in ("fixed_seg.nii.gz", "m0_seg.nii.gz", "m1_seg.nii.gz")]
    assert [one[1:4] for one in given[:2]] == [(None, None, [])] * 2
    assert [one[1:3] for one in given[2:]] == [(seg[0], seg[1]), (seg[0], seg[2])]
    assert all([*one[3][0].labels] == [1] for one in given[2:]) and all(one[4:] == (seg[0], None) for one in given)


class Deadly:
    """A task that ends the process which receives it, as the system does for lack of memory."""

    def __init__(self, options) -> None:
        self.options = options

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.slow
def test_a_process_that_is_killed_fails_its_pairs_and_not_the_command() -> None:
    options = parser().parse_args(["--csv", "pairs.csv", "--out", "out", *RIGID])
    (_, why), (_, again) = spread([Deadly(options), Deadly(options)], 1)
    assert why == again == "a process ended before its pair, perhaps for lack of memory"


def test_a_module_that_is_given_keeps_its_terms_from_pair_to_pair() -> None:
    module, image = local_correlation((16, 16)), scene((16, 16))
    before = module.layer.update
    for _ in range(2):
        register(image, image, stages=("deformable",), model=module, terms=[Bending(0.1)])
    assert module.layer.update is before


def test_another_model_by_name_is_another_setting() -> None:
    """Else the pairs of one method would count as done for the next."""
    prints = {
        _fingerprint(parser().parse_args(["--csv", "pairs.csv", "--out", "out", "--model", name]), [])
        for name in ("classical/mind", "classical/lncc")
    }
    assert len(prints) == 2


def test_a_model_that_is_neither_a_file_nor_a_name_is_one_sentence() -> None:
    with pytest.raises(FileNotFoundError, match="neither a file of weights nor a model"):
        dio_lightning.load("nonsense")
    with pytest.raises(ValueError, match="weights to be trained"):
        dio_lightning.load("brains/dio")
