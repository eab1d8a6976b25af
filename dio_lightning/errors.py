"""What a user did wrong, in one sentence; a bug keeps its traceback."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a command that SIGTERM has ended, as shells count it."""
STEPS = {"training_step", "validation_step", "test_step", "predict_step"}
OURS = ("dio_lightning", "data_modules")
FILES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What the system says of a path that cannot be used."""


def fail(message: str) -> NoReturn:
    """Print one sentence to stderr and exit with code 2."""
    sys.stderr.write(f"dio-lightning: error: {one_sentence(message)}\n")
    raise SystemExit(2)


def debugging() -> bool:
    """Whether DIO_DEBUG asks for full tracebacks."""
    return os.environ.get("DIO_DEBUG", "0") not in ("", "0")


def user_message(error: Exception) -> str | None:
    """The message of an error that is the user's to mend; None for a bug.

    What the system says of a file, a missing or existing one and a refused configuration always are. A ValueError is
    one while objects are built and data are checked; once steps run, only if this package raised it on purpose.
    """
    text = str(error)
    if isinstance(error, OSError) and (error.errno is not None or isinstance(error, FILES)):
        reason = error.strerror or text
        return f"{shortened(str(error.filename))}: {reason}" if error.filename is not None else reason
    if type(error).__name__ == "MisconfigurationException":
        return text
    if type(error).__module__.startswith("wandb.errors"):
        return f"W&B: {text.splitlines()[0] if text else type(error).__name__}"
    if isinstance(error, RuntimeError) and text.startswith("Error(s) in loading state_dict"):
        problems = text.splitlines()[1:] or [text]
        return (
            f"the checkpoint does not fit the configured model: {problems[0].strip()} ({len(problems)} such problems)"
        )
    if isinstance(error, ValueError) and (not _in_a_step(error) or _raised_by_us(error)):
        return text
    return None


def shortened(path: str, most: int = 120) -> str:
    """A path for a sentence: its two ends, if it is long."""
    return path if len(path) <= most else f"{path[: most // 2]}…{path[-most // 2 :]}"


def times(shape: Sequence[float]) -> str:
    """Extents for a sentence: 8x9x10."""
    return "x".join(f"{extent:g}" for extent in shape)


def one_sentence(message: str) -> str:
    """A parser's message of many lines as one: which key, the innermost reasons, in which class.

    The parser lists every type that an optional value could have had; what is no reason is left out.
    """
    keys: list[str] = []
    reasons: list[str] = []
    where = ""
    for line in (raw.strip().removeprefix("- ") for raw in message.splitlines()):
        key = re.match(r'Parser key "([^"]+)":\s*', line)
        if key:
            keys.append(key[1])
            line = line[key.end() :]
        problem = re.fullmatch(r"Problem with given class_path '([^']+)':", line)
        if problem:
            where = f" (in {problem[1]})"
        elif line and not re.match(_NOISE, line):
            reasons.append(_reason(line))
    place = f"{'.'.join(keys)}: " if keys else ""
    text = place + "; ".join(dict.fromkeys(reasons)) + where
    return text if len(text) <= 500 else text[:497] + "..."


_NOISE = (
    r"Does not validate against any|Subtypes:|Errors:|Given value type:|Expected a <class 'NoneType'>"
    r"|Given value: (NestedArg|Namespace|\{|\[)"
)


def _reason(line: str) -> str:
    name = re.match(r"Expected a (?:path but|dot import path string:) (\S+)", line)
    if name:
        return f"there is no class {name[1]!r}"
    return re.sub(r"<class '([^']+)'>", r"\1", line).replace("Given value:", "got")


def _in_a_step(error: Exception) -> bool:
    return any(frame.name in STEPS for frame in traceback.extract_tb(error.__traceback__))


def _raised_by_us(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(name in Path(frames[-1].filename).parts for name in OURS)
