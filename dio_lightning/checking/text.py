"""The report as text."""

from rich.box import ASCII, ROUNDED
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dio_lightning.checking.drawing import Scores
from dio_lightning.findings import Report
from dio_lightning.scores import look_up

SHOWN = 3
"""Files named beside one sentence; the JSON names all."""


def show(report: Report, scores: Scores, console: Console | None = None) -> None:
    """Print tables, findings and the closing count; plain lines when the output is no terminal."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=200, no_color=True)
    box = ROUNDED if console.is_terminal else ASCII
    if report.splits:
        table = Table(title=report.title, box=box)
        table.add_column("")
        for split in report.splits:
            table.add_column(split)
        for name in dict.fromkeys(name for column in report.splits.values() for name in column):
            table.add_row(escape(name), *(column.get(name, "") for column in report.splits.values()))
        _plain(console, table)
    for finding in report.findings:
        more = len(finding.files) - SHOWN
        files = ", ".join(finding.files[:SHOWN]) + (f" and {more} more" if more > 0 else "")
        _line(console, f"{finding.severity}: {files}: {finding.sentence}")
    if scores:
        table = Table(title="Scores before registration, mean ± std", box=box)
        for heading in ("split", "score", "mean ± std", "pairs", "worst", "worst pair"):
            table.add_column(heading)
        # test pairs that are the validation pairs are scored once
        alias = {"val": "val, test"} if "test" in report.splits and "test" not in report.scored else {}
        for split, names in scores.items():
            for name, values in names.items():
                mean, std, worst = (
                    f"{values[key]:.4g}" if values[key] is not None else "" for key in ("mean", "std", "worst")
                )
                unit = f" [{look_up(name).unit}]" if look_up(name).unit else ""
                label = escape(name.replace("_", " ") + unit)
                table.add_row(
                    alias.get(split, split), label, f"{mean} ± {std}", str(values["n"]), worst, str(values["pair"])
                )
        _plain(console, table)
    counts = [_count(report.count("error"), "error"), _count(report.count("warning"), "warning")]
    _line(console, ", ".join(counts))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _plain(console: Console, table: Table) -> None:
    console.print(table, highlight=False)
