"""What `register` shows while it works, what its report says of the work, and what a signal leaves of it."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scans import affine_of, moved, scene, turned, write
from tables_of_pairs import table

from dio_lightning.implicit import Evaluation
from dio_lightning.layers import Record
from dio_lightning.registration import register
from dio_lightning.registration.journal import Journal
from dio_lightning.registration.progress import Bar, Lines, Progress, progress

ROOT = Path(__file__).parents[1]


def record(level: int, step: int, energy: float | None) -> Record:
    shown = None if energy is None else Evaluation(torch.ones(1), torch.ones(1), torch.tensor([energy]))
    return Record(level, step, torch.zeros(1, 2, 3, 3), shown, lambda z: z)


def play(shown: Progress) -> None:
    """Two pairs, the first with a solve of two levels."""
    with shown:
        shown.total(2)
        shown.pair("one")
        shown.stage("search")
        shown.stage("deformable")
        for level, step, energy in ((0, 0, 9.0), (0, 1, 7.5), (0, 2, None), (1, 0, 4.0), (1, 1, 3.25)):
            shown.observe(record(level, step, energy))
        shown.stage("inverse")
        shown.ended("one: good")
        shown.pair("two")
        shown.ended("two: failed")


def test_lines_tell_stages_levels_and_pairs(capsys) -> None:
    play(Lines())
    lines = [line.rsplit(", ", 1)[0] if "level" in line else line for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "one",
        "  search",
        "  deformable",
        "    level 1, step 2, energy 9 → 7.5",
        "    level 2, step 1, energy 4 → 3.25",
        "  inverse",
        "1/2 one: good",
        "two",
        "2/2 two: failed",
    ]


def test_a_bar_leaves_the_same_on_a_terminal() -> None:
    bar, shown = Bar(), io.StringIO()
    bar._bar.live.console = Console(file=shown, force_terminal=True, width=100, highlight=False)
    play(bar)
    text = shown.getvalue()
    for words in ("search", "deformable: level 2, step 1, energy 4 → 3.25", "inverse", "one: good", "two: failed"):
        assert words in text


def test_silence_is_asked_for_and_bars_need_a_terminal(monkeypatch) -> None:
    assert type(progress(silent=True)) is Progress and type(progress(silent=False)) is Lines
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert type(progress(silent=False)) is Bar


def test_the_journal_keeps_what_the_layer_returned() -> None:
    size = (40, 36)
    fixed, affine = scene(size), affine_of(size)
    images = {"fixed": fixed, "moving": moved(fixed, affine, turned(size, 4, 3)), "fixed_affine": affine}
    seen: list[Record] = []
    result = register(**images, moving_affine=affine, stages=("deformable",), observe=seen.append)
    stage = result.report()["stages"][0]
    assert [level["level"] for level in stage["levels"]] == [0, 1, 2]
    for level in stage["levels"]:
        records = [one for one in seen if one.level == level["level"]]
        energies = [float(one.evaluation.energy) for one in records if one.evaluation is not None]
        assert level["steps"] == records[-1].step
        assert level["energy"] == {"start": energies[0], "end": energies[-1]}
        # the steps ran out exactly where f was not asked at the last state
        assert level["converged"] == (records[-1].evaluation is not None) and not level["failed"]
        last = [one.evaluation for one in records if one.evaluation is not None][-1]
        assert level["residual"] == pytest.approx(float(last.residual / last.norm))
    assert any(level["energy"]["end"] < 0.99 * level["energy"]["start"] for level in stage["levels"])
    report = result.report()
    assert report["quality"]["std_logj"] > 0 and report["peak_mb"] > 0 and report["seconds"] >= stage["seconds"]


def test_a_method_without_a_layer_has_no_levels() -> None:
    journal = Journal()
    with journal.reading(torch.nn.Identity()):
        journal(record(0, 0, 1.0))
    assert journal.levels() == []


def test_the_report_says_how_it_came_about(command, tmp_path) -> None:
    size = (40, 36)
    image = write(tmp_path, "an image.nii.gz", scene(size).astype(np.float32), affine_of(size))
    command("register", image, image, "--out", "out", "--stages", "rigid")
    text = (tmp_path / "out/report.json").read_text()
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["command"].startswith("dio-lightning register '") and report["command"].endswith("--stages rigid")
    assert report["warnings"] == [] and report["versions"]["torch"] and report["files"]["warped"] == "warped.nii.gz"
    parts = report["stages"][0]["parts"]
    assert parts[0]["part"] == "search" and sum(part["seconds"] for part in parts) <= report["stages"][0]["seconds"]


def test_help_is_quick_and_has_examples_first() -> None:
    code = (
        "import sys; from dio_lightning.cli import main\n"
        "try: main(['register', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'monai', 'scipy', 'nibabel', 'matplotlib', 'rich'} & {*sys.modules}\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= 120
    assert lines.index("examples:") < next(i for i, line in enumerate(lines) if "--out FOLDER  " in line)


def started(folder: Path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "dio_lightning", "register", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment, cwd=folder, start_new_session=True,
        # a job in the background of a shell ignores SIGINT, and would hand that on
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def stopped(process: subprocess.Popen, word: str, number: int, group: bool = False) -> str:
    """What a command said that got a signal once it had said the word."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if word in line:
            break
    (os.killpg if group else os.kill)(process.pid, number)
    return said + process.communicate(timeout=120)[1]


class Heard(io.StringIO):
    """A stderr that sends this process a signal shortly after a word."""

    def __init__(self, word: str, number: int) -> None:
        super().__init__()
        self.word, self.number = word, number
        self.sender: threading.Timer | None = None

    def write(self, text: str) -> int:
        if self.word in text and self.sender is None:
            self.sender = threading.Timer(0.002, os.kill, (os.getpid(), self.number))
            self.sender.start()
        return super().write(text)


def late(*_: object) -> None:
    pytest.fail("the command had ended before its signal")


@pytest.fixture
def stop(command, monkeypatch):
    """Runs `register` in this process, which gets a signal when it says a word: exit code and what was said."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    # one that comes when nobody expects it any more fails the test, and does not end the tests
    other = signal.signal(signal.SIGTERM, late)

    def run(word: str, number: int, *words: str) -> tuple[object, str]:
        said = Heard(word, number)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", said)
            try:
                command("register", *words)
                if said.sender is not None:
                    said.sender.join()
            except SystemExit as stopped:
                return stopped.code, said.getvalue()
            except KeyboardInterrupt:
                late()
        pytest.fail(f"{word} was never said")

    yield run
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGTERM, other)


PAIR = ("fixed.nii.gz", "moving.nii.gz", "--out", "deep/out", "--stages", "rigid")


def pair(folder: Path) -> None:
    """The images of `PAIR`."""
    size = (24, 22, 26)
    write(folder, "fixed.nii.gz", scene(size).astype(np.float32), affine_of(size))
    write(folder, "moving.nii.gz", scene(size, 1).astype(np.float32), affine_of(size))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("word", ["reading", "search", "writing"])
def test_a_signal_leaves_nothing(word, number, code, stop, tmp_path) -> None:
    pair(tmp_path)
    began = time.monotonic()
    found, said = stop(word, number, *PAIR)
    assert found == code and "Traceback" not in said and time.monotonic() - began < 120
    assert not (tmp_path / "deep").exists()


@pytest.mark.slow
def test_a_signal_ends_a_process_that_leaves_nothing(tmp_path) -> None:
    pair(tmp_path)
    process = started(tmp_path, *PAIR)
    said = stopped(process, "writing", signal.SIGTERM)
    assert process.returncode == 143 and "Traceback" not in said
    assert not (tmp_path / "deep").exists()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_in_a_table_keeps_the_pairs_that_are_done(jobs, stop, tmp_path) -> None:
    table(tmp_path)
    words = ("--csv", "pairs.csv", "--out", "out", "--stages", "rigid", "--jobs", jobs)
    if jobs == "1":
        code, said = stop("1/2 ", signal.SIGINT, *words)
    else:
        process = started(tmp_path, *words)
        said = stopped(process, "1/2 ", signal.SIGINT, group=True)
        code = process.returncode
    assert code == 130 and "Traceback" not in said
    folder = tmp_path / "out"
    rows = (folder / "results.csv").read_text().splitlines()[1:]
    done = {path.parent.name for path in folder.glob("*/report.json")}
    assert len(rows) == 1 and rows[0].partition(",")[0] in done
    assert not [path for path in folder.rglob(".*")] and not (folder / "report.html").exists()
    for path in folder.glob("*/"):
        assert path.name in done
    deadline = time.monotonic() + 20
    while jobs == "2" and running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert jobs == "1" or not running(process.pid)


def running(session: int) -> list[str]:
    """What still runs of a session."""
    words = ["ps", "-s", str(session), "-o", "stat=,args="]
    lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line for line in lines if not line.startswith("Z")]
