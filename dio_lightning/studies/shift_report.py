"""What a shift of domain costs: means, drops against the reference domain, and their tables."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dio_lightning.studies.comparison_statistics import per_unit, unit
from dio_lightning.studies.loading import PairId
from dio_lightning.studies.scoring import moments
from dio_lightning.studies.shift_domains import Domain, Plan
from dio_lightning.studies.shift_refine import Refinement
from dio_lightning.studies.shift_rows import FILES as TABLES
from dio_lightning.studies.shift_rows import SCORES, Solved

FILES = (*TABLES, "shift.md", "shift.png", "shift.svg")
NOTHING = "no registration"
REFINED = " + instance optimisation"
HEADS = {"hd95": "HD95 (mm)", "folds": "Folds (%)", "sdlogj": "SD log J", "seconds": "Seconds a pair"}
DIGITS = {"dice": 3, "hd95": 2, "folds": 3, "sdlogj": 3, "seconds": 2}


@dataclass(frozen=True)
class Drop:
    """Dice minus that of the reference domain, and over how many pairs of the same people.

    Where the domains share no people, `pairs` is 0 and the value a difference of two means.
    """

    value: float
    pairs: int


@dataclass(frozen=True)
class Study:
    """All rows of a finished study; `domains` are those that were there."""

    rows: Sequence[Solved]
    plan: Plan
    domains: Sequence[str]
    missing: Sequence[Domain]
    refinement: Refinement
    rivals: tuple[str, str]

    @cached_property
    def table(self) -> dict[tuple[str, str], list[Solved]]:
        """Rows by method and domain, in the order of the methods."""
        found: dict[tuple[str, str], list[Solved]] = {}
        for row in self.rows:
            found.setdefault((row.method, row.domain), []).append(row)
        return found

    @property
    def methods(self) -> list[str]:
        """Names, as they were given, each followed by its refined row."""
        return list(dict.fromkeys(row.method for row in self.rows))

    def values(self, method: str, domain: str, score: str) -> dict[PairId, float]:
        """One score of every pair, the mean over seeds."""
        seeds: dict[PairId, list[float]] = {}
        for row in self.table[method, domain]:
            seeds.setdefault(row.pair, []).append(row.scores.get(score, math.nan))
        return {pair: statistics.fmean(values) for pair, values in seeds.items()}

    def structures(self, method: str, domain: str) -> dict[int, float]:
        """Dice of every structure, the mean over pairs and seeds."""
        found: dict[int, list[float]] = {}
        for row in self.table[method, domain]:
            for label, dice in row.labels.items():
                found.setdefault(label, []).append(dice)
        finite = {label: [v for v in values if math.isfinite(v)] for label, values in found.items()}
        return {label: statistics.fmean(values) for label, values in finite.items() if values}

    def seeds(self, method: str) -> int:
        """How many weights a method has."""
        return len({row.weights for row in self.rows if row.method == method})

    def drop(self, method: str, domain: str) -> Drop:
        """What the domain costs a method, on the people that the reference has too."""
        here, there = (self._by_people(method, name) for name in (domain, self.plan.reference))
        common = [people for people in here if people in there]
        if common:
            return Drop(statistics.fmean(here[people] - there[people] for people in common), len(common))
        return Drop(_mean(here.values()) - _mean(there.values()), 0)

    def _by_people(self, method: str, domain: str) -> dict[PairId, float]:
        groups: dict[PairId, list[float]] = {}
        for pair, value in per_unit(self.values(method, domain, "dice")).items():
            groups.setdefault(self.plan.people(pair), []).extend([value] if math.isfinite(value) else [])
        return {people: statistics.fmean(values) for people, values in groups.items() if values}


def markdown(study: Study) -> str:
    """Dice by method and domain, drops against the reference, then the other scores."""
    reference = study.plan.reference
    parts = ["### Dice", _table(study, study.domains, lambda m, d: _cell(study, m, d, "dice"))]
    shifted = [name for name in study.domains if name != reference]
    if shifted:
        verdicts = _verdicts(study, shifted)
        drops = _table(study, shifted, lambda m, d: _drop(study.drop(m, d)), verdicts)
        parts += [f"### Dice, minus that of {reference}", drops]
    for score in (name for name in SCORES[1:] if any(name in row.scores for row in study.rows)):
        parts += [f"### {HEADS[score]}", _table(study, study.domains, _cells(study, score))]
    return "\n\n".join([*parts, *_captions(study)]) + "\n"


def _cells(study: Study, score: str) -> Callable[[str, str], str]:
    """What a table of one score says; of no registration only how far the surfaces are apart."""
    return lambda m, d: "–" if m == NOTHING and score != "hd95" else _cell(study, m, d, score)


def _table(
    study: Study, domains: Sequence[str], cell: Callable[[str, str], str], last: Mapping[str, Sequence[str]] = {}
) -> str:
    lines = [f"| method | {' | '.join(map(_escape, domains))} |", f"|---|{'---:|' * len(domains)}"]
    for method in study.methods:
        lines.append(f"| {_escape(method)} | {' | '.join(cell(method, domain) for domain in domains)} |")
    lines += [f"| {_escape(name)} | {' | '.join(cells)} |" for name, cells in last.items()]
    return "\n".join(lines)


def _cell(study: Study, method: str, domain: str, score: str) -> str:
    mean, std, n = moments(study.values(method, domain, score))
    if not n:
        return "–"
    mark = "†" if any(row.resampled for row in study.table[method, domain]) else ""
    digits = DIGITS[score]
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if n > 1 else "") + mark


def _drop(drop: Drop) -> str:
    return "–" if math.isnan(drop.value) else f"{drop.value:+.3f}{'' if drop.pairs else '*'}"


def _verdicts(study: Study, shifted: Sequence[str]) -> dict[str, list[str]]:
    """For each shift whether the first rival loses less than the second, as trained and refined."""
    found = {}
    for suffix in ("", REFINED):
        ours, theirs = (name + suffix for name in study.rivals)
        if ours in study.methods and theirs in study.methods:
            drops = [(study.drop(ours, domain).value, study.drop(theirs, domain).value) for domain in shifted]
            cells = ["yes" if a > b else "no" if a < b else "as much" for a, b in drops]
            found[f"{study.rivals[0]} loses less than {study.rivals[1]}{' (both refined)' if suffix else ''}"] = cells
    return found


def _captions(study: Study) -> list[str]:
    """What was measured on what, a sentence a paragraph."""
    seeds = {name: study.seeds(name) for name in study.methods if not name.endswith(REFINED)}
    pooled = ", ".join(f"{name} {count}" for name, count in seeds.items() if count > 1)
    lines = [
        f"Trained weights as they are, no fine-tuning. Mean ± standard deviation over pairs: {_counts(study)}."
        + (f" Each pair's score is the mean over seeds ({pooled})." if pooled else "")
    ]
    shared = [name for name in study.domains if study.drop(study.methods[0], name).pairs]
    if len(shared) > 1:
        lines.append(f"Drops are those of the same people in {study.plan.reference} and in the other domain.")
    if len(shared) < len(study.domains):
        lines.append("\\* Other people than in the reference: a difference of two means.")
    if any(row.resampled for row in study.rows):
        lines.append("† Moving image resampled onto the fixed grid; methods without this mark took it as it is.")
    if any(name.endswith(REFINED) for name in study.methods):
        lines.append(
            f"Instance optimisation: {study.refinement.steps} steps of Adam (rate {study.refinement.rate:g}) from the "
            f"method's displacement, on 1 - LNCC of window {study.refinement.window} + "
            f"{study.refinement.regularity:g} diffusion, {type(study.refinement.transformation).__name__}"
            + (f", grid {study.refinement.resolution:g} times coarser" if study.refinement.resolution > 1 else "")
            + "."
        )
    places: dict[str, list[str]] = {}
    for domain in study.missing:
        places.setdefault(str(domain.place), []).append(domain.name)
    if places:
        lines.append(
            "Not there: " + "; ".join(f"{', '.join(names)} ({place})" for place, names in places.items()) + "."
        )
    return lines


def _counts(study: Study) -> str:
    """Pairs of each domain; where pairs are slices, pairs of subjects and slices."""
    told: dict[str, list[str]] = {}
    for domain in study.domains:
        pairs = study.values(study.methods[0], domain, "dice")
        units = {unit(pair) for pair in pairs}
        number = f"{len(units)}" if len(units) == len(pairs) else f"{len(units)} ({len(pairs)} slices, averaged first)"
        told.setdefault(number, []).append(domain)
    return "; ".join(f"{number} in {', '.join(names)}" for number, names in told.items())


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
