"""The files of a study: all are written or none."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from matplotlib.figure import Figure

from dio_lightning.files import replacing


def free(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raises FileExistsError if a file of one of these names is there and may not be replaced."""
    for path in (folder / name for name in names):
        if path.is_dir() or (path.exists() and not overwrite):
            raise FileExistsError(f"{path} exists: {'it is a folder' if path.is_dir() else 'give --overwrite'}")


def write(folder: Path, contents: Mapping[str, str | Figure]) -> None:
    """Write texts and figures by file name."""
    with ExitStack() as stack:
        paths = {name: stack.enter_context(replacing(folder / name)) for name in contents}
        for name, content in contents.items():
            if isinstance(content, Figure):
                content.savefig(paths[name], dpi=150)
            else:
                paths[name].write_text(content, encoding="utf-8", newline="")
