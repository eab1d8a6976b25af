"""The code blocks of the documentation, and what a command line in one of them is asked."""

import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from dio_lightning import cli, experiment
from dio_lightning.models.catalogue import with_models
from dio_lightning.shipped_configs import shipped_configs, with_shipped
from dio_lightning.usage import CommandParser

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r'^(?P<indent> *)```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^(?P=indent)```$', re.M | re.S
)
STAND_INS = {"CONFIG": "dio/demo", "WEIGHTS": "brain-t1", "weights.safetensors": "brain-t1"}
"""What stands for a word in capitals, or for a file that the reader has."""
OUTSIDE = {
    "sbatch": "needs SLURM; its file and what it hands to fit are looked at",
    "torchrun": "starts processes; tests/test_processes.py does",
    "wandb": "needs an account; its file is looked at, tests/test_loggers.py expands it",
    ".venv/bin/pip": "installs; the extra must exist",
}
"""Commands that are not ours, and why they are not run."""


def as_a_reader(folder: Path, monkeypatch: Any) -> Path:
    """An empty folder in which the repository's files lie where a clone has them, made the working one."""
    for name in ("experiments", "tests", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for name in ("my_method", "my_features", "my_similarity"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@dataclass(frozen=True)
class Block:
    """Code between fences; a title says that the reader saves it under this name."""

    page: str
    line: int
    language: str
    title: str | None
    code: str


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start()) + 1, m["language"], m["title"], textwrap.dedent(m["code"]))
        for m in FENCE.finditer(text)
    ]


def commands(code: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """The command lines of a shell block as words; assignments go into `variables`, which are put in their places."""
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        words = shlex.split(line, comments=True)
        while words and (given := re.fullmatch(r"(\w+)=(.*)", words[0], re.S)):
            variables[given[1]] = put(given[2], variables)
            words = words[1:]
        # a variable may hold several words
        words = [part for word in words for part in (shlex.split(put(word, variables)) if "$" in word else [word])]
        if words:
            yield words[: words.index(">")] if ">" in words else words


def put(word: str, variables: dict[str, str]) -> str:
    """A word with its variables in their places."""
    return re.sub(r"\$\{?(\w+)\}?", lambda m: variables.get(m[1], m[0]), word)


class Parsed(Exception):
    """A command line was read to its end, so that the command would begin now."""


@dataclass
class Reader:
    """Reads command lines as the program does, and begins nothing."""

    trained: dict[str, list[str]] = field(default_factory=dict)
    """The configs of a run's folder, by the commands that have been read."""
    reader: Any = None

    def check(self, words: list[str]) -> None:
        """Read a command line; raises SystemExit, ValueError or AssertionError where it would be refused."""
        program, rest = words[0], words[1:]
        if program == "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert rest and re.search(rf"^{re.escape(rest[0])}:.*## ", makefile, re.M), f"no target {rest[:1]}"
        elif program in ("dio-lightning", ".venv/bin/dio-lightning"):
            self.ours([STAND_INS.get(word, word) for word in rest])
        elif program in ("python", ".venv/bin/python"):
            self.script(rest)
        else:
            assert program in OUTSIDE, f"{program} is neither ours nor in OUTSIDE"
            self.outside(program, rest)

    def ours(self, words: list[str]) -> None:
        """A command of this package."""
        if words[0] in cli.RUNS:
            return self.run(words)
        try:
            cli.main(words)
        except Parsed as parsed:
            given, rest = parsed.args
            if words[0] in ("evaluate", "submit"):
                self.run(["test", "--config", "classical/identity", *rest])
            elif words[0] == "study" and "--" in words:
                weights = [word.partition("=")[2] or word for word in given.weights]
                self.run(["test", "--ckpt_path", weights[0], *words[words.index("--") + 1 :]])
        else:
            assert words[0] in ("configs", "models"), f"{words[0]} was not stopped"

    def run(self, words: list[str]) -> None:
        """A command that builds an experiment: read with its configs and its checkpoint's, and not built."""
        words = [word for word in words if word != "--print_config"]
        configs = [word for before, word in pairwise(words) if before == "--config"]
        if "--ckpt_path" in words:
            at = words.index("--ckpt_path")
            folder = str(Path(words[at + 1]).parents[1]) if words[at + 1].endswith(".ckpt") else None
            if folder is not None:
                assert folder in self.trained, f"nothing trains {folder}"
                configs = self.trained[folder]
                words = [
                    words[0],
                    *(x for config in configs for x in ("--config", config)),
                    *words[1:at],
                    *words[at + 2 :],
                ]
        config = self.parsed(words)
        self.trained[str(config.trainer.default_root_dir)] = configs

    def parsed(self, words: list[str]) -> Any:
        """What the words make of the configuration; one command line's parser reads them all, each line once."""
        whole = tuple(with_models(with_shipped(words)))
        if whole not in self.reader.lines:
            self.reader.parse_arguments(self.reader.parser, list(whole))
            self.reader.lines[whole] = self.reader.config[words[0]]
        return self.reader.lines[whole]

    def script(self, words: list[str]) -> None:
        """A file of the repository with options that it has, or a module."""
        if words[0] == "-m":
            assert words[1] in ("pytest", "pip", "dio_lightning", "mkdocs")
            assert all((ROOT / word.split("::")[0]).exists() for word in words if word.startswith("tests/"))
            return
        folder = (ROOT / words[0]).parent
        text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
        assert (ROOT / words[0]).is_file()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []

    def outside(self, program: str, words: list[str]) -> None:
        """What is ours in a command that is not."""
        for word in words:
            if word.startswith("experiments/"):
                assert (ROOT / word).exists(), f"{word} is not there"
        if program == "sbatch":
            (at,) = (i for i, word in enumerate(words) if word.endswith(".sbatch"))
            self.ours(["fit", "--config", *words[at + 1 :]])
        if program.endswith("pip"):
            extras = re.findall(r"dio-lightning\[(\w+)\]", " ".join(words))
            assert extras or "--target" in words, "into an environment of ours"
            for extra in extras:
                assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def stopping(monkeypatch: Any) -> Reader:
    """A reader; until the end of the test, commands end where their line has been read."""
    from dio_lightning.challenge import command as challenge
    from dio_lightning.checking import command as checking

    def parse_args(self: CommandParser, given: Any = None, namespace: Any = None) -> Any:
        options = whole(self, given, namespace)
        if self.prog.split()[-1] in ("configs", "models"):
            return options
        raise Parsed(options, [])

    def both(*given: Any) -> Any:
        raise Parsed(*known(*given))

    def begun(module: Any) -> Any:
        raise Parsed(module, [])

    whole, known = CommandParser.parse_args, challenge._parsed
    monkeypatch.setattr(CommandParser, "parse_args", parse_args)
    monkeypatch.setattr(challenge, "_parsed", both)
    monkeypatch.setattr(checking, "examined", begun)
    trained: dict[str, list[str]] = {}
    for name, path in shipped_configs().items():
        if folder := re.search(r"default_root_dir: (\S+)", path.read_text(encoding="utf-8")):
            trained.setdefault(folder[1], [name])
    return Reader(trained)


def reader() -> Any:
    """A command line of which only the parser is used."""
    kept: list[Any] = []

    class Kept(experiment.RegistrationCLI):
        lines: ClassVar[dict[tuple[str, ...], Any]] = {}

        def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
            self.command = ""  # lines of all commands are read, not those of one
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

        def instantiate_classes(self) -> None:
            kept.append(self)
            raise Parsed

    experiment.prepare()
    try:
        Kept(["test", "--config", "dio/demo"], runs=False)
    except Parsed:
        pass
    return kept[0]
