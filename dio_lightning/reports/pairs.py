"""One registered pair on a page: numbers, panels of its slices, curves of its solve, volumes to look through."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from markupsafe import Markup

from dio_lightning.pictures.planes import Upright
from dio_lightning.reports.curves import Curves
from dio_lightning.reports.panels import Panel, panels
from dio_lightning.reports.plots import curves_svg
from dio_lightning.reports.volumes import volumes

NOTHING = Markup("")
BEST_FIRST = (1, 2, 0)
"""Slices in the order in which they are offered: coronal, axial, sagittal."""


@dataclass(frozen=True)
class PairView:
    """What a page shows of a pair.

    Attributes:
        title: which pair.
        rank: why this one, such as "worst"; empty where there is no other.
        numbers: scores, before and after, as text.
        slices: panels by the name of the slice.
        curves: residual and energy over the steps; empty where nothing was recorded.
        volumes: base64 of .nii.gz files by what they hold; empty without an interactive view.
    """

    title: str
    rank: str = ""
    numbers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    slices: Mapping[str, list[Panel]] = field(default_factory=dict)
    curves: Markup = NOTHING
    volumes: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def json(self) -> Markup:
        """The volumes as a script reads them: base64 has no sign that HTML would mistake."""
        return Markup(json.dumps(dict(self.volumes)))


def pair_view(
    pair: Upright,
    title: str,
    rank: str = "",
    numbers: Mapping[str, tuple[str, str]] | None = None,
    curves: Curves | None = None,
    interactive: bool = True,
) -> PairView:
    """The view of a pair.

    Args:
        pair: images, labels and deformation.
        title: which pair.
        rank: why this one.
        numbers: scores before and after.
        curves: of its solve.
        interactive: whether volumes go with it, about 1 MB at 2 mm.
    """
    axes = BEST_FIRST if len(pair.deformation) == 3 else (0,)
    planes = [pair.plane(axis) for axis in axes]
    slices = {plane.name or "image": panels(plane) for plane in planes}
    drawn = NOTHING if curves is None or not curves.residual else curves_svg(curves)
    return PairView(title, rank, numbers or {}, slices, drawn, volumes(pair) if interactive else {})
