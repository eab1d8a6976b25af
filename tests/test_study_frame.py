"""The frame of the studies: records are pooled as they should be, and a new study is a file and an entry."""

import csv
import subprocess
import sys

import pytest
from dummies import ROOT, TINY, House

from dio_lightning.scores.records import NO_PAIR, Record, Records, of_batch
from dio_lightning.studies.command import STUDIES, study_class

DUMMY = '''
"""How bright the fixed images are."""

from dataclasses import dataclass

from dio_lightning.scores.records import of_batch
from dio_lightning.studies.rendering import Line, Panel, draw, table, to_csv
from dio_lightning.studies.study import PairStudy, option


@dataclass(frozen=True, kw_only=True)
class Brightness(PairStudy):
    """Mean intensity of every test pair, under a factor."""

    name = "brightness"
    factor: float = option(1.0, "the mean is multiplied by it", float)

    def measure(self, loaded):
        for ids, pair in loaded.batches(self.limit):
            values = self.factor * pair["fixed"].flatten(1).mean(1)
            yield from of_batch(loaded.name, str(loaded.weights), self.factor, ids, "mean", values.tolist())

    def tables(self, records):
        return [to_csv([{"method": m, "factor": c, **values} for m, _, c, _, values in records.rows()])]

    def markdown(self, records):
        rows = [[m, f"{records.moments(m, 'mean', self.factor).mean:.6f}"] for m in records.methods]
        return table(["method", "mean"], rows) + "\\n"

    def figure(self, records):
        lines = [Line(m, [self.factor], [records.moments(m, "mean", self.factor).mean]) for m in records.methods]
        return draw(Panel("factor", "mean", lines))
'''


def test_a_study_is_one_file_and_one_entry(tmp_path) -> None:
    house = House.copy(tmp_path)
    house.add("dio_lightning/studies/brightness.py", DUMMY)
    entry = '    "brightness": Entry("brightness.Brightness", "how bright the fixed images are"),\n'
    house.insert("dio_lightning/studies/command.py", '    "convergence": Entry(', entry)
    assert len(house.touched) == 2
    assert "brightness   how bright the fixed images are" in house.run("study", "--help")
    printed = house.run("study", "brightness", f"mine={TINY}", "--out", "out", "--factor", 3, "--limit", 2)
    files = {f"brightness.{ending}" for ending in ("csv", "md", "png", "svg", "html")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == files
    with open(tmp_path / "out/brightness.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["factor"]) for row in rows] == [("mine", "3.0")] * 2
    mean = sum(float(row["mean"]) for row in rows) / 2
    assert 0.1 < mean < 3 and f"| mine | {mean:.6f} |" in printed
    assert (tmp_path / "out/brightness.md").read_text() in printed and "2 pairs in" in printed


def test_records_are_pooled_over_seeds_then_slices_then_pairs() -> None:
    slices, whole = [("a_s001", "b_s001"), ("a_s002", "b_s002")], ("c", "d")
    records = Records([Record("m", "one", 0, NO_PAIR, "trained", 4)])
    for seed, values in (("one", [0.1, 0.3, 0.6]), ("two", [0.3, 0.5, 1.0])):
        for record in of_batch("m", seed, 7, [*slices, whole], "dice", values):
            records.add(record)
    assert records.pairs("m", "dice", 7) == pytest.approx({slices[0]: 0.2, slices[1]: 0.4, whole: 0.8})
    pooled = records.moments("m", "dice", 7)
    assert (pooled.mean, pooled.std, pooled.n) == (pytest.approx(0.55), pytest.approx(0.25), 2)
    assert records.moments("m", "dice", 7, "two").mean == pytest.approx(0.7)
    assert (records.methods, records.seeds("m"), records.conditions("m", "dice")) == (["m"], ["one", "two"], [7])
    assert records.moments("m", "dice", 8).n == 0


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_of_the_registry_says_its_own_options(command, capsys, name) -> None:
    assert study_class(name).name == name
    with pytest.raises(SystemExit):
        command("study", name, "--help")
    printed = capsys.readouterr().out
    assert STUDIES[name].about in " ".join(printed.split()) and "--overwrite" in printed
    with pytest.raises(SystemExit):
        needed = ["--domains", "domains.yaml"] if name == "shift" else []
        command("study", name, "weights", "--out", "out", *needed, "--overwrit")
    assert "did you mean '--overwrite'?" in capsys.readouterr().err


def test_studies_stay_small() -> None:
    """Two files a study, and less than 2,000 lines for all of them and their frame."""
    files = sorted((ROOT / "dio_lightning/studies").glob("*.py"))
    assert sum(len(file.read_text().splitlines()) for file in files) < 2000
    with_frame = {"__init__", "command", "study", "rendering", "watching", "equilibrium", "comparison"}
    for name in STUDIES:
        own = [file.stem for file in files if file.stem.startswith(name)]
        assert name in own and len(own) <= (3 if name == "shift" else 1), own
        with_frame |= set(own)
    assert {file.stem for file in files} == with_frame


def test_help_of_a_study_waits_for_no_torch() -> None:
    code = "import sys; from dio_lightning.studies.command import STUDIES, study_class; [*map(study_class, STUDIES)]"
    code += "; print([name for name in ('torch', 'lightning', 'matplotlib', 'monai') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
