"""The frame of the studies: records are pooled as they should be, and a new study is a file and an entry."""

import subprocess
import sys

import pytest
from dummies import ROOT

from dio_lightning.scores.records import NO_PAIR, Record, Records, of_batch
from dio_lightning.studies.command import STUDIES, study_class


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
