"""What one case is: its numbers, for tables and to compare it with others."""

import hashlib
from dataclasses import dataclass

import numpy as np

from data_modules.checking.volumes import CaseVolumes
from data_modules.layout import Case
from dio_lightning.headers import Header


@dataclass(frozen=True, eq=False)
class Facts:
    """Numbers of one case; None for what it has not.

    Attributes:
        header: of the image.
        range: least value, 0.5 %, 99.5 % and largest value of the image.
        labels: those above 0 in its file.
        points: number of landmarks.
        coverage: share of voxels inside the mask.
        outside: share of the image's signal (value above its minimum) outside of the mask.
        digest: of the image's values.
    """

    case: Case
    header: Header
    range: tuple[float, float, float, float]
    digest: str
    labels: frozenset[int] | None = None
    points: int | None = None
    coverage: float | None = None
    outside: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents in voxels."""
        return self.header.shape

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres per voxel along the array axes, to four digits."""
        return tuple(round(float(edge), 4) for edge in self.header.spacing)

    def as_json(self) -> dict[str, object]:
        """JSON values."""
        numbers = {k: getattr(self, k) for k in ("spacing", "range", "coverage", "outside", "points")}
        labels = None if self.labels is None else sorted(self.labels)
        return {"id": self.case.id, "shape": self.shape, "orientation": self.header.axes, "labels": labels, **numbers}


def facts_of(volumes: CaseVolumes) -> Facts:
    """The numbers of a case that was read."""
    headers, image, inside = volumes.headers, volumes.image, volumes.inside
    coverage = outside = None
    if inside is not None:
        coverage = float(inside.mean())
        signal = image.astype(np.float64) - image.min()
        outside = float(signal[~inside].sum() / signal.sum())
    return Facts(
        headers.case,
        headers.image,
        volumes.range,
        hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest(),
        volumes.stored_labels,
        None if headers.points is None else len(headers.points),
        coverage,
        outside,
    )
