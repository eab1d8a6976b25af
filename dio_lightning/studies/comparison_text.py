"""A comparison as Markdown, LaTeX and CSV: the same cells and the same caption, each escaped in its own way."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dio_lightning.studies.comparison_caption import caption
from dio_lightning.studies.comparison_study import TESTED, Entry, Study, matrix

HEADINGS = {
    "dice": "Dice",
    "hd95": "HD95 (mm)",
    "hd": "HD (mm)",
    "hd_missed": "structures lost",
    "mask_dice": "mask Dice",
    "tre": "TRE (mm)",
    "folds": "folds (%)",
    "sdlogj": "SD log J (L2R)",
    "std_logj": "SD log J",
    "seconds": "s a pair",
    "peak_mb": "memory (MiB)",
    "steps": "steps",
    "converged": "converged",
    "residual": "residual",
}
DECIMALS = {"dice": 3, "mask_dice": 3, "sdlogj": 3, "std_logj": 3, "peak_mb": 0, "steps": 0}
MARKS = {"better": "⁺", "worse": "⁻", "": ""}
NONE = "–"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{
        "±": r"$\pm$",
        "α": r"$\alpha$",
        "⁺": "$^{+}$",
        "⁻": "$^{-}$",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
        "–": "--",
        "×": r"$\times$",
    },
}


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and whether it is set in bold."""

    text: str
    bold: bool = False


def markdown(study: Study) -> str:
    """The table and, below it, its caption."""

    def escape(text: str) -> str:
        return re.sub(r"([\\|*`]|<(?=[A-Za-z/!?]))", r"\\\1", text)

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    heading, *rows = _cells(study)
    body = [line(f"**{escape(c.text)}**" if c.bold else escape(c.text) for c in row) for row in rows]
    rule = f"|{'---|' * len(heading)}\n"
    return line(escape(c.text) for c in heading) + rule + "".join(body) + f"\n{escape(caption(study))}\n"


def latex(study: Study, label: str) -> str:
    """A table environment for booktabs."""

    def line(row: Sequence[Cell]) -> str:
        cells = (rf"\textbf{{{_latex(c.text)}}}" if c.bold else _latex(c.text) for c in row)
        return rf"{' & '.join(cells)} \\"

    heading, *rows = _cells(study)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(caption(study))}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', label)}}}",
            rf"\begin{{tabular}}{{l{'c' * (len(heading) - 1)}}}",
            r"\toprule",
            line(heading),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def table_csv(study: Study) -> str:
    """A row per method and score: plain numbers, empty where there is none."""
    columns = ("method", "seeds", "score", "mean", "std", "n", "std_seeds", "reference")
    columns += ("difference", "n_compared", "zeros", "dropped", "p", "p_holm", "verdict")
    rows: list[Sequence[object]] = [columns]
    for method in study.methods:
        for score in study.scores:
            e = study.entries[method.name, score]
            row = [method.name, len(method.runs), score, e.mean, e.std, e.n, e.std_seeds]
            c = e.comparison
            tests = [study.reference, c.difference, c.units, c.zeros, c.dropped, c.p, e.p_holm, e.verdict] if c else []
            rows.append(row + (tests or [""] * 8))
    return _csv(rows)


def p_values_csv(study: Study) -> str:
    """Matrices over all methods, one below the other: p, p by Holm over all pairs of methods, units compared."""
    names = [method.name for method in study.methods]
    score = next((name for name in ("dice", *study.scores) if name in TESTED and name in study.available), "dice")
    found = matrix(study.methods, score)
    rows: list[Sequence[object]] = [("score", "quantity", "method", *names)]
    blocks = {
        "p": {key: comparison.p for key, (comparison, _) in found.items()},
        "p_holm": {key: p for key, (_, p) in found.items()},
        "n": {key: comparison.units for key, (comparison, _) in found.items()},
    }
    for quantity, block in blocks.items():
        rows += [(score, quantity, name, *(block.get((name, other), "") for other in names)) for name in names]
    return _csv(rows)


def _cells(study: Study) -> list[list[Cell]]:
    """Heading and rows; a column of deviations over seeds behind every tested score that has one."""
    seeded = study.most_seeds > 1
    heading = [Cell("method")]
    for score in study.scores:
        heading += [Cell(HEADINGS.get(score, score.replace("_", " ")))] + [Cell("seeds ±")] * (
            seeded and score in TESTED
        )
    rows = [heading]
    for method in study.methods:
        row = [Cell(method.name)]
        for score in study.scores:
            entry = study.entries[method.name, score]
            text = _text(score, entry, len(study.units))
            best = _number(score, study.best(score)) == _number(score, entry.mean)
            row.append(Cell(text, best and entry.n > 0 and len(study.methods) > 1))
            if seeded and score in TESTED:
                row.append(Cell(_number(score, entry.std_seeds)))
        rows.append(row)
    return rows


def _text(score: str, entry: Entry, units: int) -> str:
    if not entry.n:
        return NONE
    text = _number(score, entry.mean)
    if score in TESTED and (entry.mean or entry.std):
        text += f" ± {_number(score, entry.std, entry.mean)}"
    partly = f" (n={entry.n})" if entry.n != units else ""
    return f"{text}{MARKS[entry.verdict]}{partly}"


def _number(score: str, value: float, scale: float | None = None) -> str:
    """As in experiments/README.md; folds below 1 % have four decimals, and their deviation as many as its mean."""
    if math.isnan(value):
        return NONE
    if score == "folds":
        return f"{value:.{2 if abs(value if scale is None else scale) >= 1 else 4}f}"
    if score == "seconds":
        return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    return f"{value:.{DECIMALS.get(score, 2)}f}"


def _latex(text: str) -> str:
    return text.translate(str.maketrans(LATEX))


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    plain = [["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows]
    csv.writer(text, lineterminator="\n").writerows(plain)
    return text.getvalue()
