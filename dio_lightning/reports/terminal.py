"""Tables of a study or a comparison as a person reads them: set to the width of a terminal, Markdown anywhere else."""

from dataclasses import replace

from rich.console import Console

from dio_lightning.reports.study import tables_of


def show(markdown: str, console: Console | None = None) -> None:
    """Print tables with their captions.

    Args:
        markdown: as it is written to a file; printed so, too, where the output is no terminal.
        console: where to; None: stdout.
    """
    console = console or Console()
    if not console.is_terminal:
        console.file.write(markdown.rstrip("\n") + "\n")
        return
    for table in tables_of(markdown):
        if table.heading:
            console.print(replace(table, caption="").rich())
        if table.caption:
            console.print(table.caption, markup=False, highlight=False)
