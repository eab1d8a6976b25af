"""A row a pair, with thumbnails that are taken from the pair's own page."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

SIZE = 112
"""Pixels of a thumbnail's longer side at most."""
PANEL = r'<svg [^>]*aria-label="(?:labels|edges) {}" [^>]*>.*?</svg>'
RASTER = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


@dataclass(frozen=True)
class Entry:
    """One pair of a gallery.

    Attributes:
        name: of the pair.
        link: to its own page, as a relative URL; empty where there is none.
        verdict: good, doubtful or failed.
        sentence: why.
        pictures: thumbnails by "before" and "after".
        numbers: as text, in the order of the gallery's headings.
    """

    name: str
    link: str
    verdict: str
    sentence: str
    pictures: Mapping[str, Markup]
    numbers: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Pairs, a row each, and what their numbers are called."""

    heading: Sequence[str]
    entries: Sequence[Entry]


def thumbnails(page: str) -> dict[str, Markup]:
    """The outlines before and after of the first slice of a pair's page, small; what the page lacks is left out."""
    made = {}
    for when in ("before", "after"):
        panel = re.search(PANEL.format(when), page, re.DOTALL)
        if panel is not None:
            made[when] = Markup(RASTER.sub(_smaller, panel[0], count=1))
    return made


def _smaller(raster: re.Match[str]) -> str:
    """A raster of fewer pixels; one that is small enough stays as it is."""
    picture = Image.open(io.BytesIO(base64.b64decode(raster[1])))
    if max(picture.size) <= SIZE:
        return raster[0]
    grey, file = picture.convert("L"), io.BytesIO()
    grey.thumbnail((SIZE, SIZE))
    grey.save(file, "PNG", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
