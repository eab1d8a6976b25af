"""Memory of one training step as a function of the number of steps, for every method."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dio_lightning.scores.records import NO_PAIR, Record, Records
from dio_lightning.studies.rendering import Line, Panel, Value, draw, table, to_csv
from dio_lightning.studies.study import Study, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dio_lightning.footprint import Cost, Point
    from dio_lightning.loaded import Loaded

SIZES = {2: (80, 96), 3: (40, 48, 56)}
BATCHES = {2: 4, 3: 1}
ADJOINTS = {"T = 1": (1, False), "T = 3": (3, False), "T = 3, checkpointed": (3, True)}
"""The phantom steps that a DEQReg is measured with, and whether each is recomputed."""
MEASURES = {
    "peak_mb": "Peak memory: on a GPU what is allocated, on the CPU growth of a fresh process's resident memory",
    "tensors_mb": "Peak of the tensors alive, counted",
    "saved_mb": "Peak of the tensors saved for a backward pass, counted; without what a checkpoint recomputes",
}
QUANTITIES = ("seconds", *MEASURES)
BASE = "VoxelMorph"


@dataclass(frozen=True, kw_only=True)
class Memory(Study):
    """One training step of every method at every number of steps; what was not run is NaN in the records.

    The images are random: neither data nor trained weights matter. A DEQReg is measured with each of `ADJOINTS`.

    Raises:
        ValueError: for steps that do not rise, or a grid that is none.
    """

    name = "memory"
    steps: Sequence[int] = option((3, 6, 12, 24, 48, 96), "steps at the finest level", metavar="K", many="+")
    size: Sequence[int] | None = option(
        None, "grid of the random images (default: 80 96, or 40 48 56 for networks in 3-D)", metavar="N", many="+"
    )
    batch: int | None = option(None, "pairs (default: 4 in 2-D, 1 in 3-D)", metavar="N")
    limit_mb: float | None = option(
        None, "what is expected to take more MiB is not run (default: half of the machine's memory)", float, "MIB"
    )
    cost: "Callable[[Point], Cost] | None" = None
    """Of a point; by default measured in a process of its own."""

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or sorted(set(self.steps)) != list(self.steps):
            raise ValueError(f"steps are {list(self.steps)}, expected rising numbers of at least 1")
        if self.size is not None and (len(self.size) not in (2, 3) or min(self.size) < 2):
            raise ValueError(f"size is {list(self.size)}, expected two or three extents of at least 2")

    def check(self, loaded: Sequence["Loaded"]) -> None:
        """The dimension of every network is clear."""
        for one in loaded:
            list(self.variants(one))

    def measure(self, loaded: "Loaded") -> Iterator[Record]:
        """What each variant costs, under its number of steps."""
        from dio_lightning.footprint import in_a_process
        from dio_lightning.studies.watching import takes_steps

        steps = self.steps if takes_steps(loaded.module) else None
        for name, point in self.variants(loaded):
            for k, cost in sweep(point, steps, self.limit_mb or half_of_memory(), self.cost or in_a_process):
                for quantity in QUANTITIES:
                    value = asdict(cost)[quantity] if cost else math.nan
                    yield Record(name, loaded.given, k, NO_PAIR, quantity, value)

    def variants(self, loaded: "Loaded") -> "Iterator[tuple[str, Point]]":
        """The method under its name, on the grid of its dimension; a DEQReg with each of `ADJOINTS`."""
        from dio_lightning.footprint import Point, dimension
        from dio_lightning.modules import DEQReg

        d = len(self.size) if self.size is not None else dimension(loaded.module)
        point = Point(loaded.given, list(self.options), list(self.size or SIZES[d]), self.batch or BATCHES[d], None)
        if not isinstance(loaded.module, DEQReg):
            yield loaded.name, point
            return
        # the title tells a number of steps
        name = "DEQReg" if loaded.name == loaded.module.title else loaded.name
        for adjoint, (phantom, checkpointed) in ADJOINTS.items():
            yield f"{name}, {adjoint}", replace(point, phantom=phantom, checkpointed=checkpointed)

    def tables(self, records: Records) -> list[str]:
        """One row a point."""
        rows: list[dict[str, Value]] = []
        for method, _, steps, _, cost in records.rows():
            ran = not math.isnan(cost["seconds"])
            rows.append({"method": method, "steps": steps, "status": "measured" if ran else "not run"})
            rows[-1] |= cost if ran else {}
        return [to_csv(rows)]

    def markdown(self, records: Records) -> str:
        """A table a measure, steps by methods, with the ratio to VoxelMorph."""
        parts = ["# Memory of one training step", f"MiB beyond weights and images; in brackets as multiples of {BASE}."]
        steps = sorted({k for name in records.methods for k in records.conditions(name, "seconds")})
        for measure, title in MEASURES.items():
            base = _base(records, measure)
            rows = [[str(k), *(_cell(records, name, measure, k, base) for name in records.methods)] for k in steps]
            parts += [f"## {title}", table(["steps", *records.methods], rows)]
        return "\n\n".join(parts) + "\n"

    def figure(self, records: Records) -> "Figure":
        """Peak memory and tensors alive over steps."""
        panels = []
        for measure, title in list(MEASURES.items())[:2]:
            lines = []
            for name in records.methods:
                values = {k: v for k, v in _values(records, name, measure).items() if v > 0}
                lines += [Line(name, list(values), list(values.values()))] if values else []
            panels.append(Panel("steps K", f"{title.split(':')[0].split(',')[0]} (MiB)", lines, "log"))
        return draw(*panels)


def sweep(
    point: "Point", steps: Sequence[int] | None, limit_mb: float, measure: "Callable[[Point], Cost]"
) -> "Iterator[tuple[int, Cost | None]]":
    """One method at every number of steps, at 1 if it takes none; what would exceed the limit is not run."""
    if steps is None:
        yield 1, measure(point)
        return
    peaks: list[tuple[int, float]] = []
    for k in steps:
        cost = measure(replace(point, steps=k)) if expected(peaks, k) <= limit_mb else None
        peaks += [(k, cost.peak_mb)] if cost else []
        yield k, cost


def expected(peaks: Sequence[tuple[int, float]], steps: int) -> float:
    """The memory at `steps`, on the line through the last two of `peaks` (steps, MiB); proportional after one."""
    if not peaks:
        return 0.0
    (k1, m1), (k2, m2) = [(0, 0.0), *peaks][-2:]
    return m2 + (m2 - m1) / (k2 - k1) * (steps - k2)


def half_of_memory() -> float:
    """MiB; 4096 where the operating system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 4096.0
    total = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
    return int(total.split()[1]) / 1024 / 2


def _values(records: Records, name: str, measure: str) -> dict[int, float]:
    """MiB by steps, NaN where it was not run."""
    return {k: records.pairs(name, measure, k)[NO_PAIR] for k in records.conditions(name, measure)}


def _base(records: Records, measure: str) -> float | None:
    """What others are multiples of; none where a page of memory was more than it took."""
    values = (v for name in records.methods if name.startswith(BASE) for v in _values(records, name, measure).values())
    return next((value for value in values if not math.isnan(value)), None) or None


def _cell(records: Records, name: str, measure: str, steps: int, base: float | None) -> str:
    value = _values(records, name, measure).get(steps)
    if value is None or math.isnan(value):
        return "" if value is None else "not run"
    return f"{value:.1f}" + (f" ({value / base:.2f})" if base else "")
