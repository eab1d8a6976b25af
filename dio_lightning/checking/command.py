"""The command: the data module from its options, its report, the scores before registration, the exit code."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import yaml
from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
from lightning.pytorch import LightningDataModule

from dio_lightning.arguments import load, ordered, without_leftovers
from dio_lightning.checking.drawing import Scores, drawn, first_training_pair, initial_scores
from dio_lightning.checking.text import show
from dio_lightning.experiment import prepare
from dio_lightning.files import write_atomic
from dio_lightning.findings import Report, merged
from dio_lightning.parsing import Parser
from dio_lightning.shipped_configs import with_shipped

HELP = """usage: dio-lightning check --data CLASS [--data.root FOLDER ...] [--config CONFIG ...] [--json FILE]

Reads every case of a data set and says what is wrong with which file, how the data look, and Dice or TRE before any
registration. Options of the data set are those of the other commands; of a config only `data` is read.

  --json FILE   the report as JSON
  --overwrite   replace FILE if it is there

Exit code 0: no errors (there may be warnings); 1: errors; 2: the command line is wrong.
"""


@runtime_checkable
class Checked(Protocol):
    """A data module that can examine its files itself."""

    def check(self) -> Report:
        """Read every case once and report."""
        ...


def check(argv: Sequence[str]) -> int:
    """Run the command; the exit code.

    Raises:
        FileExistsError: the JSON file is there and is not to be overwritten.
        FileNotFoundError, ValueError: a config cannot be read or the data module cannot be built.
    """
    if not argv or {"-h", "--help"} & {*argv}:
        print(HELP, end="")
        return 0
    options, rest = _options().parse_known_args(with_shipped(list(argv)))
    if options.json is not None and options.json.exists() and not options.overwrite:
        raise FileExistsError(f"{options.json} exists already, expected --overwrite or another name")
    module = _data_module(options.config, rest)
    report, scores = examined(module)
    show(report, scores)
    if options.json is not None:
        content = asdict(report) | {"scores": scores}
        counts = {f"{severity}s": report.count(severity) for severity in ("error", "warning", "note")}
        write_atomic(options.json, json.dumps(counts | content, indent=2) + "\n")
        print(f"wrote {options.json}")
    return 1 if report.count("error") else 0


def examined(module: LightningDataModule) -> tuple[Report, Scores]:
    """The report of a data module and the scores of its pairs before registration."""
    report = module.check() if isinstance(module, Checked) else drawn(module)
    scores, missed = initial_scores(module, report.scored)
    if not report.count("error"):
        missed += first_training_pair(module) if "train" in report.splits else []
        report = replace(report, findings=merged([*report.findings, *missed]))
    return report, scores


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    return parser


def _data_module(configs: Sequence[Path], argv: list[str]) -> LightningDataModule:
    """The data module that `test` would have with these configs and options."""
    prepare()
    parser = Parser(allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=True)
    given: list[str] = []
    for path in configs:
        data = _data_of(path)
        given += ["--config", yaml.safe_dump({"data": data}, sort_keys=False)] if data is not None else []
    config = parser.parse_args(without_leftovers(ordered([*given, *argv]))[0])
    # instantiate_classes is instantiate's name up to jsonargparse 4.48
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return build(config)["data"]


def _data_of(path: Path) -> object:
    """The `data` part of a config, None if it has none."""
    try:
        content = load(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    return content.get("data") if isinstance(content, dict) else None
