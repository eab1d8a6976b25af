"""One table out of finished test runs, with paired significance, and what a reader must know to trust it."""

from collections.abc import Sequence
from pathlib import Path

from dio_lightning.files import expect_free
from dio_lightning.scores import Score
from dio_lightning.scores.comparing import Comparisons, Entry, compare_methods, p_values_csv, table_csv
from dio_lightning.scores.runs import read_methods
from dio_lightning.scores.score import NONE
from dio_lightning.scores.statistics import subjects
from dio_lightning.scores.table import Cell, Table

MARKS = {"better": "⁺", "worse": "⁻", "": ""}


def compare(
    runs: Sequence[str],
    out: Path,
    reference: str | None = None,
    metrics: Sequence[str] | None = None,
    alpha: float = 0.05,
    overwrite: bool = False,
) -> str:
    """Write OUT.md, OUT.tex, OUT.csv, OUT_pvalues.csv and OUT.html, all or none; returns the Markdown.

    Args:
        runs: folders that `dio-lightning test` wrote, as FOLDER or NAME=FOLDER; one NAME several times: its seeds.
        out: the Markdown file; the others lie beside it.
        reference: the method that the others are tested against; by default the last.
        metrics: columns, by their name in metrics.csv.
        alpha: level of significance.
        overwrite: replace files that are there.

    Raises:
        FileNotFoundError: a folder without metrics.csv.
        FileExistsError: an output is there.
        ValueError: runs that cannot be compared, or an option that cannot be.
    """
    if out.suffix != ".md":
        raise ValueError(f"{out}: expected a file ending in .md")
    paths = [out, out.with_suffix(".tex"), out.with_suffix(".csv"), out.with_name(f"{out.stem}_pvalues.csv")]
    expect_free([*paths, out.with_suffix(".html")], overwrite)
    result = compare_methods(read_methods(runs), metrics, reference, alpha)
    shown = table(result)
    # the page takes seconds to import: mistakes in the options come before it
    from dio_lightning.reports.comparison import write_comparison

    contents = [shown.markdown(), shown.latex(out.stem), table_csv(result), p_values_csv(result)]
    write_comparison(dict(zip(paths, contents, strict=True)), out.with_suffix(".html"), result, shown)
    return contents[0]


def table(study: Comparisons) -> Table:
    """Rows of methods; a column of deviations over seeds behind every tested score that has one."""
    seeded = study.most_seeds > 1
    heading = ["method", *(x for s in study.scores for x in [s.heading] + ["seeds ±"] * (seeded and s.tested))]
    rows: list[list[Cell]] = []
    for method in study.methods:
        row = [Cell(method.name)]
        for score in study.scores:
            entry = study.entries[method.name, score.name]
            best = score.text(study.best(score)) == score.text(entry.mean)
            row.append(Cell(_text(score, entry, len(study.units)), best and entry.n > 0 and len(study.methods) > 1))
            if seeded and score.tested:
                row.append(Cell(score.text(entry.std_seeds)))
        rows.append(row)
    return Table(heading, rows, caption(study))


def _text(score: Score, entry: Entry, units: int) -> str:
    if not entry.n:
        return NONE
    text = score.text(entry.mean)
    if score.tested and (entry.mean or entry.std):
        text += f" ± {score.text(entry.std, entry.mean)}"
    partly = f" (n={entry.n})" if entry.n != units else ""
    return f"{text}{MARKS[entry.verdict]}{partly}"


def caption(study: Comparisons) -> str:
    """Sentences on one line."""
    return " ".join([*_numbers(study), *_tests(study), *_left_out(study)])


def _numbers(study: Comparisons) -> list[str]:
    data = ", ".join(dict.fromkeys(run.data for method in study.methods for run in method.runs if run.data))
    lines = [f"Data: {data}."] if data else []
    changed = {m.name: run.method for m in study.methods for run in m.runs if run.method.endswith(")")}
    lines += [f"{name} is {method}." for name, method in changed.items() if name != method]
    pairs, units = len(study.pairs), len(study.units)
    over = f"{units} pair{'s' if units != 1 else ''}"
    if study.pairs != study.units:
        over = f"{units} pair{'s' if units != 1 else ''} of subjects, the {pairs} slices averaged within each first"
    best = "; bold: best mean" if len(study.methods) > 1 else ""
    none = "; –: no number" if any(entry.n == 0 for entry in study.entries.values()) else ""
    lines.append(f"Mean ± standard deviation over {over}{best}{none}.")
    if study.most_seeds == 1:
        return [*lines, "One seed of each method."]
    seeds = {len(method.runs) for method in study.methods}
    counts = ", ".join(f"{method.name} {len(method.runs)}" for method in study.methods)
    number = f"{study.most_seeds} of each method" if len(seeds) == 1 else counts
    seeded = "each pair's score is their mean, and “seeds ±” the sample standard deviation over seeds of the mean"
    return [*lines, f"Seeds: {number}; {seeded}."]


def _tests(study: Comparisons) -> list[str]:
    tested = [entry.comparison for entry in study.entries.values() if entry.comparison and entry.comparison.units]
    if not tested:
        return ["No significance was tested."]
    n = max(comparison.units for comparison in tested)
    unit = "pairs of subjects" if study.pairs != study.units else "pairs"
    lines = [
        f"⁺ better and ⁻ worse than {study.reference}: two-sided Wilcoxon signed-rank test over {unit} (n = {n}), zero "
        f"differences dropped, p < {study.alpha:g} after Holm's correction over the methods of a score."
    ]
    if any(score.kind != "pair" for score in study.scores):
        lines.append("Times, memory and solver reports are not tested.")
    unknown = [score.name for score in study.scores if score.kind == "pair" and not score.tested]
    if unknown:
        lines.append(f"Not tested, since neither more nor less is known to be better: {', '.join(unknown)}.")
    family = max(sum(_compared(study, score.name)) for score in study.scores)
    if family * 2.0 ** (1 - n) >= study.alpha:
        lines.append(f"The smallest p that n = {n} can give is {2.0 ** (1 - n):.2g} before correction.")
    people = subjects(study.units)
    if people is not None:
        shared = f"The {len(study.units)} pairs share {people} subjects"
        lines.append(f"{shared}, so they are not independent and p-values tend to come out too small.")
    return lines


def _compared(study: Comparisons, score: str) -> list[bool]:
    tests = (study.entries[method.name, score].comparison for method in study.methods)
    return [comparison is not None and comparison.units > 0 for comparison in tests]


def _left_out(study: Comparisons) -> list[str]:
    """Pairs without a number, one sentence for each comparison that they are missing from."""
    lines: list[str] = []
    unit = "slices" if study.pairs != study.units else "pairs"
    for (name, score), entry in study.entries.items():
        comparison = entry.comparison
        if comparison and comparison.dropped and comparison.units:
            lines.append(
                f"{name} is compared on {score} without {comparison.dropped} of {len(study.pairs)} {unit} that have no "
                "number in one of the two."
            )
    return lines
