"""Data sets that a method was not trained on, by name, as a YAML file lists them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule

from dio_lightning.experiment import prepare
from dio_lightning.loaded import PairId
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.scores.summary import unit
from dio_lightning.usage import explained

KEYS = ("domains", "reference", "subject", "scores")


@dataclass(frozen=True)
class Domain:
    """A data set: its name, and a `data` section whose paths are as they are in the file."""

    name: str
    section: Mapping[str, Any]
    root: Path
    folder: Path

    @property
    def place(self) -> Path:
        """The folder of the data, relative to the root that was given."""
        return Path(self.section["init_args"]["root"])

    def exists(self) -> bool:
        """Whether its folder does."""
        return (self.root / self.place).is_dir()

    def build(self) -> LightningDataModule:
        """The data module, which has read nothing yet.

        Raises:
            ValueError: a class or an argument that does not exist.
        """
        options = dict(self.section["init_args"])
        options["root"] = str(self.root / options["root"])
        if "csv" in options:
            options["csv"] = str(self.folder / options["csv"])
        prepare()
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data", required=True)
        try:
            given = {"data": {"class_path": self.section["class_path"], "init_args": options}}
            return parser.instantiate_classes(parser.parse_object(given))["data"]
        except ArgumentError as error:
            raise ValueError(f"domain {self.name!r}: {explained(str(error))}") from error


@dataclass(frozen=True)
class Plan:
    """The domains in order, which of them is the reference, how pairs are scored and whose subjects are the same."""

    domains: list[Domain]
    reference: str
    subject: str | None = None
    scores: ScoreOptions = field(default_factory=lambda: ScoreOptions(surface=False))

    def present(self) -> tuple[list[Domain], list[Domain]]:
        """Domains whose data are there, and those whose are not.

        Raises:
            FileNotFoundError: the reference's are not.
        """
        present = [domain for domain in self.domains if domain.exists()]
        missing = [domain for domain in self.domains if not domain.exists()]
        for domain in missing:
            if domain.name == self.reference:
                place = domain.root / domain.place
                raise FileNotFoundError(f"{place} does not exist: expected the reference domain {domain.name!r}")
        return present, missing

    def people(self, pair: PairId) -> PairId:
        """The subjects of a pair, or of a pair of slices: what `subject` finds in their ids, else the ids."""
        fixed, moving = unit(pair)
        return self._person(fixed), self._person(moving)

    def _person(self, name: str) -> str:
        match = re.search(self.subject, name) if self.subject is not None else None
        return match[match.re.groups and 1] if match else name


def read_plan(path: Path, root: Path, surface: bool = False) -> Plan:
    """Read a file of domains: `domains` (name to class_path and init_args), `reference`, `subject`, `scores`.

    Args:
        path: the YAML file.
        root: what `root` of each domain is relative to; a `csv` is relative to the file's folder.
        surface: whether Hausdorff distances are taken too.

    Raises:
        FileNotFoundError: no such file, or root is no folder.
        ValueError: a file that is not as described.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a YAML file of domains")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: expected the one that holds the domains' folders")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        raise ValueError(f"{path} is not YAML") from None
    listed = content.get("domains") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed or not set(content) <= set(KEYS):
        raise ValueError(f"{path}: expected a mapping `domains`, and beside it {', '.join(KEYS[1:])} at most")
    domains = [_domain(path, str(name), section, root) for name, section in listed.items()]
    reference = str(content.get("reference", domains[0].name))
    if reference not in [domain.name for domain in domains]:
        raise ValueError(f"{path}: the reference {reference!r} is none of the domains")
    scores, options = content.get("scores") or {}, {f.name for f in fields(ScoreOptions)}
    if not isinstance(scores, dict) or not set(scores) <= options:
        raise ValueError(f"{path}: scores is {scores}, expected a mapping with some of {', '.join(sorted(options))}")
    subject = content.get("subject")
    try:
        re.compile(subject or "")
    except (re.error, TypeError):
        raise ValueError(f"{path}: subject is {subject!r}, expected a regular expression") from None
    chosen: dict[str, Any] = {"surface": surface} | scores
    return Plan(domains, reference, subject, ScoreOptions(**chosen))


def _domain(path: Path, name: str, section: object, root: Path) -> Domain:
    options = section.get("init_args") if isinstance(section, dict) else None
    if not isinstance(section, dict) or "class_path" not in section or not isinstance(options, dict):
        raise ValueError(f"{path}: domain {name!r} is not a class_path with init_args")
    if "root" not in options:
        raise ValueError(f"{path}: domain {name!r} has no root among its init_args")
    return Domain(name, section, root, path.parent)
