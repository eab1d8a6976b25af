"""`dio-lightning rerun FOLDER`: the run of a folder once more, and whether it got the same numbers."""

import csv
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dio_lightning.run_folders import logged_files, numbered
from dio_lightning.usage import CommandParser

CONFIGS = {"fit": "config.yaml", "validate": "config_validate.yaml", "test": "config_test.yaml"}
"""Commands whose numbers are compared, in the order in which they are run again, and the file each leaves."""
UNALIKE = ("seconds", "peak_mb")
"""Parts of names of values that depend on the machine and its load."""
DIFFERENT = 1
Numbers = dict[tuple[str, ...], str]
"""Values as they were written, by file, row and name."""


def rerun(argv: Sequence[str]) -> None:
    """Run the commands of a run's folder again, in a new folder, and compare what both say.

    Raises:
        FileNotFoundError, ValueError: no folder of a run.
        SystemExit: with code 1 if a number is another one, or with that of a command that failed.
    """
    options = _parser().parse_args(argv)
    folder: Path = options.folder
    configs = {command: first_config(folder, name) for command, name in CONFIGS.items() if (folder / name).is_file()}
    if not configs:
        raise FileNotFoundError(f"{folder} is no folder of a run: it has none of {', '.join(CONFIGS.values())}")
    out = options.out or next(path for path in numbered(folder.with_name(f"{folder.name}_rerun")) if not path.exists())
    if out.exists():
        raise FileExistsError(f"{out} exists: choose another --out")
    before = where(folder, next(iter(configs)))
    for sentence in differences(folder, before):
        print(f"warning: {sentence}", file=sys.stderr)
    for command, config in configs.items():
        if code := start([command, "--config", str(config.resolve()), *_folder(out)], before):
            print(f"{command} failed with exit code {code}: no numbers to compare", file=sys.stderr)
            raise SystemExit(code)
    sentence, same = compare(numbers(folder), numbers(out))
    print(sentence)
    print(f"wrote {out}")
    if not same:
        raise SystemExit(DIFFERENT)


def start(words: Sequence[str], before: Mapping[str, Any]) -> int:
    """Run a command where the first one was typed, with its threads and its choice of operators; its exit code."""
    directory = before.get("directory")
    same = {k: v for k, v in (before.get("variables") or {}).items() if k in ("DIO_OPS", "OMP_NUM_THREADS")}
    place = directory if directory and Path(directory).is_dir() else None
    return subprocess.run(
        [sys.executable, "-m", "dio_lightning", *words], cwd=place, env={**os.environ, **same}, check=False
    ).returncode


def first_config(folder: Path, name: str) -> Path:
    """The config that a run began with: a training that went on with another one has both."""
    until = folder.glob(f"{Path(name).stem}_until_step_*.yaml")
    return min(until, key=lambda path: int(re.findall(r"\d+", path.stem)[-1]), default=folder / name)


def where(folder: Path, command: str) -> dict[str, Any]:
    """What a run's folder says of where it ran; empty if nothing."""
    file = folder / CONFIGS[command].replace("config", "environment")
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def differences(folder: Path, before: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each thing that is not as it was: commit, changes of the code, versions, machine, parts."""
    from dio_lightning.callbacks.environment import changes, environment

    if not before:
        yield f"{folder} does not say where it ran: what differs is not known"
        return
    now = environment()
    for name in ("commit", "python", "threads", "operators", "gpus"):
        if name in before and before[name] != now[name]:
            yield f"{name} was {before[name]}, is {now[name]}"
    file = folder / "changes.diff"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text.strip() != changes().strip():
        yield f"the code has other changes beyond its commit than {file.name if text else 'none'}"
    packages = before.get("packages") or {}
    others = {name: now["packages"].get(name) for name in packages if now["packages"].get(name) != packages[name]}
    if others:
        yield "versions differ: " + ", ".join(f"{name} {packages[name]} → {other}" for name, other in others.items())
    for part in before.get("resumed") or []:
        yield f"the run went on at step {part['step']} on {part['host']}, at commit {part['commit']}; this one is whole"
    if any(folder.glob("config_until_step_*.yaml")):
        yield "its config changed when it went on; this one keeps the first"


def numbers(folder: Path) -> Numbers:
    """Every number that a run has logged, by step and name, and that of every pair that it tested."""
    values: Numbers = {}
    for file in logged_files(folder):
        for row in _rows(file):
            place = (f"step {row.pop('step', '')}",)
            values |= {(*place, name): value for name, value in row.items() if value and name != "epoch"}
    for row in _rows(folder / "metrics.csv"):
        place = (f"pair {row.pop('fixed_id', '')} {row.pop('moving_id', '')}",)
        values |= {(*place, name): value for name, value in row.items() if value}
    return {place: value for place, value in values.items() if not any(part in place[-1] for part in UNALIKE)}


def compare(before: Numbers, after: Numbers) -> tuple[str, bool]:
    """Say whether all numbers of a run are those of another, and which is the first that is not."""
    if not before:
        return "different: the first run has left no numbers", False
    for place, value in before.items():
        other = after.get(place, "missing")
        if other != value and not _equal(value, other):
            return f"different: {', '.join(place)} was {value}, is {other}", False
    more = f"; it has {len(after) - len(before)} more" if len(after) > len(before) else ""
    return f"the same: all {len(before)} numbers are equal{more}", True


def _equal(value: str, other: str) -> bool:
    try:
        return float(value) == float(other) or (math.isnan(float(value)) and math.isnan(float(other)))
    except ValueError:
        return False


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _folder(out: Path) -> list[str]:
    return ["--trainer.default_root_dir", str(out.resolve())]


def _parser() -> CommandParser:
    parser = CommandParser("dio-lightning rerun", description="A run once more: does it get the same numbers?")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of a run: config, environment and metrics lie in it"
    )
    out = "folder of the new run (default: FOLDER_rerun, numbered)"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=out)
    return parser
