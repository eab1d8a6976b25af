"""Finished test runs, read and checked: which may stand in one table."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from dio_lightning.scores.rows import IDS, PairId, Values, scores_of
from dio_lightning.scores.score import SUFFIX
from dio_lightning.scores.summary import over_seeds
from dio_lightning.scores.vocabulary import look_up


@dataclass(frozen=True)
class Run:
    """A folder that `dio-lightning test` wrote: its scores by pair and by name, its data's name, and what was run.

    The last are empty where no file says them; `units` are those that are others than the vocabulary's.
    """

    name: str
    folder: Path
    scores: Mapping[PairId, Mapping[str, float]]
    data: str
    method: str = ""
    units: Mapping[str, str] = field(default_factory=dict)

    def values(self, score: str) -> Values:
        """One score of every pair."""
        return {pair: row.get(score, math.nan) for pair, row in self.scores.items()}


@dataclass(frozen=True)
class Method:
    """A row of the table: runs that differ in their seed alone."""

    name: str
    runs: Sequence[Run]

    def values(self, score: str) -> Values:
        """One score of every pair, the mean over seeds; NaN where a seed has none, and where nothing was deformed."""
        if not look_up(score).needs and self.still:
            return dict.fromkeys(self.pairs, math.nan)
        return over_seeds([run.values(score) for run in self.runs])

    @property
    def pairs(self) -> list[PairId]:
        """All pairs, in the order of the first run."""
        return list(self.runs[0].scores)

    @property
    def still(self) -> bool:
        """Whether this is the row without registration: every score equals that of u = 0."""
        both = [
            (row[name.removesuffix(SUFFIX)], row[name])
            for run in self.runs
            for row in run.scores.values()
            for name in _of_identity(row)
            if name.removesuffix(SUFFIX) in row
        ]
        return bool(both) and all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in both)


def read_methods(texts: Iterable[str]) -> list[Method]:
    """Methods from NAME=FOLDER or FOLDER (then named as the folder), in the order of their first run.

    Raises:
        FileNotFoundError: a folder without metrics.csv.
        ValueError: a name that is empty or taken, a folder given twice, a broken metrics.csv, or runs that were not
            tested on the same pairs.
    """
    named: dict[str, list[Run]] = {}
    unnamed: set[str] = set()
    for text in texts:
        name, folder, explicit = _split(text)
        seeds = named.setdefault(name, [])
        if not explicit:
            unnamed.add(name)
        if seeds and name in unnamed:
            raise ValueError(
                f"two runs would be called {name!r}: give NAME=FOLDER, the same NAME for seeds of one method"
            )
        if any(folder.resolve() == run.folder.resolve() for run in seeds):
            raise ValueError(f"{folder} is given twice as a seed of {name!r}")
        seeds.append(read_run(name, folder))
    runs = [run for seeds in named.values() for run in seeds]
    for run in runs[1:]:
        _check_pairs(run, runs[0])
        _check_identity(run, runs[0])
    return [Method(name, seeds) for name, seeds in named.items()]


def read_run(name: str, folder: Path) -> Run:
    """The scores of one folder.

    Raises:
        FileNotFoundError: no metrics.csv in it.
        ValueError: metrics.csv is not a table of pairs, or has a pair twice.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no metrics.csv: expected a folder that `dio-lightning test` wrote")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"fixed_id", "moving_id"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} has no columns fixed_id and moving_id: expected what `dio-lightning test` wrote")
        scores: dict[PairId, dict[str, float]] = {}
        for row in reader:
            pair = (row["fixed_id"], row["moving_id"])
            if pair in scores:
                raise ValueError(f"{path} has the pair {_pair(pair)} twice")
            scores[pair] = {key: _number(path, key, row[key]) for key in row if key and key not in IDS}
    if not scores:
        raise ValueError(f"{path} has no pairs")
    return Run(name, folder, scores, _data(folder), *_about(folder))


def present(methods: Sequence[Method]) -> list[str]:
    """Names of the scores that at least one run has."""
    rows = [row for method in methods for run in method.runs for row in run.scores.values()]
    return [name for name in scores_of(rows) if not name.endswith(SUFFIX)]


def _of_identity(row: Iterable[str]) -> list[str]:
    """Names of the scores of u = 0."""
    return [name for name in row if name.endswith(SUFFIX)]


def unit_of(methods: Sequence[Method], score: str) -> str | None:
    """The unit of a score in all runs that have it, None for the vocabulary's.

    Raises:
        ValueError: two runs have it in two units.
    """
    runs = [run for method in methods for run in method.runs if any(score in row for row in run.scores.values())]
    for run in runs:
        if run.units.get(score) != runs[0].units.get(score):
            units = [one.units.get(score, look_up(score).unit) for one in (runs[0], run)]
            raise ValueError(f"{score} is in {units[0]} in {runs[0].folder} and in {units[1]} in {run.folder}")
    return runs[0].units.get(score) if runs else None


def _split(text: str) -> tuple[str, Path, bool]:
    """Name, folder, and whether the name was given; a folder may have an equals sign in its own name."""
    name, sign, folder = text.partition("=")
    if not sign or Path(text).exists():
        return Path(text).resolve().name, Path(text), False
    name = " ".join(name.split())
    if not name or not folder:
        raise ValueError(f"{text!r}: expected FOLDER or NAME=FOLDER")
    return name, Path(folder), True


def _number(path: Path, column: str, text: str | None) -> float:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        raise ValueError(f"{path}: {text!r} in column {column} is not a number") from None
    return value if math.isfinite(value) else math.nan


def _data(folder: Path) -> str:
    """Last part of the data's root in the run's config, else the data's class; nothing of the machine."""
    path = folder / "config_test.yaml"
    path = path if path.is_file() else folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError:
        raise ValueError(f"{path} is not YAML") from None
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict):
        return ""
    options = data.get("init_args")
    root = options.get("root") if isinstance(options, dict) else None
    return Path(str(root)).name if root else str(data.get("class_path", "")).rpartition(".")[2]


def _about(folder: Path) -> tuple[str, dict[str, str]]:
    """What summary.json says was run, the module's title and what was changed in it at test time, and its units."""
    path = folder / "summary.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        raise ValueError(f"{path} is not JSON") from None
    content = content if isinstance(content, dict) else {}
    return str(content.get("method", "")), dict(content.get("units") or {})


def _check_pairs(run: Run, first: Run) -> None:
    for has, lacks in ((first, run), (run, first)):
        missing = [pair for pair in has.scores if pair not in lacks.scores]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"run {lacks.name!r} ({lacks.folder}) lacks the pair {_pair(missing[0])}{more} of run {has.name!r} "
                f"({has.folder}): all runs must have the same pairs"
            )


def _check_identity(run: Run, first: Run) -> None:
    """The scores of u = 0 depend on the data and on how they are scored, never on the method."""
    for pair, row in run.scores.items():
        for name in (name for name in _of_identity(row) if name in first.scores[pair]):
            own, other = row[name], first.scores[pair][name]
            same = math.isclose(own, other, rel_tol=1e-3, abs_tol=1e-6)
            if not same and not (math.isnan(own) and math.isnan(other)):
                raise ValueError(
                    f"run {run.name!r} ({run.folder}) has {name} {own:.4g} for {_pair(pair)} and run {first.name!r} "
                    f"({first.folder}) {other:.4g}: not the same data, or not scored alike"
                )


def _pair(pair: PairId) -> str:
    return f"(fixed {pair[0]}, moving {pair[1]})"
