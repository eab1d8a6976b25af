"""How a slice of a registered pair is drawn: ten panels on one sheet."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from dio_lightning.pictures.overlays import FIXED, GRID, MOVING, checkerboard, difference_limit, outlines, window
from dio_lightning.pictures.overlays import grid_lines as lines_of
from dio_lightning.pictures.planes import Array, Plane

ROWS = (
    ("fixed", "moving", "warped", "checkerboard", "grid"),
    ("outlines before", "outlines after", "difference before", "difference after", "determinant"),
)
LEFT, RIGHT, TOP, BOTTOM = 0.1, 0.2, 0.35, 0.05
"""Inches around the panels."""
GAP, BAR = 0.3, 0.45
"""Inches between rows, and beside panels for their colour bars."""


def draw(plane: Plane, title: str, width: float = 2.3) -> Figure:
    """Two rows: images, checkerboard and grid; outlines and differences before and after, determinant.

    Args:
        plane: the slice.
        title: of the sheet.
        width: of a panel in inches; its height is that of the body.
    """
    h, v = plane.images["fixed"].shape
    height = width * min(max(v * plane.aspect / h, 0.4), 2.0)
    size = (LEFT + 5 * (width + BAR) + RIGHT, TOP + 2 * (height + GAP) + BOTTOM)
    figure = Figure(figsize=size)
    figure.suptitle(title, y=1 - 0.1 / size[1], va="top", fontsize=12)
    for row, names in enumerate(ROWS):
        bottom = BOTTOM + (1 - row) * (height + GAP)
        for column, name in enumerate(names):
            left = LEFT + column * (width + BAR)
            axis = figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))
            _PANELS[name](axis, plane)
    return figure


def _image(
    axis: Axes, plane: Plane, image: Array, title: str, colours: str | Colormap, limits: tuple[float, float]
) -> Any:  # noqa: ANN401
    low, high = limits
    shown = axis.imshow(
        image.T, colours, aspect=plane.aspect, vmin=low, vmax=high, origin="lower", interpolation="nearest"
    )
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10, pad=3)
    where = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
    for letter, (x, y), h, v in zip(
        plane.sides, where, ("left", "right", "center", "center"), ("center", "center", "bottom", "top"), strict=True
    ):
        axis.text(x, y, letter, transform=axis.transAxes, ha=h, va=v, color="tab:orange", fontsize=9)
    return shown


def _bar(axis: Axes, shown: Any, label: str = "", extend: str = "neither") -> None:  # noqa: ANN401
    """A colour bar at the right of a panel, which keeps its place."""
    place = axis.inset_axes((1.02, 0.1, 0.035, 0.8))
    bar = axis.figure.colorbar(shown, cax=place, extend=extend, label=label)
    bar.ax.tick_params(labelsize=7, pad=1, length=2)
    bar.ax.yaxis.label.set_fontsize(7)


def _plain(name: str) -> Any:  # noqa: ANN401
    def drawn(axis: Axes, plane: Plane) -> None:
        other = "fixed" if name == "fixed" else "moving"
        _image(axis, plane, plane.images[name], name, "gray", window(plane.images[other]))

    return drawn


def _checkerboard(axis: Axes, plane: Plane) -> None:
    _image(axis, plane, checkerboard(plane), "fixed and warped in turn", "gray", (0.0, 1.0))


def _grid(axis: Axes, plane: Plane) -> None:
    """The deformation of a few grid lines, over how far each point goes."""
    length = plane.lengths
    unit = "mm" if plane.sides[0] else "voxels"
    shown = _image(
        axis, plane, length, f"grid, displacement ({unit})", "viridis", (0.0, float(np.nanmax(length)) or 1.0)
    )
    axis.add_collection(LineCollection(lines_of(plane), colors=GRID, linewidths=0.7), autolim=False)
    h, v = plane.points.shape[1:]
    axis.set(xlim=(-0.5, h - 0.5), ylim=(-0.5, v - 0.5))
    _bar(axis, shown)


def _outlines(name: str, when: str) -> Any:  # noqa: ANN401
    def drawn(axis: Axes, plane: Plane) -> None:
        what = "labels" if {"fixed", name} <= plane.labels.keys() else "outlines"
        _image(axis, plane, plane.images[name], f"{what} {when}", "gray", window(plane.images["moving"]))
        for side, colour in ((name, MOVING), ("fixed", FIXED)):
            lines = outlines(plane, side, with_labels=what == "labels")
            axis.add_collection(LineCollection(lines, colors=colour, linewidths=0.9), autolim=False)
        h, v = plane.images[name].shape
        axis.set(xlim=(-0.5, h - 0.5), ylim=(-0.5, v - 0.5))
        axis.text(0.02, 0.02, "fixed", transform=axis.transAxes, va="bottom", color=FIXED, fontsize=8)
        axis.text(0.98, 0.02, name, transform=axis.transAxes, va="bottom", ha="right", color=MOVING, fontsize=8)

    return drawn


def _difference(name: str, when: str) -> Any:  # noqa: ANN401
    def drawn(axis: Axes, plane: Plane) -> None:
        limit = difference_limit(plane)
        image = plane.images[name] - plane.images["fixed"]
        shown = _image(axis, plane, image, f"{name} − fixed, {when}", "RdBu_r", (-limit, limit))
        if when == "after":
            _bar(axis, shown)

    return drawn


def _determinant(axis: Axes, plane: Plane) -> None:
    """Blue shrinks, red grows, white keeps its volume; folds are yellow."""
    image = plane.images["determinant"]
    folds = image <= 0
    colours = mpl.colormaps["RdBu_r"].with_extremes(under="yellow")
    # zero is a fold too, and only values below the limits take the colour for folds
    title = f"det ∇ϕ, {100 * folds.mean():.3g} % of the slice folded"
    shown = _image(axis, plane, np.where(folds, -1.0, image), title, colours, (0.0, 2.0))
    axis.title.set_fontsize(8.5)
    _bar(axis, shown, extend="both")


_PANELS: dict[str, Any] = {
    **{name: _plain(name) for name in ("fixed", "moving", "warped")},
    "checkerboard": _checkerboard,
    "grid": _grid,
    "outlines before": _outlines("moving", "before"),
    "outlines after": _outlines("warped", "after"),
    "difference before": _difference("moving", "before"),
    "difference after": _difference("warped", "after"),
    "determinant": _determinant,
}
