"""A table of text in Markdown, LaTeX or on the terminal: the same cells and caption, escaped for each."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import table as terminal
from rich.markup import escape

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$",
    "α": r"$\alpha$",
    "⁺": "$^{+}$",
    "⁻": "$^{-}$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "–": "--",
    "×": r"$\times$",
}


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and whether it is set in bold."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Columns by their heading, rows of as many cells, and what a reader must know of them.

    The first column is one of names and stands on the left; with `right` the others stand on the right, else where the
    format puts them.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    right: bool = False

    def markdown(self) -> str:
        """The table and, below it, its caption."""
        body = [_line(f"**{_escaped(c.text)}**" if c.bold else _escaped(c.text) for c in row) for row in self.rows]
        rule = f"|---|{('---:|' if self.right else '---|') * (len(self.heading) - 1)}\n"
        caption = f"\n{_escaped(self.caption)}\n" if self.caption else ""
        return _line(map(_escaped, self.heading)) + rule + "".join(body) + caption

    def latex(self, label: str) -> str:
        """A table environment for booktabs."""

        def line(row: Sequence[Cell]) -> str:
            cells = (rf"\textbf{{{_latex(c.text)}}}" if c.bold else _latex(c.text) for c in row)
            return rf"{' & '.join(cells)} \\"

        return "\n".join(
            [
                r"% needs \usepackage{booktabs}",
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(self.caption)}}}",
                rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', label)}}}",
                rf"\begin{{tabular}}{{l{('r' if self.right else 'c') * (len(self.heading) - 1)}}}",
                r"\toprule",
                line([*map(Cell, self.heading)]),
                r"\midrule",
                *map(line, self.rows),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def rich(self) -> terminal.Table:
        """For the terminal, the caption above, all columns but the first on the right; what is too wide is folded."""
        result = terminal.Table(title=escape(self.caption))
        for place, heading in enumerate(self.heading):
            result.add_column(escape(heading), justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            result.add_row(*(escape(cell.text) for cell in row))
        return result


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*`]|<(?=[A-Za-z/!?]))", r"\\\1", text)


def _latex(text: str) -> str:
    return text.translate(str.maketrans(LATEX))
