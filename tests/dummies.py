"""A copy of the packages, to which a test adds something as the recipes of docs/architecture.md say, and runs it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/conf/tiny.yaml"
"""A config that a copy can run in seconds."""


@dataclass
class House:
    """The packages under a folder of their own; `touched` are the files that were added or changed."""

    root: Path
    touched: set[str] = field(default_factory=set)

    @classmethod
    def copy(cls, folder: Path) -> "House":
        """All code of dio_lightning and data_modules."""
        for package in ("dio_lightning", "data_modules"):
            shutil.copytree(ROOT / package, folder / package)  # with what is compiled
        return cls(folder)

    def add(self, file: str, text: str) -> None:
        """A new file, or more at the end of one."""
        (self.root / file).parent.mkdir(parents=True, exist_ok=True)
        with open(self.root / file, "a", encoding="utf-8") as opened:
            opened.write(text)
        self.touched.add(file)

    def insert(self, file: str, before: str, text: str) -> None:
        """Text before the only place of a file that reads `before`."""
        content = (self.root / file).read_text(encoding="utf-8")
        assert content.count(before) == 1, f"{file} has {before!r} {content.count(before)} times"
        (self.root / file).write_text(content.replace(before, text + before), encoding="utf-8")
        self.touched.add(file)

    def run(self, *arguments: object) -> str:
        """Run the copy's command line in its folder; what it printed. Fails with what it complained about."""
        environment = os.environ | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "dio_lightning", *map(str, arguments)]
        done = subprocess.run(words, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_all(self, *commands: Sequence[object]) -> list[str]:
        """Several command lines in one process, which costs the seconds of its imports once; what each printed."""
        lines = [[*map(str, words)] for words in commands]
        code = "from dio_lightning.cli import main\n"
        code += f"for words in {lines!r}:\n    main(words)\n    print('\\0', end='', flush=True)"
        environment = os.environ | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.split("\0")[:-1]
