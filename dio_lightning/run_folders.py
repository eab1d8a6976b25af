"""Where the files of a run go by default, and whose files they may replace."""

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TextIO

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from dio_lightning.arguments import CONFIG, content_of, short, split
from dio_lightning.checkpoint_files import checkpoints
from dio_lightning.scores.summary import digest

RUNS = Path("runs")
NAMED = ("last", "best", "hpc", "null", "None")
"""Checkpoints that are named by what they are, not by their path."""
_claimed: dict[Path, TextIO] = {}


def is_path(checkpoint: str | None) -> bool:
    """Whether `--ckpt_path` is the path of a file."""
    return bool(checkpoint) and checkpoint not in NAMED and not str(checkpoint).startswith("registry")


def names_folder(words: Sequence[str]) -> bool:
    """Whether a command line says where the run goes."""
    return any(option.place == ("trainer", "default_root_dir") for option in split(words[1:])[1])


def default_folder(words: Sequence[str]) -> Path:
    """The folder of a run whose command line and configs name none.

    A test of RUN/checkpoints/best.ckpt goes to RUN/test, one of other weights to runs/test/<name of the file>; whatever
    has no weights to start from goes to runs/<name of the config that has the model>. A trial that an agent of W&B
    starts goes to runs/sweeps/<sweep>/<trial>.
    """
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if sweep and trial:
        return RUNS / "sweeps" / sweep / trial
    command, options = words[0], split(words[1:])[1]
    given = {option.name: option.value for option in options}
    checkpoint = given.get("--ckpt_path")
    if command != "fit" and checkpoint is not None and is_path(checkpoint):
        path = Path(checkpoint)
        inside = path.suffix == ".ckpt" and path.parent.name == "checkpoints"
        return path.parent.parent / command if inside else RUNS / command / path.stem
    files = [o for o in options if o.name in CONFIG and "\n" not in (o.value or "") and Path(o.value or "").is_file()]
    with_model = [option for option in files if "model" in (content_of(option) or {})]
    if files:
        return RUNS / Path(str((with_model or files)[-1].value)).stem
    return RUNS / short(given.get("--model") or "latest").lower()


def of_another(folder: Path, config: str) -> bool:
    """Whether a folder holds the scores of a test with another config than this (its YAML)."""
    summary = folder / "summary.json"
    if not summary.exists():
        return (folder / "metrics.csv").exists()
    try:
        content = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return not isinstance(content, dict) or content.get("config_hash") != digest(config)


def numbered(folder: Path) -> Iterator[Path]:
    """The folder, then its name with _2, _3, … behind it."""
    return (folder if n == 1 else folder.with_name(f"{folder.name}_{n}") for n in count(1))


def check_scores(folder: Path, config: str) -> None:
    """Refuse a test that would replace the scores of another one.

    Raises:
        FileExistsError: the folder holds scores that were taken with another config.
    """
    if of_another(folder, config):
        raise FileExistsError(
            f"{folder} holds the scores of another configuration: choose another --trainer.default_root_dir, or "
            "replace them with --overwrite"
        )


def check_checkpoints(folder: Path, checkpoint: str | None) -> None:
    """Refuse a training that would replace the checkpoints of another one.

    Args:
        folder: of the run.
        checkpoint: that the training starts from, as given to --ckpt_path.

    Raises:
        FileExistsError: the folder holds checkpoints, and the training goes on from none of them.
    """
    present = checkpoints(folder)
    goes_on = checkpoint in ("last", "best", "hpc") or (checkpoint is None and queued_again(folder))
    if not present or goes_on:
        return
    if checkpoint is not None and Path(checkpoint).resolve().parent == present[0].resolve().parent:
        return
    raise FileExistsError(
        f"{folder} holds the checkpoints of another run: go on from them with --ckpt_path last, choose another "
        "--trainer.default_root_dir, or replace them with --overwrite"
    )


def claim(folder: Path) -> None:
    """Keep other trainings out of a folder until this process ends, however it ends.

    Raises:
        FileExistsError: another process trains into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / ".training").resolve()
    if path in _claimed:
        return
    file = path.open("a+", encoding="utf-8")
    try:
        # of the process, not of the open file: forked loaders do not hold it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise FileExistsError(
            f"{folder} is being trained into by {file.read().strip() or 'another process'}: choose another "
            "--trainer.default_root_dir"
        ) from None
    except OSError:  # a disk without locks
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _claimed[path] = file


def queued_again(folder: Path) -> bool:
    """Whether this is a job that SLURM has queued again, or one with the checkpoint of SLURM's signal in its folder."""
    again = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    return SLURMEnvironment.detect() and (again or any(folder.glob("hpc_ckpt_*.ckpt")))


def logged_files(folder: Path) -> list[Path]:
    """The CSV files that a run has logged into, those of a later part of it after those of an earlier one."""
    files = folder.glob("logs/**/metrics.csv")
    return sorted(files, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path.relative_to(folder)))])
