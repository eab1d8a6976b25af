"""One table out of finished test runs: the numbers, the tests, and what is refused."""

import base64
import csv
import math
import re
import statistics
from itertools import combinations
from pathlib import Path

import pytest
from scipy import stats

from dio_lightning.scores.statistics import holm
from dio_lightning.studies.comparison import compare

PAIRS = [(a, b) for a in "ABCD" for b in "ABCD" if a != b]
GOOD = [0.70, 0.72, 0.69, 0.75, 0.71, 0.66, 0.73, 0.74, 0.68, 0.77, 0.65, 0.76]
BAD = [value - 0.01 * (i + 1) for i, value in enumerate(GOOD)]
MIXED = [value + 0.003 * (i + 1) * (-1) ** i for i, value in enumerate(GOOD)]


def write(folder, pairs=PAIRS, config="", **columns):
    """A run's folder with these columns, one value a pair."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fixed_id", "moving_id", *columns])
        writer.writerows(
            [*pair, *values] for pair, values in zip(pairs, zip(*columns.values(), strict=True), strict=True)
        )
    if config:
        (folder / "config.yaml").write_text(config)
    return folder


def entries(path):
    """The plain numbers by method and score."""
    with open(path.with_suffix(".csv"), encoding="utf-8") as file:
        return {(row["method"], row["score"]): row for row in csv.DictReader(file)}


def p_values(path):
    """The matrices by quantity and the two methods."""
    with open(path.with_name(f"{path.stem}_pvalues.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(r["quantity"], r["method"], k): v for r in rows for k, v in r.items() if k not in ("quantity", "method")}


def row(markdown, name):
    """The cells of a method's row."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.fixture
def three(tmp_path):
    """Runs of a worse, a mixed and a good method, as arguments."""
    named = {"bad": BAD, "mixed": MIXED, "good": GOOD}
    hd95 = {"bad": [5 + 0.1 * i for i in range(12)], "mixed": [4.0] * 12, "good": [4 + 0.01 * i for i in range(12)]}
    return [f"{n}={write(tmp_path / n, dice=v, hd95=hd95[n], seconds=[2] * 12)}" for n, v in named.items()]


def test_means_tests_and_marks(three, tmp_path):
    table = tmp_path / "t.md"
    text = compare(three, table)
    found = entries(table)
    assert float(found["bad", "dice"]["mean"]) == pytest.approx(statistics.fmean(BAD))
    assert float(found["bad", "dice"]["std"]) == pytest.approx(statistics.pstdev(BAD))
    raw = [stats.wilcoxon([a - b for a, b in zip(v, GOOD, strict=True)]).pvalue for v in (BAD, MIXED)]
    assert raw[0] < 0.01 < 0.1 < raw[1]
    assert float(found["bad", "dice"]["p"]) == pytest.approx(raw[0])
    assert float(found["bad", "dice"]["p_holm"]) == pytest.approx(2 * raw[0])
    assert float(found["mixed", "dice"]["p_holm"]) == pytest.approx(raw[1])
    assert [found[n, "dice"]["verdict"] for n in ("bad", "mixed", "good")] == ["worse", "", ""]
    assert [found[n, "hd95"]["verdict"] for n in ("bad", "mixed", "good")] == ["worse", "better", ""], "less is better"
    assert found["bad", "seconds"]["p"] == found["good", "dice"]["p"] == ""
    dice = [f"{statistics.fmean(v):.3f} ± {statistics.pstdev(v):.3f}" for v in (BAD, MIXED, GOOD)]
    assert [row(text, n)[0] for n in ("bad", "mixed", "good")] == [f"{dice[0]}⁻", dice[1], f"**{dice[2]}**"]
    assert row(text, "mixed")[1:] == ["**4.00 ± 0.00⁺**", "2.0"], "seconds are neither bold nor spread"
    assert text.splitlines()[0] == "| method | Dice | HD95 (mm) | s a pair |"
    for said in ("12 pairs", "Wilcoxon", "n = 12", "Holm", "than good", "0.05", "4 subjects", "One seed"):
        assert said in text


def test_all_methods_are_compared_with_each_other_on_dice(three, tmp_path):
    compare(three, tmp_path / "t.md", reference="bad", metrics=["hd95"], alpha=0.01)
    values = {"bad": BAD, "mixed": MIXED, "good": GOOD}
    raw = {
        pair: stats.wilcoxon([a - b for a, b in zip(values[pair[0]], values[pair[1]], strict=True)]).pvalue
        for pair in combinations(values, 2)
    }
    adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
    found = p_values(tmp_path / "t.md")
    for (a, b), p in raw.items():
        assert float(found["p", a, b]) == float(found["p", b, a]) == pytest.approx(p)
        assert float(found["p_holm", a, b]) == pytest.approx(adjusted[a, b])
        assert found["n", a, b] == "12" and found["p", a, a] == ""
    assert {score for _, score in entries(tmp_path / "t.md")} == {"hd95"}
    assert entries(tmp_path / "t.md")["good", "hd95"]["reference"] == "bad"


def test_seeds_of_a_method_are_averaged_per_pair(tmp_path):
    seeds = [[v + shift for v in GOOD] for shift in (0.0, 0.03, 0.06)]
    runs = [f"many={write(tmp_path / str(i), dice=v, steps=[3] * 12)}" for i, v in enumerate(seeds)]
    text = compare([*runs, f"one={write(tmp_path / 'one', dice=BAD, steps=[4] * 12)}"], tmp_path / "t.md")
    found = entries(tmp_path / "t.md")["many", "dice"]
    assert float(found["mean"]) == pytest.approx(statistics.fmean(GOOD) + 0.03)
    assert float(found["std"]) == pytest.approx(statistics.pstdev(GOOD)), "over pairs, not over pairs and seeds"
    assert float(found["std_seeds"]) == pytest.approx(0.03) and found["seeds"] == "3" and found["n_compared"] == "12"
    assert text.splitlines()[0] == "| method | Dice | seeds ± | steps |"
    assert row(text, "many")[1:] == ["0.030", "3"] and row(text, "one")[1:] == ["–", "4"]
    assert "Seeds: many 3, one 1" in text


def test_a_pair_without_a_number_is_left_out_of_that_comparison_and_said(tmp_path):
    holes = [math.nan, *BAD[1:]]
    named = {"holes": holes, "bad": BAD, "good": GOOD}
    text = compare([f"{n}={write(tmp_path / n, dice=v)}" for n, v in named.items()], tmp_path / "t.md")
    found = entries(tmp_path / "t.md")
    assert (found["holes", "dice"]["n_compared"], found["bad", "dice"]["n_compared"]) == ("11", "12")
    assert float(found["holes", "dice"]["mean"]) == pytest.approx(statistics.fmean(BAD[1:]))
    assert float(found["holes", "dice"]["p"]) == pytest.approx(2 / 2**11)
    assert "holes is compared on dice without 1 of 12 pairs" in text and "(n=11)" in row(text, "holes")[0]
    assert p_values(tmp_path / "t.md")["n", "bad", "holes"] == "11"
    # one seed without a number: its pair has none
    runs = [f"two={write(tmp_path / 'a', dice=holes)}", f"two={write(tmp_path / 'b', dice=BAD)}"]
    compare([*runs, f"good={tmp_path / 'good'}"], tmp_path / "t.md", overwrite=True)
    found = entries(tmp_path / "t.md")["two", "dice"]
    assert found["n"] == "11" and float(found["std_seeds"]) == pytest.approx(0.0)


def test_slices_are_averaged_to_pairs_of_subjects(tmp_path):
    pairs = [(f"{a}_s{k:03d}", f"{b}_s{k:03d}") for a, b in PAIRS for k in (40, 46)]
    ours = [value + shift for value in BAD for shift in (-0.02, 0.02)]
    theirs = [value + shift for value in GOOD for shift in (0.2, -0.2)]
    ours[0] = math.nan
    runs = [f"{n}={write(tmp_path / n, pairs, dice=v)}" for n, v in {"ours": ours, "theirs": theirs}.items()]
    text = compare(runs, tmp_path / "t.md")
    found = entries(tmp_path / "t.md")
    assert found["theirs", "dice"]["n"] == "12"
    assert float(found["theirs", "dice"]["std"]) == pytest.approx(statistics.pstdev(GOOD)), "over subject pairs"
    # the first pair of subjects is compared on its second slice alone, in both methods
    first = ours[1] - theirs[1]
    rest = [a - b for a, b in zip(BAD[1:], GOOD[1:], strict=True)]
    assert float(found["ours", "dice"]["difference"]) == pytest.approx((first + sum(rest)) / 12)
    assert float(found["ours", "dice"]["p"]) == pytest.approx(stats.wilcoxon([first, *rest]).pvalue), "12 units, not 24"
    for said in ("12 pairs of subjects", "24 slices", "without 1 of 24 slices", "share 4 subjects"):
        assert said in text


def test_too_few_pairs_and_no_shared_subject(tmp_path):
    pairs = [(f"{i}_0000", f"{i}_0001") for i in range(5)]
    runs = [f"{n}={write(tmp_path / n, pairs, tre=v[:5])}" for n, v in {"a": GOOD, "b": BAD}.items()]
    text = compare(runs, tmp_path / "t.md")
    assert "n = 5 can give is 0.062" in text and "subjects" not in text
    assert entries(tmp_path / "t.md")["a", "tre"]["verdict"] == ""
    assert float(p_values(tmp_path / "t.md")["p", "a", "b"]) == pytest.approx(0.0625), "without Dice, the first score"


def test_no_registration_has_neither_folds_nor_time(tmp_path):
    still = {"dice": BAD, "dice_identity": BAD, "folds": [0] * 12, "sdlogj": [0] * 12, "seconds": [0.01] * 12}
    moved = {"dice": GOOD, "dice_identity": BAD, "folds": [0.02] * 12, "sdlogj": [0.1] * 12, "seconds": [3] * 12}
    runs = [f"none={write(tmp_path / 'none', **still)}", f"ours={write(tmp_path / 'ours', **moved)}"]
    text = compare(runs, tmp_path / "t.md")
    assert row(text, "none")[1:] == ["–", "–", "–"] and "–: no number" in text
    assert row(text, "ours")[1:] == ["**0.0200 ± 0.0000**", "**0.100 ± 0.000**", "3.0"]
    assert entries(tmp_path / "t.md")["none", "folds"]["p"] == ""


def test_numbers_are_written_as_in_the_experiments(tmp_path):
    half = [0] * 6 + [1] * 6
    columns = {"folds": [0] * 12, "seconds": [0.0123] * 12, "steps": [63.4] * 12}
    a = write(tmp_path / "a", **columns)
    b = write(tmp_path / "b", **{**columns, "folds": [2.21 + 1.72 * h for h in half], "seconds": [39.64] * 12})
    text = compare([str(a), str(b)], tmp_path / "t.md")
    assert row(text, "a") == ["**0.0000⁺**", "0.012", "63"], "named as its folder"
    assert row(text, "b") == ["3.07 ± 0.86", "39.6", "63"]


def test_latex_has_the_same_cells_escaped(tmp_path):
    data = "data: {class_path: data_modules.Learn2Reg, init_args: {root: /home/me/brains_2mm}}"
    named = {"50%_a & $b#": BAD, "pipe|~^": GOOD}
    runs = [f"{n}={write(tmp_path / str(i), config=data, dice=v)}" for i, (n, v) in enumerate(named.items())]
    text = compare(runs, tmp_path / "my_table.md")
    tex = (tmp_path / "my_table.tex").read_text(encoding="utf-8")
    body = tex.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    bad, good = (f"{statistics.fmean(v):.3f} $\\pm$ {statistics.pstdev(v):.3f}" for v in (BAD, GOOD))
    assert body[0] == rf"50\%\_a \& \$b\# & {bad}$^{{-}}$ \\"
    assert body[1] == rf"pipe$|$\textasciitilde{{}}\textasciicircum{{}} & \textbf{{{good}}} \\"
    assert r"\begin{tabular}{lc}" in tex and r"\label{tab:my-table}" in tex and r"Data: brains\_2mm." in tex
    assert r"p $<$ 0.05" in tex and tex.count("{") == tex.count("}")
    assert r"pipe\|~^" in text and "Data: brains_2mm." in text and "/home" not in text + tex


def refusals(folder):
    """Arguments that are refused, beside a part of the reason."""
    a, other = folder / "a", folder / "other"
    return {
        "lacks the pair (fixed D, moving C) of run 'a'": [a, write(folder / "fewer", PAIRS[:-1], dice=GOOD[:-1])],
        "lacks the pair (fixed E, moving A) and 1 more of run 'more'": [
            a,
            write(folder / "more", [*PAIRS, ("E", "A"), ("E", "B")], dice=[*GOOD, 1, 1]),
        ],
        "not the same data": [
            f"x={write(folder / 'i', dice=GOOD, dice_identity=BAD)}",
            f"y={write(folder / 'j', dice=GOOD, dice_identity=GOOD)}",
        ],
        "has no metrics.csv": [folder / "nowhere"],
        "no columns fixed_id": [write(folder / "logs", [("1", "2")], dice=[1]).parent / "curve"],
        "twice as a seed": [f"x={a}", f"x={a}"],
        "two runs would be called 'a'": [a, write(folder / "deeper/a", dice=GOOD)],
        "expected FOLDER or NAME=FOLDER": [f"={a}"],
        "'worst' is none of the runs": [a, "--reference", "worst"],
        "no score 'dise'": [a, "--metrics", "dise"],
        "no run has the score 'tre'": [a, "--metrics", "tre"],
        "between 0 and 1": [a, "--alpha", "5"],
        "not a number": [write(folder / "words", dice=["good"] * 12)],
        "has the pair (fixed A, moving B) twice": [write(folder / "twice", [PAIRS[0]] * 2, dice=[1, 1])],
        "has no pairs": [write(folder / "empty", [], dice=[])],
        "no run has a score to show": [write(folder / "bare", peak=[1] * 12)],
        "ending in .md": [a, "--out", folder / "t.txt"],
        "it is a folder": [a, "--out", other / "t.md", "--overwrite"],
        "required: --out": [a, "--out"],
    }


def test_what_cannot_be_compared_is_refused_in_one_sentence_and_leaves_nothing(command, tmp_path, capsys):
    write(tmp_path / "a", dice=GOOD)
    (tmp_path / "curve").mkdir()
    (tmp_path / "curve/metrics.csv").write_text("step,loss\n1,2\n")
    (tmp_path / "other/t_pvalues.csv").mkdir(parents=True)
    cases = refusals(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for reason, arguments in cases.items():
        rest = [] if "--out" in arguments else ["--out", tmp_path / "results/t.md"]
        arguments = arguments[:-1] if arguments[-1] == "--out" else arguments
        with pytest.raises(SystemExit) as stopped:
            command("compare", *arguments, *(rest if reason != "required: --out" else []))
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        assert reason in error or (reason.startswith("required") and "--out" in error), error
        assert sorted(tmp_path.rglob("*")) == before, reason


def test_the_page_has_the_table_the_boxes_and_the_files(three, tmp_path):
    for text, shift in zip(three, (0.0, 0.1, 0.2), strict=True):
        folder = Path(text.partition("=")[2])
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        lines = [f"{row['fixed_id']},{row['moving_id']},4,Thalamus,{0.5 + shift}" for row in rows]
        (folder / "metrics_per_label.csv").write_text("\n".join(["fixed_id,moving_id,label,name,dice", *lines]))
    compare(three, tmp_path / "t.md")
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert page.count('class="plot"') >= 2 and "Thalamus" in page and "Holm" in page and "http" not in page
    saved = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page)
    assert {name: base64.b64decode(text).decode() for name, text in saved} == {
        name: (tmp_path / name).read_text(encoding="utf-8") for name in ("t.csv", "t_pvalues.csv")
    }


def test_a_failed_write_replaces_nothing(three, tmp_path, monkeypatch):
    table = tmp_path / "out/t.md"
    compare(three, table)
    before = {path: path.read_text(encoding="utf-8") for path in table.parent.iterdir()}
    # LaTeX stands in no other file, so that the first thing to fail is its writing
    monkeypatch.setattr("dio_lightning.scores.table.Table.latex", lambda *_: None)
    with pytest.raises(TypeError):
        compare(three, table, reference="bad", overwrite=True)
    assert {path: path.read_text(encoding="utf-8") for path in table.parent.iterdir()} == before


def test_from_the_command_line(three, command, tmp_path, capsys):
    arguments = ("compare", *three, "--metrics", "hd95", "dice", "--reference", "mixed", "--out", "tables/t.md")
    command(*arguments)
    printed = capsys.readouterr().out
    folder = tmp_path / "tables"
    wrote = "wrote tables/t.md and its .html, .tex, .csv and _pvalues.csv\n"
    assert printed == (folder / "t.md").read_text(encoding="utf-8") + wrote
    assert printed.startswith("| method | HD95 (mm) | Dice |\n|---|---|---|\n| bad |") and "than mixed" in printed
    assert {path.name for path in folder.iterdir()} == {"t.md", "t.html", "t.tex", "t.csv", "t_pvalues.csv"}
    with pytest.raises(SystemExit):
        command(*arguments)
    assert "--overwrite" in capsys.readouterr().err
    command(*arguments, "--overwrite", "--alpha", "0.0001")
    assert "⁻ |" not in capsys.readouterr().out


def test_a_score_that_not_all_runs_have_leaves_cells_empty(tmp_path, command):
    """C: `--metrics dice mask_dice` was a KeyError; a score of one's own was dropped when it was read."""
    a = write(tmp_path / "a", dice=BAD, own_score=[2.0] * 12)
    b = write(tmp_path / "b", dice=GOOD, mask_dice=GOOD)
    command("compare", f"a={a}", f"b={b}", "--metrics", "dice", "mask_dice", "own_score", "--out", "t.md")
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "| method | Dice | mask Dice | own score |"
    assert row(text, "a")[1:] == ["–", "2.00"]
    assert row(text, "b") == ["**0.713 ± 0.037**", "**0.713 ± 0.037**", "–"]
    assert "neither more nor less is known to be better: own_score." in text
    assert float(entries(tmp_path / "t.md")["a", "own_score"]["mean"]) == 2


def test_the_caption_names_what_was_changed_at_test_time(tmp_path, command):
    """D14: the row of DIO with another transformation is not told apart by its folder's name alone."""
    a, b = (write(tmp_path / name, dice=values) for name, values in {"a": BAD, "b": GOOD}.items())
    (a / "summary.json").write_text('{"method": "DIO (FreeForm)"}')
    (b / "summary.json").write_text('{"method": "DIO"}')
    (b / "config_test.yaml").write_text("data: {class_path: data_modules.Learn2Reg, init_args: {root: x/tested}}")
    (b / "config.yaml").write_text("data: {class_path: data_modules.Learn2Reg, init_args: {root: x/trained}}")
    command("compare", a, b, "--out", "t.md")
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert "Data: tested. a is DIO (FreeForm)." in text and "b is" not in text


def test_distances_in_voxels_are_not_called_millimetres(tmp_path, command, capsys):
    """`unit_spacing` gives Hausdorff distances in voxels; every table said mm."""
    a, b = (write(tmp_path / name, hd95=GOOD, tre=BAD) for name in "ab")
    (a / "summary.json").write_text('{"units": {"hd95": "voxels"}}')
    with pytest.raises(SystemExit):
        command("compare", a, b, "--out", "t.md")
    assert f"hd95 is in voxels in {a} and in mm in {b}" in capsys.readouterr().err
    command("compare", a, b, "--out", "t.md", "--metrics", "tre")
    command("compare", a, "--out", "t.md", "--overwrite")
    assert (tmp_path / "t.md").read_text().splitlines()[0] == "| method | HD95 (voxels) | TRE (mm) |"
