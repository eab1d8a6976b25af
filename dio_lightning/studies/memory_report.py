"""Table, promises and figure of the memory study."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from matplotlib.figure import Figure

from dio_lightning.callbacks.report import to_csv
from dio_lightning.studies.memory_point import Cost
from dio_lightning.studies.plots import Line, Panel, draw

FILES = ("memory.csv", "memory.md", "memory.png", "memory.svg")
MEASURES = {
    "peak_mb": "Peak memory: on a GPU what is allocated, on the CPU growth of a fresh process's resident memory",
    "tensors_mb": "Peak of the tensors alive, counted",
    "saved_mb": "Peak of the tensors saved for a backward pass, counted; without what a checkpoint recomputes",
}
COLUMNS = ("method", "steps", "status", "seconds", *MEASURES)
BASE = "VoxelMorph"
FLAT, NEAR = 0.01, 1.3
"""Promised of DEQReg: how much memory may vary from 12 steps on, and what it may be in VoxelMorphs."""


@dataclass(frozen=True)
class Measured:
    """The cost of a method with a number of steps; None if it was not run."""

    method: str
    steps: int
    cost: Cost | None

    def value(self, measure: str) -> float:
        """One of `MEASURES` in MiB, of a point that was run."""
        assert self.cost is not None
        return float(getattr(self.cost, measure))


def csv(found: Sequence[Measured]) -> str:
    """One row a point."""
    rows = [
        {"method": m.method, "steps": m.steps, "status": "measured" if m.cost else "not run"}
        | (asdict(m.cost) if m.cost else {})
        for m in found
    ]
    return to_csv(rows, COLUMNS)


def markdown(found: Sequence[Measured]) -> str:
    """A table a measure, steps by methods, with the ratio to VoxelMorph; then what was promised and what was seen."""
    names = list(dict.fromkeys(m.method for m in found))
    lines = ["# Memory of one training step", "", f"MiB beyond weights and images; in brackets as multiples of {BASE}."]
    for measure, title in MEASURES.items():
        base = _base(found, measure)
        lines += ["", f"## {title}", "", f"| steps | {' | '.join(names)} |", "|--:" * (len(names) + 1) + "|"]
        for k in sorted({m.steps for m in found}):
            cells = {m.method: _cell(m, measure, base) for m in found if m.steps == k}
            lines.append(f"| {k} | {' | '.join(cells.get(name, '') for name in names)} |")
    return "\n".join([*lines, "", "## Promises", "", *promises(found)]) + "\n"


def promises(found: Sequence[Measured]) -> list[str]:
    """One line a promise and a measure: kept or broken, and the number."""
    lines: list[str] = []
    for measure in ("peak_mb", "tensors_mb"):
        base = _base(found, measure)
        for name in dict.fromkeys(m.method for m in found if "T = " in m.method):
            values = [m.value(measure) for m in found if m.method == name and m.steps >= 12 and m.cost]
            if len(values) > 1 and min(values) > 0:
                change = max(values) / min(values) - 1
                lines.append(
                    f"- {_kept(change <= FLAT)}: {name}, {measure} flat within 1 % from K = 12 on: {change:.2%}"
                )
            if base is not None and values and name.endswith(("T = 1", "checkpointed")):
                ratio = max(values) / base
                lines.append(f"- {_kept(ratio <= NEAR)}: {name}, {measure} at most {NEAR} {BASE}s: {ratio:.2f}")
    return lines or ["- none to be checked: they are about DEQReg, from K = 12 on"]


def figure(found: Sequence[Measured]) -> Figure:
    """Memory over steps, both logarithmic: flat against linear."""
    panels = []
    for measure, title in list(MEASURES.items())[:2]:
        lines = [
            Line(name, [m.steps for m in points], [m.value(measure) for m in points])
            for name in dict.fromkeys(m.method for m in found)
            if (points := [m for m in found if m.method == name and m.cost and m.value(measure) > 0])
        ]
        panels.append(Panel("steps K", f"{title.split(':')[0].split(',')[0]} (MiB)", lines, "log"))
    return draw(panels)


def _base(found: Sequence[Measured], measure: str) -> float | None:
    """What others are multiples of; none where a page of memory was more than it took."""
    return next((m.value(measure) for m in found if m.method.startswith(BASE) and m.cost), None) or None


def _cell(measured: Measured, measure: str, base: float | None) -> str:
    if measured.cost is None:
        return "not run"
    value = measured.value(measure)
    return f"{value:.1f}" + (f" ({value / base:.2f})" if base else "")


def _kept(kept: bool) -> str:
    return "kept" if kept else "**broken**"
