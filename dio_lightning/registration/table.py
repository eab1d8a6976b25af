"""The pairs of a table, as tasks of `register`: what is wrong with them, and which are done already."""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from dio_lightning.errors import user_message
from dio_lightning.fields.names import own_names
from dio_lightning.headers import Header, read_header
from dio_lightning.registration.images import check_dimensions, check_formats, check_header, check_plane
from dio_lightning.registration.outputs import Outputs
from dio_lightning.registration.scoring import Truth
from dio_lightning.registration.single import outputs_of, targets_of
from dio_lightning.shipped_configs import shipped_configs
from dio_lightning.transforms import ImageGrid

FREE = ("out", "csv", "jobs", "overwrite", "quiet", "json", "command", "warp_labels")
"""Options that change nothing of a pair's result."""


@dataclass(frozen=True, eq=False)
class Task:
    """One pair of a table.

    Attributes:
        name: of its folder, and in results.csv.
        options: those of the command, for this pair alone.
        outputs: where its files go.
        truth: what it is scored by.
        fingerprint: of its files and settings.
    """

    name: str
    options: argparse.Namespace
    outputs: Outputs
    truth: Truth
    fingerprint: str

    @property
    def report(self) -> dict[str, Any] | None:
        """What an earlier run left, if it was whole; None if there is nothing."""
        try:
            report = json.loads(self.outputs.report.read_text(encoding="utf-8"))
            passengers = report["files"].pop("passengers")
            names = [*report["files"].values(), *passengers]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        folder = self.outputs.report.parent
        return report if all((folder / name).is_file() for name in names) else None

    def of_others(self, report: Mapping[str, Any]) -> bool:
        """Whether a report is of other files or settings."""
        return report.get("fingerprint") != self.fingerprint


def tasks_of(options: argparse.Namespace) -> tuple[list[Task], list[str]]:
    """Every pair of the options' table once, and a sentence for everything that is wrong with one of them.

    The table is read by `data_modules.PairsCSV`, and so named: pairs by the ids of their files. Of pairs with something
    wrong there is no task.

    Raises:
        FileNotFoundError, ValueError: if the table itself is not as expected.
    """
    layout = import_module("data_modules").PairsCSV(str(options.csv)).layout
    pairs = list(dict.fromkeys([*layout.train, *layout.val, *layout.test]))
    names = own_names([(fixed.id, moving.id) for fixed, moving in pairs])
    tasks, faults = list[Task](), dict[str, None]()
    for fixed, moving in pairs:
        sentences = list(_faults(fixed, moving, options))
        faults |= dict.fromkeys(sentences)
        if not sentences:
            try:
                tasks.append(_task(names[fixed.id, moving.id][0], fixed, moving, options))
            except (OSError, ValueError) as error:
                faults[user_message(error) or str(error)] = None
    return tasks, [*faults, *_shared(tasks)]


def digest(path: Path) -> str:
    """The hash of a file's bytes; of weights, of their config beside them too; empty where there is no file."""
    if not path.is_file():
        return ""
    config = path.with_suffix(".yaml")
    beside = _digest(config, config.stat().st_mtime_ns) if path.suffix == ".safetensors" and config.is_file() else ""
    return _digest(path, path.stat().st_mtime_ns) + beside


@cache
def _digest(path: Path, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _task(name: str, fixed: Any, moving: Any, options: argparse.Namespace) -> Task:  # noqa: ANN401
    """The task of two cases of `data_modules`."""
    given = {"fixed": fixed.image, "moving": moving.image, "out": options.out / ("" if options.bids else name)}
    given |= {"fixed_mask": fixed.mask, "moving_mask": moving.mask}
    if options.prompt_label:
        given |= {"fixed_labels": fixed.label, "moving_labels": moving.label}
    # what an earlier run left half-done is in nobody's way
    given |= {"warp_labels": [moving.label] if moving.label else [], "overwrite": True}
    own = argparse.Namespace(**{**vars(options), **given})
    outputs = outputs_of(own)
    targets_of(own, outputs)
    labels = (fixed.label, moving.label) if fixed.label and moving.label else None
    points = (_points(fixed), _points(moving)) if fixed.keypoints and moving.keypoints else None
    files = [path for case in (fixed, moving) for path in case.files.values()]
    return Task(name, own, outputs, Truth(labels, points), _fingerprint(own, files))


def _fingerprint(options: argparse.Namespace, files: Sequence[Path]) -> str:
    """A hash of all that a result depends on: of the contents of files, whatever they are called."""

    def plain(value: object) -> object:
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        # a model may be the name of a config that is shipped
        return digest(configs.get(value.as_posix(), value)) if isinstance(value, Path) else value

    configs = shipped_configs()
    settings = {name: plain(value) for name, value in sorted(vars(options).items()) if name not in FREE}
    content = json.dumps([settings, [digest(path) for path in files]], default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _faults(fixed: Any, moving: Any, options: argparse.Namespace) -> Iterator[str]:  # noqa: ANN401
    """What is wrong with two cases, as far as headers, label maps, masks and landmarks tell."""
    headers: dict[str, Header] = {}
    for case in (fixed, moving):
        for kind, path in case.volumes.items():
            try:
                header = read_header(path)
                check_header(header, str(path))
                check_plane(header)
            except (OSError, ValueError) as error:
                yield user_message(error) or str(error)
                continue
            if kind != "image":
                yield from _wrong_values(kind, path, path.stat().st_mtime_ns)
            image = headers.setdefault(str(case.image), header) if kind == "image" else headers.get(str(case.image))
            if image is not None and not ImageGrid.of(header).like(ImageGrid.of(image)):
                yield f"{path} lies on another grid than {case.image}, expected the same voxels"
    yield from _wrong_points([(case, headers.get(str(case.image))) for case in (fixed, moving)])
    try:
        check_dimensions({name: header.dimension for name, header in headers.items()})
        check_formats(options.also, options.check_export, *map(Path, headers))
    except ValueError as error:
        yield str(error)
    if options.prompt_label and None in (fixed.label, moving.label):
        yield f"--prompt-label names labels, but {fixed.image} and {moving.image} have not both a label map"


@cache
def _wrong_values(kind: str, path: Path, changed: int) -> list[str]:
    """What is wrong with the values of a label map or a mask, by the rules of the data modules; read once a table."""
    rules = import_module("data_modules.checking.volumes")
    findings = import_module("data_modules.checking.findings").Findings()
    try:
        values = read_header(path).values()
    except ValueError as error:
        return [str(error)]
    if kind == "mask":
        rules.check_mask(path, values, findings)
    elif (numbers := rules.whole_labels(path, values, findings)) is not None and numbers[1][0] < 0:
        findings.error(path, f"has the value {numbers[1][0]}, expected 0 and labels above it")
    return findings.sentences("error")


def _wrong_points(cases: Sequence[tuple[Any, Header | None]]) -> Iterator[str]:
    """What is wrong with the landmarks of two cases; None: a case whose header says nothing."""
    counts: dict[Path, int] = {}
    for case, header in cases:
        if case.keypoints is not None and header is not None:
            points, sentences = _read_points(case, header.shape)
            yield from sentences
            counts |= {} if points is None else {case.keypoints: len(points)}
    if len(counts) == 2:
        findings = import_module("data_modules.checking.findings").Findings()
        (one, expected), (two, count) = counts.items()
        import_module("data_modules.checking.headers").check_counts(two, count, one, expected, findings)
        yield from findings.sentences("error")


def _points(case: Any) -> Any:  # noqa: ANN401
    return _read_points(case, read_header(case.image).shape)[0]


def _read_points(case: Any, shape: Sequence[int]) -> tuple[Any, list[str]]:  # noqa: ANN401
    """Landmarks by the reader of the data modules, and its sentences."""
    checking = import_module("data_modules.checking.landmarks")
    findings = import_module("data_modules.checking.findings").Findings()
    return checking.read_points(case, shape, findings), findings.sentences("error")


def _shared(tasks: Sequence[Task]) -> Iterator[str]:
    """Two pairs of one name, as under BIDS those of one moving image may be, would overwrite each other."""
    owners: dict[Path, Task] = {}
    for task in tasks:
        first = owners.setdefault(task.outputs.report, task)
        if first is not task:
            yield f"the pairs {first.name} and {task.name} would both write {task.outputs.report}, expected other names"
