"""What every study shares: its options, its files, and the way from weights over records to tables."""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from dio_lightning.files import expect_free
from dio_lightning.scores.records import NO_PAIR, Record, Records
from dio_lightning.scores.rows import PairId
from dio_lightning.usage import CommandParser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dio_lightning.loaded import Loaded

SPARSE = (*range(1, 13), 14, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)
"""Steps that are scored in 3-D, where a score takes as long as a step."""
EPILOG = "What stands behind -- overrides the model's and data's settings, as `dio-lightning test` takes them."


def option(
    default: Any,  # noqa: ANN401
    about: str,
    kind: type = int,
    metavar: str | None = None,
    many: str | int | None = None,
) -> Any:  # noqa: ANN401
    """A field of a study that is an option of its command.

    Args:
        default: the field's; MISSING if it has to be given.
        about: the help, to which a default of numbers is added.
        kind: of one value; a bool is a flag, --no-NAME where it is on by default.
        metavar: what the help calls a value.
        many: how many values there are, as argparse's nargs; None is one.
    """
    numbers = default if isinstance(default, tuple) else (default,) if isinstance(default, int | float) else ()
    shown = f" (default: {' '.join(f'{number:g}' for number in numbers)})" if numbers and kind in (int, float) else ""
    how: dict[str, Any] = {"help": about + shown}
    how |= {"required": True} if default is MISSING else {"default": default}
    if kind is bool:
        how |= {"action": argparse.BooleanOptionalAction if default else "store_true"}
    else:
        how |= {"type": kind, "metavar": metavar, "nargs": many}
    return field(default=default, metadata=how)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Weights to long records, one at a time, then records to tables and a figure.

    A study is a subclass in a file of its own and an entry in `command.STUDIES`: its options are fields, whose
    help says what they are. It writes
    NAME.csv (and NAME_x.csv for every x of `more`), NAME.md, NAME.png, NAME.svg and NAME.html.

    Args:
        weights: methods, as `load` takes them; those of one name are its seeds.
        out: the folder to write to.
        options: overrides of every model, as `dio-lightning test` takes them.
        overwrite: replace files that are there.
    """

    name: ClassVar[str]
    more: ClassVar[Sequence[str]] = ()
    compares: ClassVar[bool] = True
    """Whether scores are compared pair by pair, so that all weights need the same pairs."""
    weights: Sequence[str]
    out: Path
    options: Sequence[str] = ()
    overwrite: bool = option(False, "replace files that are there", bool)

    def check(self, loaded: Sequence["Loaded"]) -> None:
        """Raises ValueError for methods that cannot be studied, before any work."""

    def measure(self, loaded: "Loaded") -> Iterator[Record]:
        """The records of one set of weights."""
        raise NotImplementedError

    def tables(self, records: Records) -> Sequence[str]:
        """The CSV files, as many as there are names for."""
        raise NotImplementedError

    def markdown(self, records: Records) -> str:
        """The table that is printed, and its caption."""
        raise NotImplementedError

    def figure(self, records: Records) -> "Figure":
        """The same as curves."""
        raise NotImplementedError

    @property
    def files(self) -> list[Path]:
        """What it writes."""
        endings = [".csv", *(f"_{name}.csv" for name in self.more), ".md", ".png", ".svg", ".html"]
        return [self.out / f"{self.name}{ending}" for ending in endings]

    def run(self) -> str:
        """Measure, write all files or none, and return the Markdown.

        Raises:
            FileNotFoundError, ValueError: for weights, data or settings that are not as expected.
            FileExistsError: an output is there.
        """
        from dio_lightning.loaded import load_all
        from dio_lightning.reports.study import write_study

        expect_free(self.files, self.overwrite)
        loaded = load_all(self.weights, self.options, ready=isinstance(self, PairStudy))
        self.check(loaded)
        records = Records(self._records(loaded))
        text, picture = self.markdown(records), self.figure(records)
        write_study(self.name, self.files, self.tables(records), text, picture)
        return text

    def _records(self, loaded: list["Loaded"]) -> Iterator[Record]:
        """Of all weights, which are dropped one by one."""
        first: tuple[str, set[PairId]] | None = None
        while loaded:
            start, one, pairs = time.perf_counter(), loaded.pop(0), set[PairId]()
            for record in self.measure(one):
                if first and self.compares and record.pair not in first[1] | {NO_PAIR}:
                    raise ValueError(f"{one.weights} is tested on the pair {record.pair}, {first[0]} is not")
                pairs |= {record.pair} - {NO_PAIR}
                yield record
            first = first or (str(one.weights), pairs)
            if self.compares and pairs != first[1]:
                raise ValueError(f"{one.weights} has {len(pairs)} test pairs, {first[0]} {len(first[1])}")
            count = f"{len(pairs)} pairs in " if pairs else ""
            print(f"{one.name} ({one.weights}): {count}{time.perf_counter() - start:.0f} s", flush=True)

    @classmethod
    def parse(cls, about: str, argv: Sequence[str], options: Sequence[str] = ()) -> Self:
        """The study that a command line asks for; a mistake in it ends the program with one sentence."""
        parser = CommandParser(
            f"dio-lightning study {cls.name}", description=about, epilog=EPILOG, allow_abbrev=False, usage=None
        )
        weights = "checkpoint, weights or config, or NAME=FILE; of one name: seeds of one method"
        parser.add_argument("weights", nargs="+", metavar="WEIGHTS", help=weights)
        place = f"where {cls.name}.md and others go"
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=place)
        for one in fields(cls):
            if one.metadata:
                parser.add_argument("--" + one.name.replace("_", "-"), **one.metadata)
        return cls(options=options, **vars(parser.parse_args(argv)))


@dataclass(frozen=True, kw_only=True)
class PairStudy(Study):
    """A study of test pairs, `limit` of them at most.

    Raises:
        ValueError: for a limit below 1.
    """

    limit: int | None = option(None, "pairs at most", metavar="N")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, expected at least 1 pair")


def check_steps(steps: int, at: Sequence[int] | None) -> None:
    """Raises ValueError unless there is a step, and all of `at` are among them."""
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    if at is not None and not (at and 1 <= min(at) and max(at) <= steps):
        raise ValueError(f"at is {list(at)}, expected steps from 1 to {steps}")


def scored_steps(at: Sequence[int] | None, spatial_dims: int, steps: int, always: Sequence[int] = ()) -> list[int]:
    """The steps of 1..`steps` that are scored: those asked for, by default all in 2-D, and always the last."""
    chosen = at if at is not None else range(1, steps + 1) if spatial_dims == 2 else SPARSE
    return sorted({step for step in chosen if step <= steps} | {steps, *always})
