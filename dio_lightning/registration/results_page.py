"""report.html of `register --csv`: a row a pair with thumbnails, numbers and a link to the pair's own page."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from dio_lightning.reports.gallery import Entry, Gallery, thumbnails
from dio_lightning.reports.page import Block, Download, Facts, Page, Plot, Section
from dio_lightning.reports.plots import panels_svg
from dio_lightning.scores.summary import versions

VERDICTS = ("failed", "doubtful", "good")
"""In the order in which they are looked at."""
NUMBERS = {
    "information": ("mutual information", "{:.3f}"),
    "overlap": ("overlap", "{:.3f}"),
    "folds": ("folds (%)", "{:.4f}"),
    "inverse_mm": ("inverse (mm)", "{:.3f}"),
    "dice": ("mean Dice", "{:.3f}"),
    "tre": ("TRE (mm)", "{:.2f}"),
    "seconds": ("seconds", "{:.1f}"),
}
"""Columns of results.csv that are numbers, their headings and formats."""
PLOTTED = ("information", "overlap", "folds", "dice", "tre")
"""Those that have a plot over the pairs."""
LEAST = 2
"""Pairs from which on there is a plot over them."""
Row = Mapping[str, object]


def page_of_results(rows: Sequence[Row], pages: Mapping[str, Path], table: Path, text: str, command: str) -> Page:
    """The page of a table of pairs.

    Args:
        rows: of the table, a pair each.
        pages: every pair's own page, by the pair's name; of a pair that failed there may be none.
        table: results.csv, beside which the page lies.
        text: what it says.
        command: what was run.
    """
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in reversed(VERDICTS)}
    columns = [name for name in NUMBERS if any(_number(row, name) is not None for row in rows)]
    looked_at = sorted(rows, key=lambda row: VERDICTS.index(str(row["verdict"])))
    entries = [_entry(row, pages[str(row["pair"])], table.parent, columns) for row in looked_at]
    gallery = Gallery([NUMBERS[name][0] for name in columns], entries)
    many = f"{len(rows)} pair{'s' if len(rows) != 1 else ''}"
    return Page(
        f"{many} registered",
        [
            Section("Pairs", [gallery], "Failed ones first, then doubtful ones. Outlines: fixed blue, moving orange."),
            Section("Numbers", _plots(rows, columns)),
            Section("Run", [Facts({"command": command, **versions()}), Download(table.name, text)]),
        ],
        "The pages of the pairs lie beside this one; thumbnails are from them.",
        chips={verdict: str(count) for verdict, count in counts.items()},
    )


def _entry(row: Row, page: Path, folder: Path, columns: Sequence[str]) -> Entry:
    """One pair; without a page of its own it has neither a link nor pictures."""
    linked = page.is_file() and row["verdict"] in VERDICTS and "information" in row
    link = quote(os.path.relpath(page, folder).replace(os.sep, "/")) if linked else ""
    pictures = thumbnails(page.read_text(encoding="utf-8")) if linked else {}
    numbers = [_said(row, name) for name in columns]
    return Entry(str(row["pair"]), link, str(row["verdict"]), str(row["sentence"]), pictures, numbers)


def _said(row: Row, name: str) -> str:
    """A number as text, with that of the start where there is one."""
    value, before = _number(row, name), _number(row, "start") if name == "information" else None
    text = NUMBERS[name][1]
    if value is None:
        return "–"
    return text.format(value) if before is None else f"{text.format(before)} → {text.format(value)}"


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _plots(rows: Sequence[Row], columns: Sequence[str]) -> list[Block]:
    """A box, or points, of every number over the pairs; mutual information beside that of the start."""
    plots: dict[str, dict[str, list[float]]] = {}
    for name in (name for name in columns if name in PLOTTED):
        values = {"registered": [x for row in rows if (x := _number(row, name)) is not None]}
        if name == "information":
            values = {"as they lay": [x for row in rows if (x := _number(row, "start")) is not None], **values}
        plots[NUMBERS[name][0]] = values
    if len(rows) < LEAST or not plots:
        return []
    return [
        Plot(panels_svg(plots), f"Over the {len(rows)} pairs: median, quartiles, and the rest; few pairs as points.")
    ]
