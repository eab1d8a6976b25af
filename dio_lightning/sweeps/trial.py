"""One trial: a process of its own, whose log is read while it runs."""

import csv
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import IO

from dio_lightning.errors import TERMINATED
from dio_lightning.run_folders import logged_files

PROGRAM = (sys.executable, "-m", "dio_lightning.sweeps.child")
PARSER = (sys.executable, "-m", "dio_lightning")
LOG = "trial.log"


@dataclass
class Outcome:
    """How a process ended.

    Args:
        values: what was logged of the metric, in order.
        logged: names of all that was logged.
        code: exit code, or minus the signal's number.
        stopped: whether it was this program that stopped it.
        said: the last line of what it said.
    """

    values: list[float]
    logged: list[str] = field(default_factory=list)
    code: int = 0
    stopped: bool = False
    said: str = ""

    @property
    def killed(self) -> bool:
        """Whether somebody else ended it."""
        return not self.stopped and (self.code < 0 or self.code == TERMINATED)


def run_trial(
    words: Sequence[str],
    folder: Path,
    metric: str,
    watch: Callable[[list[float]], bool],
    stop: Event,
    every: float = 1.0,
) -> Outcome:
    """Run a command, which goes on from the checkpoints that the folder has.

    Args:
        words: the command line.
        folder: of the run.
        metric: the value whose course is watched.
        watch: gets what was logged so far, every second; true stops the process, which saves first.
        stop: stops it too.
        every: seconds between two looks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while not free(folder) and not stop.is_set():
        # its last process is still saving
        time.sleep(every)
    own = ["--trainer.default_root_dir", str(folder)]
    own += ["--ckpt_path", "last"] if words[0] == "fit" and any(folder.glob("checkpoints/*.ckpt")) else []
    stopped = False
    with (folder / LOG).open("a", encoding="utf-8") as log:
        process = begin([*words, *own], log)
        try:
            while not ended(process, every):
                values, _ = logged(folder, metric)
                if stop.is_set() or watch(values):
                    stopped = True
                    finish(process)
        finally:
            finish(process)
    values, names = logged(folder, metric)
    return Outcome(values, names, process.returncode, stopped, last_line(folder / LOG))


def check(words: Sequence[str], folder: Path) -> str:
    """What a command line's parser says against it; "" if it accepts it."""
    words = [*words, "--trainer.default_root_dir", str(folder), "--print_config"]
    asked = subprocess.run([*PARSER, *words], capture_output=True, text=True, env=_environment())
    lines = [line for line in asked.stderr.splitlines() if line.strip()]
    return (lines or ["the command failed"])[-1].removeprefix("dio-lightning: error: ") if asked.returncode else ""


def begin(words: Sequence[str], log: IO[str]) -> subprocess.Popen[bytes]:
    """Start a process that ends when this one does, and that Ctrl-C in a terminal does not reach."""
    return subprocess.Popen(
        [*PROGRAM, *words],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_environment(),
        start_new_session=True,
    )


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within some seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def finish(process: subprocess.Popen[bytes], patience: float = 120.0) -> None:
    """Have a process save and end."""
    if process.stdin is not None and not process.stdin.closed:
        process.stdin.close()
    if process.poll() is None and not ended(process, patience):
        process.kill()
        process.wait()


def logged(folder: Path, metric: str) -> tuple[list[float], list[str]]:
    """What a run has logged of a metric, one value an epoch, in order; and the names of all that it logged."""
    values: dict[str, float] = {}
    names: dict[str, None] = {}
    for file in logged_files(folder):
        text = file.read_text(encoding="utf-8")
        # the line that is being written may have half of its number
        for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
            names |= dict.fromkeys(key for key, value in row.items() if value and key not in ("epoch", "step"))
            if value := row.get(metric):
                values[row.get("epoch") or str(len(values))] = float(value)
    return list(values.values()), list(names)


def free(folder: Path) -> bool:
    """Whether no process trains into a folder."""
    try:
        with (folder / ".training").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # no such file, or a disk without locks
        return True
    return True


def last_line(file: Path) -> str:
    """The last line of a log that is not empty, without the program's name."""
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("dio-lightning: error: ") if lines else ""


def _environment() -> Mapping[str, str]:
    # an agent of W&B has nothing to do with it
    return {name: value for name, value in os.environ.items() if name not in ("WANDB_SWEEP_ID", "WANDB_RUN_ID")}
