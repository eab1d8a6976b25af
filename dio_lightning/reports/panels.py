"""Panels of a slice for a page: a raster with lines above it, in the shape of the body."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.colors import to_hex
from PIL import Image

from dio_lightning.pictures.overlays import (
    FIXED,
    GRID,
    MOVING,
    checkerboard,
    difference_limit,
    grid_lines,
    outlines,
    window,
)
from dio_lightning.pictures.planes import Array, Plane

FOLDS = (255, 224, 0)
"""Colour of folds, which no colour map here has."""
Lines = Sequence[tuple[Sequence[Array], str]]


@dataclass(frozen=True)
class Scale:
    """A colour map and the values at its ends."""

    colours: str
    low: float
    high: float

    @property
    def gradient(self) -> str:
        """The map as CSS has it."""
        stops = mpl.colormaps[self.colours](np.linspace(0, 1, 11))
        return f"linear-gradient(90deg,{','.join(to_hex(stop) for stop in stops)})"

    def picture(self, image: Array, folds: Array | None = None) -> Image.Image:
        """An image (h, v) in these colours, its first row the upper one."""
        share = (image - self.low) / ((self.high - self.low) or 1.0)
        # the last of 256 colours is kept for folds
        index = np.rint(np.nan_to_num(share).clip(0, 1) * 254).astype(np.uint8)
        if folds is not None:
            index[folds] = 255
        made = Image.fromarray(np.ascontiguousarray(index.T[::-1]), "P")
        colours = np.rint(mpl.colormaps[self.colours](np.linspace(0, 1, 255))[:, :3] * 255).astype(np.uint8)
        made.putpalette([*colours.flatten().tolist(), *FOLDS])
        return made


@dataclass(frozen=True)
class Panel:
    """One picture, what it is called, how it is read, and its scale where colours have values."""

    svg: Markup
    title: str
    about: str = ""
    scale: Scale | None = None
    unit: str = ""


def panels(plane: Plane) -> list[Panel]:
    """All panels of a slice, in the order in which they are looked at."""
    fixed, moving = (Scale("gray", *window(plane.images[name])) for name in ("fixed", "moving"))
    own = {"fixed": fixed, "moving": moving, "warped": moving}
    made = [_panel(plane, plane.images[name], name, own[name]) for name in own]
    board = _panel(plane, checkerboard(plane), "fixed and warped in turn", Scale("gray", 0.0, 1.0))
    made += [_outlined(plane, "moving", moving, "before"), _outlined(plane, "warped", moving, "after"), board]
    if "warped" in plane.labels:
        about = "outlines of what is bright, colours as before"
        lines = [(outlines(plane, name, False), colour) for name, colour in (("warped", MOVING), ("fixed", FIXED))]
        made.append(_panel(plane, plane.images["warped"], "edges after", moving, lines, about))
    return [*made, *_measured(plane)]


def _outlined(plane: Plane, name: str, scale: Scale, when: str) -> Panel:
    """The outlines of one image and of the fixed one."""
    what = "labels" if {"fixed", name} <= plane.labels.keys() else "edges"
    kind = None if what == "labels" else False
    lines = [(outlines(plane, name, kind), MOVING), (outlines(plane, "fixed", kind), FIXED)]
    return _panel(plane, plane.images[name], f"{what} {when}", scale, lines, f"blue: fixed, orange: {name}")


def _measured(plane: Plane) -> list[Panel]:
    """Differences, grid and determinant."""
    limit = difference_limit(plane)
    scale = Scale("RdBu_r", -limit, limit)
    made = [
        _panel(plane, plane.images[name] - plane.images["fixed"], f"{name} − fixed", scale, coloured=True)
        for name in ("moving", "warped")
    ]
    length = plane.lengths
    unit = "mm" if plane.sides[0] else "voxels"
    far = Scale("viridis", 0.0, float(np.nanmax(length)) or 1.0)
    lines = [(grid_lines(plane), GRID)]
    made.append(_panel(plane, length, "deformed grid", far, lines, "colour: displacement", unit, coloured=True))
    determinant = plane.images["determinant"]
    folds = determinant <= 0
    about = f"yellow: folds, {100 * folds.mean():.3g} % of this slice"
    volume = Scale("PuOr", 0.0, 2.0)
    return [*made, _panel(plane, determinant, "det ∇ϕ", volume, (), about, folds=folds, coloured=True)]


def _panel(
    plane: Plane,
    image: Array,
    title: str,
    scale: Scale,
    lines: Lines = (),
    about: str = "",
    unit: str = "",
    folds: Array | None = None,
    coloured: bool = False,
) -> Panel:
    width, height = (n * s for n, s in zip(image.shape, plane.spacing, strict=True))
    size = 100 / max(width, height)
    width, height = width * size, height * size
    step = np.array(plane.spacing) * size
    raster = _data_url(scale.picture(image, folds))
    parts = [
        f'<svg viewBox="0 0 {width:.2f} {height:.2f}" role="img" aria-label="{escape(title)}" class="{plane.name}">',
        f'<image href="{raster}" width="{width:.2f}" height="{height:.2f}" preserveAspectRatio="none"/>',
        *(_path(some, colour, step, height) for some, colour in lines if some),
        *_letters(plane, width, height),
        "</svg>",
    ]
    return Panel(Markup("".join(parts)), title, about, scale if coloured else None, unit)


def _path(lines: Sequence[Array], colour: str, step: Array, height: float) -> str:
    """Lines in voxels as one path; a tenth of a percent of the panel is precise enough."""
    pieces = []
    for line in lines:
        points = (np.asarray(line) + 0.5) * step
        points[:, 1] = height - points[:, 1]
        steps = np.rint(points * 10).astype(int)
        keep = np.ones(len(steps), dtype=bool)
        keep[1:] = (np.diff(steps, axis=0) != 0).any(1)
        pieces.append("M" + "L".join(f"{x / 10:g} {y / 10:g}" for x, y in steps[keep]))
    return f'<path d="{"".join(pieces)}" stroke="{colour}" class="line"/>'


def _letters(plane: Plane, width: float, height: float) -> list[str]:
    """Which side of the body is where."""
    places = ((3, height / 2), (width - 3, height / 2), (width / 2, height - 3), (width / 2, 5))
    return [
        f'<text x="{x:.1f}" y="{y:.1f}">{letter}</text>'
        for letter, (x, y) in zip(plane.sides, places, strict=True)
        if letter
    ]


def _data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=False, compress_level=9)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
