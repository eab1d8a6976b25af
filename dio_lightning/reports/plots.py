"""Plots of a page: matplotlib's SVG, whose lines and letters take the colours of the page, light or dark."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import TightLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from dio_lightning.reports.curves import Curves

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8c8c8c", "#b8a900")
"""Okabe and Ito's, which colour-blind people tell apart, without black, for which the page has its own colour."""
INK = "#010203"
"""Stands for the colour of text until the page says which one it is."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dio",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
LYING = 10
"""Groups above which boxes lie, so that names of labels can be read."""
LEAST = 5
"""Values from which on a box is drawn; fewer are points."""


def svg(figure: Figure) -> Markup:
    """A figure as part of a page."""
    file = io.StringIO()
    with _without_frames(figure), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dio"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # the page says how wide it is; its script and letters are the reader's (style.css)
    head, rest = text[: text.index(">")], text[text.index(">") :]
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    text = re.sub(r' (width|height|xmlns(:\w+)?)="[^"]*"', "", head) + rest
    width = figure.get_figwidth() * 96
    text = text.replace("<svg", f'<svg class="plot" style="max-width:{width:.0f}px"', 1)
    # black lines of a figure that was drawn for paper are the page's ink too
    return Markup(re.sub(f"{INK}|#000000", "currentColor", text).replace("\n", " "))


@contextmanager
def _without_frames(figure: Figure) -> Iterator[None]:
    """Legends meanwhile have no boxes: white ones of a figure that was drawn for paper hide letters on a dark page."""
    frames = [legend.get_frame() for legend in figure.findobj(Legend) if isinstance(legend, Legend)]
    drawn = [frame.get_visible() for frame in frames]
    for frame in frames:
        frame.set_visible(False)
    yield
    for frame, visible in zip(frames, drawn, strict=True):
        frame.set_visible(visible)


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made meanwhile look like the page."""
    with mpl.rc_context(dict(STYLE)):
        yield


def boxes_svg(groups: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> Markup:
    """Boxes over pairs: a group a label or score, in it a box a method; every value is a point too where they are few.

    Args:
        groups: values by group and method, the same methods in each.
        label: of the axis, with its unit.
    """
    methods = list(next(iter(groups.values())))
    lying = len(groups) > LYING
    each = 0.8 / len(methods)
    with styled():
        length = 1.2 + len(groups) * (0.11 * len(methods) + 0.1)
        figure = Figure(figsize=(8.0, length) if lying else (max(4.5, length), 3.2), layout="tight")
        axis = figure.subplots()
        for place, method in enumerate(methods):
            at = np.arange(len(groups)) + (place + 0.5) * each - 0.4
            _boxes(axis, [groups[name][method] for name in groups], at, 0.8 * each, _colour(place), lying)
        (axis.set_yticks if lying else axis.set_xticks)(range(len(groups)), [*groups])
        (axis.set_ylim if lying else axis.set_xlim)(
            *((len(groups) - 0.4, -0.6) if lying else (-0.6, len(groups) - 0.4))
        )
        (axis.set_xlabel if lying else axis.set_ylabel)(label)
        axis.grid(axis="x" if lying else "y", alpha=0.25, color=INK)
        columns = min(len(methods), 4)
        axis.legend(handles=_handles(methods), loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False)
        return svg(figure)


def panels_svg(plots: Mapping[str, Mapping[str, Sequence[float]]]) -> Markup:
    """Boxes over pairs side by side, a panel a score with an axis of its own; in it a box a method."""
    methods = list(dict.fromkeys(method for plot in plots.values() for method in plot))
    flat = {name for name, plot in plots.items() if not any(x for values in plot.values() for x in values)}
    with styled():
        columns = min(len(methods), 4)
        engine = TightLayoutEngine(rect=(0, 0, 1, 1 - 0.09 * -(-len(methods) // columns)))
        figure = Figure(figsize=(min(13.0, 0.8 + len(plots) * (1.1 + 0.3 * len(methods))), 2.9), layout=engine)
        for axis, (name, plot) in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots.items(), strict=True):
            for place, method in enumerate(methods):
                _boxes(axis, [plot.get(method, [])], np.array([float(place)]), 0.6, _colour(place))
            axis.set(xticks=[], xlim=(-0.7, len(methods) - 0.3), ylabel=name)
            if name in flat:  # zeros alone, as of folds: no axis of hundredths below them
                axis.set(ylim=(-0.04, 1), yticks=[0, 1])
            axis.grid(axis="y", alpha=0.25, color=INK)
        figure.legend(
            handles=_handles(methods), loc="upper left", ncols=columns, frameon=False, bbox_to_anchor=(0.01, 1.0)
        )
        return svg(figure)


def curves_svg(curves: Curves) -> Markup:
    """Relative residual over the steps and, where there is one, energy by its value at the start; a curve a level."""
    shown = {"relative residual": curves.residual}
    # levels have other numbers of voxels, so that energies as they are would lie far apart
    shares = {level: [x / abs(values[0]) for x in values] for level, values in curves.energy.items() if values[0]}
    shown |= {"energy / its start": shares} if shares else {}
    with styled():
        figure = Figure(figsize=(4.4 * len(shown), 2.8), layout="tight")
        for axis, (name, levels) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
            for place, (level, values) in enumerate(sorted(levels.items())):
                which = " (coarsest)" if place == 0 and len(levels) > 1 else ""
                axis.plot(values, color=_colour(place), label=f"level {level + 1}{which}", marker=".", ms=3)
            positive = all(value > 0 for values in levels.values() for value in values)
            axis.set(xlabel="step of the level", ylabel=name, yscale="log" if positive and name[0] == "r" else "linear")
            axis.grid(alpha=0.25, color=INK)
        figure.axes[0].legend(frameon=False, fontsize=9)
        return svg(figure)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _handles(methods: Sequence[str]) -> list[Line2D]:
    """The legend of methods."""
    return [Line2D([], [], marker="s", linestyle="", color=_colour(i), label=name) for i, name in enumerate(methods)]


def _boxes(
    axis: Axes, values: Sequence[Sequence[float]], at: np.ndarray, width: float, colour: str, lying: bool = False
) -> None:
    """Boxes of one method; few values are points alone."""
    finite = [[value for value in group if np.isfinite(value)] for group in values]
    few = [(group, place) for group, place in zip(finite, at, strict=True) if len(group) < LEAST]
    for group, place in few:
        x, y = ([place] * len(group), group)[:: -1 if lying else 1]
        axis.plot(x, y, "o", color=colour, ms=4, alpha=0.8)
    many = [(group, place) for group, place in zip(finite, at, strict=True) if len(group) >= LEAST]
    if many:
        ink = {"color": INK, "linewidth": 0.7}
        axis.boxplot(
            [group for group, _ in many],
            positions=[place for _, place in many],
            widths=width,
            patch_artist=True,
            manage_ticks=False,
            orientation="horizontal" if lying else "vertical",
            boxprops={"facecolor": colour, "alpha": 0.65, "edgecolor": INK, "linewidth": 0.7},
            medianprops={"color": INK, "linewidth": 1.4},
            whiskerprops=ink,
            capprops=ink,
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
        )
