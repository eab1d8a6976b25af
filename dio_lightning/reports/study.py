"""The page of a study: its tables and caption, its curves, its records as files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dio_lightning.files import write_all
from dio_lightning.reports.page import Block, Download, Facts, Page, Plot, Section
from dio_lightning.reports.plots import svg
from dio_lightning.scores.summary import versions
from dio_lightning.scores.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def study_page(name: str, markdown: str, figure: "Figure", files: Mapping[str, str]) -> Page:
    """What a study leaves to look at.

    Args:
        name: of the study.
        markdown: its tables, each with the sentences that follow it.
        figure: its curves.
        files: CSV files that can be saved, by name.
    """
    blocks: list[Block] = [Plot(svg(figure)), *tables_of(markdown)]
    saved = [Download(file, text) for file, text in files.items()]
    return Page(
        f"Study: {name}", [Section("Result", blocks), Section("Files", [*saved, Facts(versions(), "Written with")])]
    )


def write_study(name: str, paths: Sequence[Path], tables: Sequence[str], markdown: str, figure: "Figure") -> None:
    """Write the files of a study, all or none: CSV files, Markdown, the figure in two formats, a page of them."""
    page = study_page(name, markdown, figure, dict(zip([path.name for path in paths], tables, strict=False)))
    write_all(dict(zip(paths, [*tables, markdown, figure, figure, page.html()], strict=True)))


def tables_of(markdown: str) -> list[Table]:
    """The tables of a Markdown text as `scores.table.Table` writes them; what follows one is its caption."""
    tables: list[Table] = []
    for part in re.findall(r"((?:^\|.*\n?)*)((?:^(?!\|).*\n?)*)", markdown, re.MULTILINE):
        lines, caption = part[0].strip().splitlines(), " ".join(part[1].split())
        rows = [[_cell(text) for text in re.split(r"(?<!\\)\|", line.strip()[1:-1])] for line in lines]
        rows = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell.text) for cell in row)]
        if rows or caption:
            heading = [cell.text for cell in rows[0]] if rows else []
            tables.append(Table(heading, rows[1:], _plain(caption), right=True))
    return tables


def _cell(text: str) -> Cell:
    text = text.strip()
    bold = len(text) > 4 and text.startswith("**") and text.endswith("**")
    return Cell(_plain(text[2:-2] if bold else text), bold)


def _plain(text: str) -> str:
    return re.sub(r"\\([\\|*`<])", r"\1", text)
