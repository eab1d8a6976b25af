"""A page: sections of tables, plots, pairs and texts, and one HTML file of it."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dio_lightning.files import write_atomic
from dio_lightning.reports.gallery import Gallery
from dio_lightning.reports.pairs import PairView
from dio_lightning.scores.table import Table

HERE = Path(__file__).parent
NIIVUE = HERE / "vendor" / "niivue-0.69.0.umd.js"
"""The viewer, as its authors have published it."""
LICENCES = ("LICENSE-niivue", "THIRD_PARTY-niivue.txt")
"""Beside it: its own licence, and those of what is bundled with it."""


@dataclass(frozen=True)
class Facts:
    """Names and values, in two columns."""

    entries: Mapping[str, str]
    title: str = ""


@dataclass(frozen=True)
class Text:
    """A text as it is, such as a config; folded until it is asked for."""

    title: str
    text: str


@dataclass(frozen=True)
class Plot:
    """A picture drawn by matplotlib (`plots.svg`)."""

    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Download:
    """A text file that the page holds."""

    name: str
    text: str
    kind: str = "text/csv"

    @property
    def url(self) -> str:
        """The file as a link."""
        data = base64.b64encode(self.text.encode()).decode()
        return f"data:{self.kind};charset=utf-8;base64,{data}"


Block = Table | Facts | Text | Plot | Download | PairView | Gallery


@dataclass(frozen=True)
class Section:
    """One tab of a page."""

    title: str
    blocks: Sequence[Block]
    about: str = ""


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: what was done.
        sections: its tabs; those without blocks are left out.
        about: a sentence below the title.
        verdict: good, doubtful or failed, where there is one.
        chips: the few numbers that are looked for first, by what they are.
    """

    title: str
    sections: Sequence[Section]
    about: str = ""
    verdict: str = ""
    chips: Mapping[str, str] | None = None

    def html(self) -> str:
        """The whole page, with all that it shows in it."""
        sections = [section for section in self.sections if section.blocks]
        pairs = [block for section in sections for block in section.blocks if isinstance(block, PairView)]
        viewer = packed_viewer() if any(pair.volumes for pair in pairs) else ""
        given = {"page": self, "sections": sections, "viewer": viewer, "licences": licences() if viewer else None}
        return _environment().get_template("page.html").render(given)


def write_page(path: Path, page: Page) -> None:
    """Write a page as one file, whole or not at all."""
    write_atomic(path, page.html())


@cache
def packed_viewer() -> str:
    """NiiVue, compressed and in base64: a third of its size."""
    return base64.b64encode(gzip.compress(NIIVUE.read_bytes(), 9, mtime=0)).decode()


@cache
def licences() -> Download:
    """Of the viewer and of all that it bundles, which goes wherever a page with the viewer goes."""
    texts = [(NIIVUE.parent / name).read_text(encoding="utf-8") for name in LICENCES]
    return Download("licences of NiiVue.txt", "\n".join(texts), "text/plain")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["kind"] = lambda block: type(block).__name__
    made.globals["asset"] = lambda name: Markup((HERE / "templates" / name).read_text(encoding="utf-8"))
    return made
