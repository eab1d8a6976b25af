"""Which files a registration leaves, and what they are called."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from dio_lightning.headers import stem

Other = Literal["learn2reg", "fsl"]
"""Formats in which the displacement is written on request."""
OTHERS: tuple[Other, ...] = get_args(Other)
FILES = {
    "warped": "warped.nii.gz",
    "transform": "transform.h5",
    "inverse": "inverse.h5",
    "affine": "affine.tfm",
    "displacement": "displacement.nii.gz",
    "picture": "picture.png",
    "page": "report.html",
    "report": "report.json",
}
"""What is written, and its name in a folder; the displacement only where something was deformed."""


@dataclass(frozen=True)
class Outputs:
    """Where everything goes.

    Attributes:
        paths: by what they are, the keys of `FILES` and of `OTHERS`, as far as they are wanted.
        beside: texts of files that belong to the others, such as the sidecars of BIDS.
        shared: texts of files that several registrations have in common: written where they are not there yet.
    """

    paths: Mapping[str, Path]
    beside: Mapping[Path, str] = field(default_factory=dict)
    shared: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def in_folder(cls, folder: Path, also: Sequence[Other] = ()) -> "Outputs":
        """Plain names in a folder of their own."""
        names = FILES | {other: f"displacement_{other}.nii.gz" for other in also}
        return cls({what: folder / name for what, name in names.items()})

    @property
    def report(self) -> Path:
        """Its presence says that the others are there."""
        return self.paths["report"]

    @property
    def all(self) -> list[Path]:
        """Every file that is this registration's own."""
        return [*self.paths.values(), *self.beside]

    @property
    def earlier(self) -> list[Path]:
        """What the report that lies here says it was written with, as far as it is there: plain names in its folder."""
        try:
            files = json.loads(self.report.read_text(encoding="utf-8"))["files"]
            names = [*(name for what, name in files.items() if what != "passengers"), *files["passengers"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []
        plain = [name for name in names if isinstance(name, str) and name not in ("", ".", "..")]
        paths = [self.report.parent / name for name in plain if Path(name).name == name]
        return [path for path in paths if path.is_file()]

    def passenger(self, file: Path) -> Path:
        """Where another image that is warped goes."""
        return self.report.parent / f"warped_{stem(file.name)}.nii.gz"
