"""What a shift of domain costs: means, drops against the reference domain, their tables and a figure."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dio_lightning.domains import Domain, Plan
from dio_lightning.scores import SCORES, Score, look_up
from dio_lightning.scores.rows import PairId
from dio_lightning.scores.score import NONE
from dio_lightning.scores.store import Solved
from dio_lightning.scores.summary import finite_mean, moments, per_unit, unit
from dio_lightning.studies.rendering import table

NOTHING = "no registration"
REFINED = " + instance optimisation"
WINDOW, REGULARITY, RATE = 5, 0.25, 0.1
"""Of instance optimisation: LNCC's window in voxels, the weight of diffusion, Adam's rate in voxels."""
FEWEST = 8
"""Pairs below which a box would say nothing: it is drawn over structures."""
WIDTH = 0.8
"""Of a group of boxes; groups are 1 apart."""


@dataclass(frozen=True)
class Drop:
    """Dice minus that of the reference domain, and over how many pairs of the same people.

    Where the domains share no people, `pairs` is 0 and the value a difference of two means.
    """

    value: float
    pairs: int


@dataclass(frozen=True)
class Outcome:
    """All rows of a finished study; `missing` are the domains whose data are not there."""

    rows: Sequence[Solved]
    plan: Plan
    missing: Sequence[Domain]
    refine_steps: int
    refine_factor: int

    @cached_property
    def table(self) -> dict[tuple[str, str], list[Solved]]:
        """Rows by method and domain, in the order of the methods."""
        table: dict[tuple[str, str], list[Solved]] = {}
        for row in self.rows:
            table.setdefault((row.method, row.domain), []).append(row)
        return table

    @property
    def domains(self) -> list[str]:
        """Names of those that were there."""
        return [domain.name for domain in self.plan.domains if domain not in self.missing]

    @property
    def methods(self) -> list[str]:
        """Names, as they were given, each followed by its refined row."""
        return list(dict.fromkeys(row.method for row in self.rows))

    @property
    def scores(self) -> list[Score]:
        """Those that some row has."""
        return [score for score in SCORES if any(score.name in row.scores for row in self.rows)]

    def values(self, method: str, domain: str, score: str) -> dict[PairId, float]:
        """One score of every pair, the mean over seeds."""
        seeds: dict[PairId, list[float]] = {}
        for row in self.table[method, domain]:
            seeds.setdefault(row.pair, []).append(row.scores.get(score, math.nan))
        return {pair: statistics.fmean(values) for pair, values in seeds.items()}

    def structures(self, method: str, domain: str) -> dict[int, float]:
        """Dice of every structure, the mean over pairs and seeds."""
        labels: dict[int, list[float]] = {}
        for row in self.table[method, domain]:
            for label, dice in row.labels.items():
                labels.setdefault(label, []).append(dice)
        return {label: finite_mean(values) for label, values in labels.items()}

    def drop(self, method: str, domain: str) -> Drop:
        """What the domain costs a method, on the people that the reference has too."""
        here, reference = (self._by_people(method, name) for name in (domain, self.plan.reference))
        common = [people for people in here if people in reference]
        if common:
            return Drop(statistics.fmean(here[people] - reference[people] for people in common), len(common))
        return Drop(finite_mean(here.values()) - finite_mean(reference.values()), 0)

    def _by_people(self, method: str, domain: str) -> dict[PairId, float]:
        groups: dict[PairId, list[float]] = {}
        for pair, value in per_unit(self.values(method, domain, "dice")).items():
            groups.setdefault(self.plan.people(pair), []).append(value)
        means = {people: finite_mean(values) for people, values in groups.items()}
        return {people: mean for people, mean in means.items() if math.isfinite(mean)}


def markdown(outcome: Outcome) -> str:
    """Dice by method and domain, drops against the reference, then the other scores."""
    reference = outcome.plan.reference
    shifted = [name for name in outcome.domains if name != reference]
    parts: list[str] = []
    for score in outcome.scores:
        parts += [f"### {score.heading}", _table(outcome, outcome.domains, _cells(outcome, score))]
        if score.name == "dice" and shifted:
            drops = _table(outcome, shifted, lambda method, domain: _drop(outcome.drop(method, domain)))
            parts += [f"### Dice, minus that of {reference}", drops]
    return "\n\n".join([*parts, *_captions(outcome)]) + "\n"


def _table(outcome: Outcome, domains: Sequence[str], cell: Callable[[str, str], str]) -> str:
    return table(["method", *domains], [[m, *(cell(m, domain) for domain in domains)] for m in outcome.methods])


def _cells(outcome: Outcome, score: Score) -> Callable[[str, str], str]:
    """What a table of one score says; of no registration nothing that a displacement alone decides."""

    def cell(method: str, domain: str) -> str:
        mean, std, n = moments(outcome.values(method, domain, score.name))
        if not n or (method == NOTHING and not score.needs):
            return NONE
        mark = "†" if any(row.resampled for row in outcome.table[method, domain]) else ""
        return score.text(mean) + (f" ± {score.text(std, mean)}" if n > 1 else "") + mark

    return cell


def _drop(drop: Drop) -> str:
    return NONE if math.isnan(drop.value) else f"{drop.value:+.{look_up('dice').digits}f}{'' if drop.pairs else '‡'}"


def _captions(outcome: Outcome) -> list[str]:
    """What was measured on what, a sentence a paragraph."""
    plain = [name for name in outcome.methods if not name.endswith(REFINED)]
    seeds = {name: len({row.weights for row in outcome.rows if row.method == name}) for name in plain}
    pooled = ", ".join(f"{name} {count}" for name, count in seeds.items() if count > 1)
    lines = [
        f"Trained weights as they are, no fine-tuning. Mean ± standard deviation over pairs: {_counts(outcome)}."
        + (f" Each pair's score is the mean over seeds ({pooled})." if pooled else "")
    ]
    shared = [name for name in outcome.domains if outcome.drop(outcome.methods[0], name).pairs]
    if len(shared) > 1:
        lines.append(f"Drops are those of the same people in {outcome.plan.reference} and in the other domain.")
    if len(shared) < len(outcome.domains):
        lines.append("‡ Other people than in the reference: a difference of two means.")
    if any(row.resampled for row in outcome.rows):
        lines.append("† Moving image resampled onto the fixed grid; methods without this mark took it as it is.")
    if len(plain) < len(outcome.methods):
        coarser = f", grid {outcome.refine_factor} times coarser" if outcome.refine_factor > 1 else ""
        lines.append(
            f"Instance optimisation: {outcome.refine_steps} steps of Adam (rate {RATE:g}) from the method's "
            f"displacement, on 1 - LNCC of window {WINDOW} + {REGULARITY:g} diffusion, Diffeomorphism{coarser}."
        )
    places: dict[str, list[str]] = {}
    for domain in outcome.missing:
        places.setdefault(str(domain.place), []).append(domain.name)
    missing = "; ".join(f"{', '.join(names)} ({place})" for place, names in places.items())
    return [*lines, f"Not there: {missing}."] if missing else lines


def _counts(outcome: Outcome) -> str:
    """Pairs of each domain; where pairs are slices, pairs of subjects and slices."""
    counts: dict[str, list[str]] = {}
    for domain in outcome.domains:
        pairs = outcome.values(outcome.methods[0], domain, "dice")
        units = {unit(pair) for pair in pairs}
        number = f"{len(units)}" if len(units) == len(pairs) else f"{len(units)} ({len(pairs)} slices, averaged first)"
        counts.setdefault(number, []).append(domain)
    return "; ".join(f"{number} in {', '.join(names)}" for number, names in counts.items())


def figure(outcome: Outcome) -> Figure:
    """Dice as in Figure 5 of DIO: a group of boxes a domain, a box a method; as trained above, refined below."""
    plain = [name for name in outcome.methods if not name.endswith(REFINED)]
    panels = {"as trained": plain}
    if len(plain) < len(outcome.methods):
        refined = [name + REFINED if name + REFINED in outcome.methods else name for name in plain]
        panels["with instance optimisation"] = refined
    over = "pairs" if by_pairs(outcome) else "structures (mean over pairs)"
    width = 2 + 0.2 * len(plain) * len(outcome.domains)
    picture = Figure(figsize=(max(5.0, width), 3.6 * len(panels)), layout="constrained")
    axes = picture.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        _group(axis, outcome, names)
        axis.set_ylabel(f"Dice, boxes over {over}", fontsize="small")
        axis.set_title(title, fontsize="medium", loc="left")
    handles = [Patch(facecolor=f"C{i % 10}", alpha=0.6, label=name) for i, name in enumerate(plain)]
    picture.legend(handles=handles, loc="outside lower center", ncols=min(len(plain), 5), fontsize="small")
    return picture


def by_pairs(outcome: Outcome) -> bool:
    """Whether every domain has enough pairs (of subjects) for boxes over them."""
    first = outcome.methods[0]
    return all(len(per_unit(outcome.values(first, domain, "dice"))) >= FEWEST for domain in outcome.domains)


def boxes(outcome: Outcome, method: str, domain: str) -> list[float]:
    """What the box of a method and a domain is drawn over."""
    if by_pairs(outcome):
        values = list(per_unit(outcome.values(method, domain, "dice")).values())
    else:
        values = list(outcome.structures(method, domain).values())
    return [value for value in values if math.isfinite(value)]


def _group(axis: Axes, outcome: Outcome, methods: list[str]) -> None:
    """All boxes of one panel."""
    each = WIDTH / len(methods)
    for i, method in enumerate(methods):
        places = [group + (i + 0.5) * each - WIDTH / 2 for group in range(len(outcome.domains))]
        values = [boxes(outcome, method, domain) for domain in outcome.domains]
        look = {"medianprops": {"color": "black"}, "flierprops": {"marker": ".", "markersize": 3}}
        drawn = axis.boxplot(
            values, positions=places, widths=0.85 * each, patch_artist=True, manage_ticks=False, **look
        )
        for box in drawn["boxes"]:
            box.set(facecolor=f"C{i % 10}", alpha=0.6)
    axis.set_xticks(range(len(outcome.domains)), outcome.domains)
    axis.grid(axis="y", alpha=0.3)
