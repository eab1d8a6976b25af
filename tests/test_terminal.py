"""What commands print is readable at 80 columns, without colour and in a file: nothing cut off, nothing wider."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console
from test_register_progress import play
from trainings import batch, build, loader, trainer

from dio_lightning.callbacks import ProgressLines, TrainingBar
from dio_lightning.callbacks.report import About, terminal_table
from dio_lightning.registration.progress import Bar, Lines
from dio_lightning.reports.study import tables_of
from dio_lightning.reports.terminal import show

ROOT = Path(__file__).parents[1]
TABLES = sorted(ROOT.glob("experiments/*/results/*.md"))
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WIDTH = 80


def printed(what, terminal: bool) -> str:
    """What a function prints to a terminal of 80 columns, or to a file; a file gets no colours and no controls."""
    out = io.StringIO()
    what(Console(file=out, force_terminal=terminal, width=WIDTH, highlight=False))
    text = out.getvalue()
    assert terminal or "\x1b" not in text
    return CONTROL.sub("", text)


def lines(text: str) -> list[str]:
    found = [line for line in re.split(r"[\r\n]", text) if line.strip()]
    assert all(len(line) <= WIDTH for line in found), max(found, key=len)
    return found


def holds(text: str, cell: str) -> bool:
    """Whether a cell is there with all its signs, over as many lines as it takes."""
    rows = [re.split(r"[│┃|]", line) for line in lines(text)]
    columns = ["".join(row[place].strip() for row in rows if place < len(row)) for place in range(max(map(len, rows)))]
    return any(re.sub(r"\s", "", cell) in re.sub(r"\s", "", column) for column in columns)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_scores_of_a_test(terminal):
    rows = [
        {"fixed_id": "a", "moving_id": str(i), "dice": 0.6 + i / 99, "dice_identity": 0.5, "hd95": 4.0, "peak_mb": 9e5}
        for i in range(3)
    ]
    method = "Intensity (iterations [30, 20, 10], transformation StationaryVelocity, regularity 0.1, term LNCC)"
    table = terminal_table(rows, About("", method, {}))
    text = printed(lambda console: console.print(table.rich()), terminal)
    assert all(holds(text, cell.text) for row in table.rows for cell in row) and holds(text, method)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_tables_of_studies_and_comparisons(path):
    markdown = path.read_text(encoding="utf-8")
    text = printed(lambda console: show(markdown, console), True)
    for table in tables_of(markdown):
        for cell in {cell.text for row in table.rows for cell in row} | {*table.heading}:
            assert holds(text, cell), cell
        assert re.sub(r"\s", "", table.caption) in re.sub(r"\s", "", text)
    assert printed(lambda console: show(markdown, console), False) == markdown.rstrip("\n") + "\n"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/sweeps/*.yaml")), ids=lambda path: path.stem)
def test_the_trials_of_a_sweep(path, terminal, monkeypatch):
    report = pytest.importorskip("dio_lightning.sweeps.report", reason="needs optuna (dev)", exc_type=ImportError)
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))["parameters"]
    values = {key: 1.2345e-4 * 9**place for place, key in enumerate(keys)}
    row = {"trial": 11, "state": "complete", "val/dice": 0.712345, "values": 20, **values}
    monkeypatch.setattr(report, "rows", lambda *_: [{**row, "reason": ""}] * 3)
    sweep = SimpleNamespace(metric="val/dice", goal="maximize")
    text = printed(lambda console: report.show(sweep, None, Path("runs/sweep"), console), terminal)
    said = [line.split() for line in lines(text)]
    for word in (*(f"{value:.4g}" for value in values.values()), "complete", "0.7123"):
        assert sum(word in line for line in said) == 3, word
    assert "rerun runs/sweep" in text and "…" not in text


def test_the_bar_of_a_training(tmp_path):
    out = io.StringIO()
    bar = TrainingBar(console_kwargs={"file": out, "force_terminal": True, "force_interactive": True, "width": WIDTH})
    run = trainer(tmp_path, bar, ProgressLines(), enable_progress_bar=True)
    run.fit(build("DIO"), loader([batch(i) for i in range(2)]))
    said = lines(CONTROL.sub("", out.getvalue()))
    whole = " ".join(" ".join(said[-2:]).split())
    assert re.search(r"epoch \d/\d .* 2/2 .*loss: \S+ residual: \S+ steps: \d+ skipped: 0", whole, re.IGNORECASE), said


def test_the_stages_of_a_registration(capsys):
    bar, shown = Bar(), io.StringIO()
    bar._bar.live.console = Console(file=shown, force_terminal=True, width=WIDTH, highlight=False)
    play(bar)
    assert any(
        "deformable: level 2, step 1, energy 4 → 3.25" in line for line in lines(CONTROL.sub("", shown.getvalue()))
    )
    play(Lines())
    said = capsys.readouterr().err
    assert "\x1b" not in said and len(lines(said)) == 9
