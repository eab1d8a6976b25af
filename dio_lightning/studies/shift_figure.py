"""Dice by domain and method as boxes, as in Figure 5 of DIO."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dio_lightning.studies.comparison_statistics import per_unit
from dio_lightning.studies.shift_report import REFINED, Study

FEWEST = 8
"""Pairs below which a box would say nothing: it is drawn over structures."""
WIDTH = 0.8
"""Of a group of boxes; groups are 1 apart."""


def figure(study: Study) -> Figure:
    """A group of boxes a domain, a box a method; methods as trained above, refined ones below."""
    plain = [name for name in study.methods if not name.endswith(REFINED)]
    panels = {"as trained": plain}
    refined = {name: name + REFINED if name + REFINED in study.methods else name for name in plain}
    if any(name.endswith(REFINED) for name in refined.values()):
        panels["with instance optimisation"] = list(refined.values())
    over = "pairs" if by_pairs(study) else "structures (mean over pairs)"
    width = 2 + 0.2 * len(plain) * len(study.domains)
    picture = Figure(figsize=(max(5.0, width), 3.6 * len(panels)), layout="constrained")
    axes = picture.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        _group(axis, study, names)
        axis.set_ylabel(f"Dice, boxes over {over}", fontsize="small")
        axis.set_title(title, fontsize="medium", loc="left")
    handles = [Patch(facecolor=f"C{i % 10}", alpha=0.6, label=name) for i, name in enumerate(plain)]
    picture.legend(handles=handles, loc="outside lower center", ncols=min(len(plain), 5), fontsize="small")
    return picture


def by_pairs(study: Study) -> bool:
    """Whether every domain has enough pairs (of subjects) for boxes over them."""
    first = study.methods[0]
    return all(len(per_unit(study.values(first, domain, "dice"))) >= FEWEST for domain in study.domains)


def boxes(study: Study, method: str, domain: str) -> list[float]:
    """What the box of a method and a domain is drawn over."""
    if by_pairs(study):
        values = list(per_unit(study.values(method, domain, "dice")).values())
    else:
        values = list(study.structures(method, domain).values())
    return [value for value in values if math.isfinite(value)]


def _group(axis: Axes, study: Study, methods: list[str]) -> None:
    """All boxes of one panel."""
    each = WIDTH / len(methods)
    for i, method in enumerate(methods):
        places = [group + (i + 0.5) * each - WIDTH / 2 for group in range(len(study.domains))]
        values = [boxes(study, method, domain) for domain in study.domains]
        drawn = axis.boxplot(
            values,
            positions=places,
            widths=0.85 * each,
            patch_artist=True,
            medianprops={"color": "black"},
            flierprops={"marker": ".", "markersize": 3},
            manage_ticks=False,
        )
        for box in drawn["boxes"]:
            box.set(facecolor=f"C{i % 10}", alpha=0.6)
    axis.set_xticks(range(len(study.domains)), study.domains)
    axis.grid(axis="y", alpha=0.3)
