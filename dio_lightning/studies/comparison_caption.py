"""What a reader must know to trust a table: data, unit, seeds, test, correction, and what was left out."""

from dio_lightning.studies.comparison_statistics import subjects
from dio_lightning.studies.comparison_study import COSTS, TESTED, Study


def caption(study: Study) -> str:
    """Sentences on one line."""
    return " ".join([*_numbers(study), *_tests(study), *_left_out(study)])


def _numbers(study: Study) -> list[str]:
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


def _tests(study: Study) -> list[str]:
    tested = [entry.comparison for entry in study.entries.values() if entry.comparison and entry.comparison.units]
    if not tested:
        return ["No significance was tested."]
    n = max(comparison.units for comparison in tested)
    unit = "pairs of subjects" if study.pairs != study.units else "pairs"
    lines = [
        f"⁺ better and ⁻ worse than {study.reference}: two-sided Wilcoxon signed-rank test over {unit} (n = {n}), zero "
        f"differences dropped, p < {study.alpha:g} after Holm's correction over the methods of a score."
    ]
    if any(score in COSTS for score in study.scores):
        lines.append("Times, memory and solver reports are not tested.")
    unknown = [score for score in study.scores if score not in (*COSTS, *TESTED)]
    if unknown:
        lines.append(f"Not tested, since neither more nor less is known to be better: {', '.join(unknown)}.")
    family = max(sum(_compared(study, score)) for score in study.scores)
    if family * 2.0 ** (1 - n) >= study.alpha:
        lines.append(f"The smallest p that n = {n} can give is {2.0 ** (1 - n):.2g} before correction.")
    people = subjects(study.units)
    if people is not None:
        shared = f"The {len(study.units)} pairs share {people} subjects"
        lines.append(f"{shared}, so they are not independent and p-values tend to come out too small.")
    return lines


def _compared(study: Study, score: str) -> list[bool]:
    found = (study.entries[method.name, score].comparison for method in study.methods)
    return [comparison is not None and comparison.units > 0 for comparison in found]


def _left_out(study: Study) -> list[str]:
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
