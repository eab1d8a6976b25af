"""Where the rules leave what they find: `check` prints it, `setup` raises the errors, in the same words."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from data_modules.layout import Case
from dio_lightning.findings import Finding, Severity

SHOWN = 5
"""Sentences in one exception, and warnings of one setup."""
MISSING = "does not exist"


class Findings:
    """What was found so far, each finding once; files are named by their whole path."""

    def __init__(self) -> None:
        self._items: dict[Finding, None] = {}

    def add(self, severity: Severity, path: Path | str, sentence: str) -> None:
        """One finding about one file."""
        self._items[Finding(severity, (str(path),), sentence)] = None

    def error(self, path: Path | str, sentence: str) -> None:
        """What no command accepts."""
        self.add("error", path, sentence)

    def warning(self, path: Path | str, sentence: str) -> None:
        """What is suspicious."""
        self.add("warning", path, sentence)

    def note(self, path: Path | str, sentence: str) -> None:
        """What is good to know."""
        self.add("note", path, sentence)

    def of(self, severity: Severity) -> list[Finding]:
        """Findings of a severity, in order."""
        return [finding for finding in self._items if finding.severity == severity]

    @property
    def errors(self) -> int:
        """Number of errors."""
        return len(self.of("error"))

    def sentences(self, severity: Severity) -> list[str]:
        """Sentences with their file in front, the first five, and how many more there are."""
        sentences = [f"{finding.files[0]} {finding.sentence}" for finding in self.of(severity)]
        more = len(sentences) - SHOWN
        return [*sentences[:SHOWN], *([f"and {more} more"] if more > 0 else [])]

    def stop(self) -> None:
        """Raise if there is an error.

        Raises:
            FileNotFoundError: if files are missing and nothing else is wrong.
            ValueError: otherwise; with the first five errors, a line each.
        """
        errors = self.of("error")
        if not errors:
            return
        missing = all(finding.sentence.startswith(MISSING) for finding in errors)
        raise (FileNotFoundError if missing else ValueError)("\n".join(self.sentences("error")))

    def relative_to(self, root: Path | None) -> list[Finding]:
        """All findings, with files under the root named from there."""
        if root is None:
            return list(self._items)
        start = f"{root}/"
        return [
            Finding(
                finding.severity,
                tuple(name.removeprefix(start) for name in finding.files),
                finding.sentence.replace(start, ""),
            )
            for finding in self._items
        ]


def watched(cases: Sequence[Case], title: str, progress: bool) -> Iterable[Case]:
    """Cases with a bar that appears only if they take more than two seconds."""
    return tqdm(cases, desc=title, delay=2, leave=False, disable=not progress)
