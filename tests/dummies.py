"""A copy of the packages, to which a test adds something as the recipes of docs/architecture.md say, and runs it."""

import json
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

END = "-- end of a command --\n"
RUN = f"""
import json, sys
from dio_lightning.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["dio-lightning", *words]
    try:
        main(words)
    except SystemExit as ended:  # --help
        if ended.code:
            raise
    print({END!r}, end="", flush=True)
"""


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

    def run(self, *commands: Sequence[object]) -> list[str]:
        """Run command lines of the copy in its folder, one after another in one process; what each of them printed."""
        environment = os.environ | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        words = json.dumps([[*map(str, command)] for command in commands])
        done = subprocess.run(
            [sys.executable, "-c", RUN, words],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.split(END)[:-1]
