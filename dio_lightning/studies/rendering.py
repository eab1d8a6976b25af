"""How records are shown: Markdown tables, CSV, and curves in a row of panels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dio_lightning.scores.rows import to_csv as rows_to_csv
from dio_lightning.scores.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Value = str | float | int | None


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a last line end: its first column to the left, the others to the right."""
    return Table(headings, [[Cell(cell) for cell in row] for row in rows], right=True).markdown().rstrip("\n")


def to_csv(rows: Sequence[Mapping[str, Value]]) -> str:
    """Rows as CSV, columns in the order in which they come; what a row lacks or has as None is empty."""
    return rows_to_csv(rows, list(dict.fromkeys(name for row in rows for name in row)))


@dataclass(frozen=True)
class Line:
    """A curve over positive x, its band from `low` to `high`, and the x of its tick.

    A curve of one point is a level: drawn from edge to edge, with a dot.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    tick: float | None = None


@dataclass(frozen=True)
class Panel:
    """Axis titles, scales of y and x as matplotlib names them, and the curves, in the same order in every panel."""

    x: str
    y: str
    lines: Sequence[Line]
    scale: str = "linear"
    threshold: float = 0.01
    """Below it a symlog scale is linear."""
    across: str = "log"


def draw(*panels: Panel) -> "Figure":
    """The panels side by side, one legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_xscale(panel.across, **({"base": 2} if panel.across == "log" else {}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_yscale(panel.scale, **({"linthresh": panel.threshold} if panel.scale == "symlog" else {}))
        axis.set(xlabel=panel.x, ylabel=panel.y)
        axis.grid(alpha=0.3)
        for index, line in enumerate(panel.lines):
            _line(axis, line, f"C{index % 10}", ("-", "--", ":")[index // 10 % 3])
        if panel.scale == "symlog":
            axis.set_ylim(bottom=-0.1 * panel.threshold)
            axis.yaxis.set_major_formatter("{x:g}")
    axes[0].legend(fontsize="small")
    return figure


def _line(axis: "Axes", line: Line, colour: str, style: str) -> None:
    if len(line.x) == 1:
        axis.axhline(line.y[0], color=colour, linestyle=(0, (5, 3)), linewidth=1, label=line.name)
        if line.x[0] > 0:
            axis.plot(line.x, line.y, "o", color=colour, markersize=4)
        return
    axis.plot(line.x, line.y, style, color=colour, label=line.name, linewidth=1.5)
    if line.low is not None and line.high is not None:
        axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
    if line.tick is not None and line.tick in line.x:
        height = line.y[list(line.x).index(line.tick)]
        if not math.isnan(height):
            axis.plot([line.tick], [height], "|", color=colour, markersize=16, markeredgewidth=2)
