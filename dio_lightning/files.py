"""Files that are either whole or absent."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder, with the same endings, that takes the place of `path` when all went well.

    Folders are created. The same folder, because a rename is atomic on one disk only.

    Raises:
        OSError: with the path, whatever could not be written: a disk that is full names none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        cause = system_error(error)
        if cause is None or cause.filename not in (None, str(temporary)):
            raise
        raise type(cause)(cause.errno, cause.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # a name that cannot be written cannot be removed either
            temporary.unlink(missing_ok=True)


def system_error(error: BaseException | None) -> OSError | None:
    """What the system said first of what led to an error: itself, or what was being handled when it was raised."""
    first = None
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            first = error
        error = error.__cause__ or error.__context__
    return first


def expect_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Raises FileExistsError if one of the files is there and may not be replaced."""
    for path in paths:
        if path.is_dir() or (path.exists() and not overwrite):
            raise FileExistsError(f"{path} exists: {'it is a folder' if path.is_dir() else 'give --overwrite'}")


@runtime_checkable
class Picture(Protocol):
    """What matplotlib's figures can do."""

    def savefig(self, fname: Path, *, dpi: float) -> None:
        """Write it, in the format of the file's ending."""


@contextmanager
def replacing_all(paths: Iterable[Path]) -> Iterator[dict[Path, Path]]:
    """Temporary paths as `replacing` gives them, which take the places of all paths or of none.

    The path that is listed first takes its place last: where it is, the others are. Folders that were made for them are
    removed if something goes wrong.
    """
    paths = list(paths)
    made = {folder for path in paths for folder in path.parents if not folder.exists()}
    try:
        with ExitStack() as stack:
            yield {path: stack.enter_context(replacing(path)) for path in paths}
    except BaseException:
        for folder in sorted(made, key=lambda folder: len(folder.parts), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def write_all(contents: Mapping[Path, str | Picture]) -> None:
    """Write texts and figures, all of them or none."""
    with replacing_all(contents) as temporary:
        for path, content in contents.items():
            if isinstance(content, Picture):
                content.savefig(temporary[path], dpi=150)
            else:
                temporary[path].write_text(content, encoding="utf-8", newline="")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; those still at work here keep theirs."""
    for path in folder.glob(".*.*"):
        number = path.name.split(".")[1]
        if number.isdecimal() and (int(number) == os.getpid() or not _running(int(number))):
            path.unlink(missing_ok=True)


def _running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text to a path, replacing a file that is there; a reader never sees a part of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
