"""What `register` shows of its work: stages, levels and energies, to a person or to a log."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from dio_lightning.layers import Record


class Progress:
    """Shows nothing; subclasses show stages as they begin, states of the solver, and pairs of a table as they end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finish()

    def stage(self, text: str) -> None:
        """A stage begins, and the one before has ended."""

    def observe(self, record: "Record") -> None:
        """A state of the solver in the stage that runs."""

    def total(self, pairs: int) -> None:
        """So many pairs are ahead."""

    def pair(self, name: str) -> None:
        """A pair begins."""

    def ended(self, text: str) -> None:
        """A pair has ended, with this result."""

    def finish(self) -> None:
        """Nothing follows."""


class Lines(Progress):
    """A line on stderr for every stage and every level, for logs and pipes."""

    def __init__(self) -> None:
        self._level: _Level | None = None
        self._done = self._total = 0

    def stage(self, text: str) -> None:
        """A line as it begins."""
        self._close()
        _say(f"  {text}")

    def observe(self, record: "Record") -> None:
        """A line when a level is left."""
        if self._level is None or self._level.index != record.level:
            self._close()
            self._level = _Level(record.level)
        self._level.see(record)

    def total(self, pairs: int) -> None:
        """How many are counted."""
        self._total = pairs

    def pair(self, name: str) -> None:
        """A line with its name."""
        _say(name)

    def ended(self, text: str) -> None:
        """A line with the count."""
        self._close()
        self._done += 1
        _say(f"{self._done}/{self._total} {text}")

    def finish(self) -> None:
        """The last level's line."""
        self._close()

    def _close(self) -> None:
        if self._level is not None:
            _say(f"    {self._level}, {time.perf_counter() - self._level.began:.1f} s")
        self._level = None


class Bar(Progress):
    """On a terminal: what runs and its level, step and energy in place; stages that have ended stay as lines.

    Of a table, a bar of its pairs too.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn()
        self._bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self._now = self._bar.add_task("", total=None, visible=False)
        self._pairs = self._bar.add_task("pairs", total=0, visible=False)
        self._text, self._level, self._began = "", None, 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def stage(self, text: str) -> None:
        """It takes the place of the one before, which becomes a line."""
        self._close()
        self._text, self._began = text, time.perf_counter()
        self._bar.reset(self._now, description=text, visible=True)

    def observe(self, record: "Record") -> None:
        """Level, step and energy beside the stage."""
        if self._level is None or self._level.index != record.level:
            self._level = _Level(record.level)
        self._level.see(record)
        self._bar.update(self._now, description=f"{self._text}: {self._level}")

    def total(self, pairs: int) -> None:
        """Their bar appears."""
        self._bar.update(self._pairs, total=pairs, visible=True)

    def pair(self, name: str) -> None:
        """Its name stands beside the bar."""
        self._bar.update(self._pairs, description=name)

    def ended(self, text: str) -> None:
        """The bar moves, and the result becomes a line."""
        self._close()
        self._bar.console.print(text, markup=False)
        self._bar.advance(self._pairs)

    def finish(self) -> None:
        """The bar goes, its lines stay."""
        self._close()
        self._bar.stop()

    def _close(self) -> None:
        if self._text:
            level = "" if self._level is None else f": {self._level}"
            seconds = time.perf_counter() - self._began
            self._bar.console.print(f"  {self._text}{level}, {seconds:.1f} s", markup=False)
        self._text, self._level = "", None
        self._bar.update(self._now, visible=False)


class _Level:
    """Steps and energies of one level."""

    def __init__(self, index: int) -> None:
        self.index, self.began = index, time.perf_counter()
        self._step, self._energies = 0, list[float]()

    def see(self, record: "Record") -> None:
        from dio_lightning.registration.journal import energy_of

        self._step = record.step
        if (energy := energy_of(record)) is not None:
            self._energies = [*self._energies[:1], energy]

    def __str__(self) -> str:
        energies = " → ".join(f"{energy:.4g}" for energy in self._energies)
        return f"level {self.index + 1}, step {self._step}" + (f", energy {energies}" if energies else "")


def progress(silent: bool) -> Progress:
    """What suits stderr: nothing, a bar on a terminal, or lines."""
    if silent:
        return Progress()
    return Bar() if sys.stderr.isatty() else Lines()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
