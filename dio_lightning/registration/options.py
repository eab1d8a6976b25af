"""Options of `dio-lightning register` for what is given besides two images: masks, landmarks, terms, points to move."""

import argparse
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dio_lightning.usage import nearest

if TYPE_CHECKING:
    from dio_lightning.losses import Term
    from dio_lightning.registration.result import Registration
    from dio_lightning.transforms.point_files import Coordinates, PointFile

PROMPTS = {"LabelPrompt": "--fixed-labels and --moving-labels", "LandmarkPrompt": "--fixed-points and --moving-points"}
"""Terms that have options of their own."""
MISSED = 0.01
"""Millimetres by which a point may miss its origin before that is said."""


def add_options(group: argparse._ArgumentGroup) -> None:
    """The options, added to a group of the command's."""
    group.add_argument("--fixed-labels", type=Path, metavar="FILE", help="label map of the fixed image, to be matched")
    group.add_argument("--moving-labels", type=Path, metavar="FILE", help="label map of the moving image")
    labels = "the labels to match (default: all)"
    group.add_argument("--prompt-label", type=int, nargs="+", metavar="N", help=labels)
    points = "landmarks of the fixed image (.csv, .fcsv, .mrk.json), to be matched"
    group.add_argument("--fixed-points", type=Path, metavar="FILE", help=points)
    group.add_argument("--moving-points", type=Path, metavar="FILE", help="the same landmarks of the moving image")
    coordinates = "of points in a CSV: millimetres, or voxels of their image"
    group.add_argument("--coordinates", choices=("ras", "lps", "voxels"), help=coordinates)
    weight = "of labels and landmarks (default: 1)"
    group.add_argument("--prompt-weight", type=float, default=1.0, metavar="W", help=weight)
    mask = "mask: where it is 0, as in a lesion, the fixed image is not compared"
    group.add_argument("--fixed-mask", type=Path, metavar="FILE", help=mask)
    group.add_argument("--moving-mask", type=Path, metavar="FILE", help="the same of the moving image")
    term = "what to descend on besides, e.g. Bending=0.1 (may be repeated; a wrong name lists them)"
    group.add_argument("--term", action="append", default=[], metavar="CLASS[=WEIGHT]", help=term)


def given_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `registration.register` takes of the options, landmarks and labels with a term each.

    Raises:
        FileNotFoundError, ValueError: if a file of points, or a term, is none.
    """
    from dio_lightning.losses import LabelPrompt, LandmarkPrompt

    points: dict[str, NDArray[np.float64]] = {}
    for side in ("fixed", "moving"):
        if (path := getattr(options, f"{side}_points")) is not None:
            points[f"{side}_points"] = Points.read(path, options.coordinates, getattr(options, side)).world
    terms = [made_term(word) for word in options.term]
    if options.fixed_labels is not None or options.moving_labels is not None:
        terms.append(LabelPrompt(options.prompt_label, weight=options.prompt_weight))
    if len(points) == 2:
        terms.append(LandmarkPrompt(options.prompt_weight))
    return {**points, "terms": terms, "fixed_mask": options.fixed_mask, "moving_mask": options.moving_mask}


def made_term(word: str) -> "Term":
    """The term of CLASS or CLASS=WEIGHT, its other settings the class's own.

    Raises:
        ValueError: if there is no such term, or its weight is no number of at least 0.
    """
    from dio_lightning import losses

    name, _, weight = word.partition("=")
    if name in PROMPTS:
        raise ValueError(f"--term {name}: give {PROMPTS[name]} instead, and --prompt-weight")
    terms = {
        cls.__name__: cls
        for cls in vars(losses).values()
        if isinstance(cls, type) and issubclass(cls, losses.Term) and not inspect.isabstract(cls)
    }
    alone = [name for name, cls in sorted(terms.items()) if name not in PROMPTS and _complete(cls)]
    if name not in alone:
        raise ValueError(f"--term {name}: expected one of {', '.join(alone)}{nearest(name, alone)}")
    try:
        number = float(weight) if "=" in word else 1.0
    except ValueError as error:
        raise ValueError(f"--term {word}: expected a number as weight, e.g. {name}=0.1") from error
    return terms[name](weight=number)


def _complete(cls: type) -> bool:
    """Whether a class can be made without arguments."""
    return all(p.default is not p.empty for p in inspect.signature(cls).parameters.values())


@dataclass(frozen=True, eq=False)
class Points:
    """Points of a file.

    Attributes:
        path: the file.
        file: its content.
        coordinates: what its numbers are.
        world: (n, 2) or (n, 3), RAS millimetres.
    """

    path: Path
    file: "PointFile"
    coordinates: "Coordinates"
    world: NDArray[np.float64]

    @classmethod
    def read(cls, path: Path, coordinates: "Coordinates | None", image: Path) -> "Points":
        """Points of an image; voxels are its own.

        Raises:
            FileNotFoundError, ValueError: if it is no such file, or what its numbers are is not said.
        """
        from dio_lightning.headers import read_header
        from dio_lightning.transforms import ImageGrid
        from dio_lightning.transforms.point_files import coordinates_of, read_points, to_world

        file = read_points(path)
        named = coordinates_of(file, path, coordinates)
        grid = ImageGrid.of(read_header(image))
        if file.values.shape[1] != 3 and len(grid.size) == 3:
            raise ValueError(f"{path} has points of 2 coordinates, expected 3 as {image} has")
        return cls(path, file, named, to_world(file.values, named, grid))

    def write_warped(self, target: Path, result: "Registration") -> None:
        """Write where these points of the moving image lie in the fixed one, in the coordinates of their file.

        Each is solved for on its own, as `dio-lightning transform apply --points-of moving` does.
        """
        from dio_lightning.transforms import warp_points
        from dio_lightning.transforms.point_files import from_world

        moved = warp_points(self.world, result.transform, "fixed")
        missed = int((moved.missed > MISSED).sum())
        if missed:
            worst = f"they are off by up to {moved.missed.max():.3g} mm"
            sys.stderr.write(f"dio-lightning: warning: {missed} of the points of {self.path} have no origin: {worst}\n")
        d = self.file.values.shape[1]
        self.file.write(target, from_world(moved.points, self.coordinates, result.fixed.grid, d))


def point_targets(out: Path, files: Sequence[Path]) -> list[Path]:
    """Where points to move go: files of their own kind.

    Raises:
        ValueError: for a file that has no ending of points.
    """
    if not files:
        return []
    from dio_lightning.transforms.point_files import ENDINGS, is_points

    for path in files:
        if not is_points(path):
            raise ValueError(f"{path} has no ending of points, expected one of {', '.join(ENDINGS)}")
    return [out / f"warped_{path.name}" for path in files]
