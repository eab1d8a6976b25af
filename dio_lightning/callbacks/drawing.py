"""How a slice of a registered pair is drawn."""

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Plane:
    """One slice of a pair: images (h, v) with h to the right and v upwards, ready to draw."""

    images: dict[str, Array]
    points: Array
    """(2, h, v) where the deformation takes each point, in voxels of the plane."""
    aspect: float
    """Height of a voxel by its width."""
    sides: tuple[str, str, str, str]
    """Letters at the left, right, lower and upper edge; empty without anatomy."""


def draw(plane: Plane, title: str) -> Figure:
    """Two rows: images and deformation; differences, determinant and how far each point goes."""
    width, height = plane.images["fixed"].shape
    ratio = height * plane.aspect / width
    figure = Figure(figsize=(13, 0.8 + 2 * 3.0 * min(max(ratio, 0.4), 2.0)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 4)
    for axis, name in zip(axes[0, :3], ("fixed", "moving", "warped"), strict=True):
        _image(axis, plane, plane.images[name], name, "gray", _window(plane.images["fixed"], plane.images["moving"]))
    _image(axes[0, 3], plane, plane.images["warped"], "deformation grid", "gray", _window(plane.images["warped"]))
    _lines(axes[0, 3], plane.points)
    differences = [plane.images[name] - plane.images["fixed"] for name in ("moving", "warped")]
    limit = float(np.quantile(np.abs(differences[0]), 0.999)) or 1.0
    _image(axes[1, 0], plane, differences[0], "difference before", "seismic", (-limit, limit))
    shown = _image(axes[1, 1], plane, differences[1], "difference after", "seismic", (-limit, limit))
    figure.colorbar(shown, ax=axes[1, 1], shrink=0.8)
    _determinant(figure, axes[1, 2], plane)
    _lengths(figure, axes[1, 3], plane)
    return figure


def _image(
    axis: Axes, plane: Plane, image: Array, title: str, colours: str | Colormap, limits: tuple[float, float]
) -> Any:  # noqa: ANN401
    low, high = limits
    shown = axis.imshow(
        image.T, colours, aspect=plane.aspect, vmin=low, vmax=high, origin="lower", interpolation="nearest"
    )
    axis.set(title=title, xticks=[], yticks=[])
    where = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
    for letter, (x, y), h, v in zip(
        plane.sides, where, ("left", "right", "center", "center"), ("center", "center", "bottom", "top"), strict=True
    ):
        axis.text(x, y, letter, transform=axis.transAxes, ha=h, va=v, color="tab:orange", fontsize=9)
    return shown


def _window(*images: Array) -> tuple[float, float]:
    """Black and white of grey images, without the brightest thousandth."""
    low, high = min(float(i.min()) for i in images), max(float(np.quantile(i, 0.999)) for i in images)
    return low, high if high > low else low + 1.0


def _lines(axis: Axes, points: Array) -> None:
    """The deformation of every k-th grid line, about forty across the longer side."""
    k = max(1, round(max(points.shape[1:]) / 40))
    lines = [*np.moveaxis(points[:, ::k], 0, -1), *np.moveaxis(points[:, :, ::k], 0, -1).swapaxes(0, 1)]
    axis.add_collection(LineCollection(lines, colors="tab:cyan", linewidths=0.6), autolim=False)
    width, height = points.shape[1:]
    axis.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))


def _determinant(figure: Figure, axis: Axes, plane: Plane) -> None:
    """Blue shrinks, red grows, white keeps its volume; folds are yellow."""
    image = plane.images["determinant"]
    folds = image <= 0
    colours = mpl.colormaps["RdBu_r"].with_extremes(under="yellow")
    # zero is a fold too, and only values below the limits take the colour for folds
    title = f"det ∇ϕ, {100 * folds.mean():.3g} % of the slice folded"
    shown = _image(axis, plane, np.where(folds, -1.0, image), title, colours, (0.0, 2.0))
    figure.colorbar(shown, ax=axis, shrink=0.8, extend="both")


def _lengths(figure: Figure, axis: Axes, plane: Plane) -> None:
    grid = np.stack(np.meshgrid(*map(np.arange, plane.points.shape[1:]), indexing="ij"))
    length = np.linalg.norm(plane.points - grid, axis=0)
    limits = (0.0, float(length.max()) or 1.0)
    shown = _image(axis, plane, length, "displacement in the plane (voxels)", "viridis", limits)
    figure.colorbar(shown, ax=axis, shrink=0.8)
