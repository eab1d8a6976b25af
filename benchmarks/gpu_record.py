"""The results of a run on a GPU: written after every item, and read again by the run that goes on. Needs no package."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("dio_lightning/**/*.py", "benchmarks/*.py", "tests/gpu_cases.py", "tests/test_gpu*.py", "tests/conftest.py")
Found = dict[str, Any]
"""What an item found; `ok` is always there."""


@dataclass
class Record:
    """Items by name, in a JSON file that is whole or absent."""

    path: Path
    device: str
    sources: str
    retry: bool = False
    items: dict[str, Found] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, device: str, retry: bool = False) -> "Record":
        """The record of these sources on this device: what the file has of others is dropped."""
        record = cls(path, device, sources(), retry)
        if path.is_file():
            old = json.loads(path.read_text(encoding="utf-8"))
            if (old.get("sources"), old.get("device")) == (record.sources, device):
                record.items = old["items"]
        return record

    def finished(self, name: str) -> bool:
        """Whether an item needs no other run."""
        found = self.items.get(name, {})
        return bool(found.get("finished")) and (bool(found["ok"]) or not self.retry)

    def put(self, name: str, found: Found) -> None:
        """Keep what an item found, on disk too."""
        self.items[name] = found
        content = {"device": self.device, "commit": commit(), "sources": self.sources, "items": self.items}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{os.getpid()}.{self.path.name}")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


@dataclass(frozen=True)
class Progress:
    """What an item knows of its own run."""

    record: Record
    name: str
    end: float

    @property
    def before(self) -> Found:
        """What a run that was cut off found."""
        return self.record.items.get(self.name, {})

    def left(self) -> float:
        """Seconds."""
        return self.end - monotonic()

    def save(self, found: Found) -> None:
        """Keep a part of what will be found."""
        self.record.put(self.name, {"ok": False, **found})


Item = Callable[[Progress], Found]


def sources() -> str:
    """A hash of the code that is measured: a machine may have a copy of the tree and no git."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)}):
        digest.update(str(path.relative_to(ROOT).as_posix()).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """The commit where git knows it, with + where the tree differs from it."""
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
