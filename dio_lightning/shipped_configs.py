"""The configs that come with the package, by name: `dio/demo` for experiments/dio/demo.yaml."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from dio_lightning.arguments import CONFIG
from dio_lightning.usage import nearest

FOLDERS = (Path(__file__).parent / "experiments", Path(__file__).parents[1] / "experiments")
"""Where they lie: in the package once it is installed, beside it in a clone."""
NOT_RUN = ("sweeps",)
"""Folders whose files other programs read."""


def shipped_configs() -> dict[str, Path]:
    """The configs by name, sorted; a name is FOLDER/FILE without .yaml."""
    root = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
    files = sorted(path for path in root.glob("*/*.yaml") if path.parent.name not in NOT_RUN)
    return {f"{path.parent.name}/{path.stem}": path for path in files}


def about(config: Path) -> str:
    """The first sentence of the comment that a config begins with, without its full stop; "" without a comment."""
    lines = takewhile(lambda line: line.startswith("#"), config.read_text(encoding="utf-8").splitlines())
    return re.split(r"\.( |$)", " ".join(line.lstrip("# ") for line in lines), maxsplit=1)[0]


def listing() -> str:
    """A line a config, its name and what it is."""
    configs = shipped_configs()
    width = max(map(len, configs), default=0)
    return "".join(f"{name:{width}}  {about(path)}".rstrip() + "\n" for name, path in configs.items())


def with_shipped(words: Sequence[str]) -> list[str]:
    """A command line whose names of shipped configs are their paths; what is a file here stays as it is.

    Raises:
        FileNotFoundError: a config that is neither a file nor the name of one that is shipped.
    """
    result: list[str] = []
    for word in words:
        option, sign, value = word.partition("=")
        if sign and option in CONFIG:
            word = f"{option}={_path(value)}"
        elif result and result[-1] in CONFIG:
            word = _path(word)
        result.append(word)
    return result


def _path(config: str) -> str:
    """The path of a shipped config, or what was typed where that is a path or spells a config out."""
    if not re.fullmatch(r"\w[\w./-]*", config) or Path(config).exists():
        return config
    name = re.sub(r"^experiments/|\.ya?ml$", "", config)
    configs = shipped_configs()
    if name in configs:
        return str(configs[name])
    namesakes = [repr(other) for other in configs if other.endswith(f"/{name.rpartition('/')[2]}")]
    hint = f", did you mean {' or '.join(namesakes)}?" if namesakes else nearest(name, configs)
    raise FileNotFoundError(
        f"config {config} does not exist, neither here nor among those that `dio-lightning configs` lists{hint}"
    )
