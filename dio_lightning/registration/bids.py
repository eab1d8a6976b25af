"""Names of BIDS derivatives for what `register` writes.

A transform is named as fMRIPrep and the BIDS proposal for transforms (BEP014) name it: `from-A_to-B_mode-image` brings
images from A to B, so it takes points of B to A. Of the entities, those of the moving image are kept.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dio_lightning import __version__
from dio_lightning.headers import stem
from dio_lightning.registration.outputs import Other, Outputs

DATATYPES = ("anat", "dwi", "fmap", "func", "perf", "pet")
REPLACED = ("space", "res", "den", "desc", "label")
"""Entities of the moving image that no longer hold when it lies on another grid."""
VERSION = "1.9.0"
"""Of BIDS, whose names these are."""
_ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)")
_LABEL = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True)
class Name:
    """A file name in parts: sub-01_ses-a_T1w.nii.gz has the entities sub and ses, and the suffix T1w."""

    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of(cls, path: Path) -> "Name | None":
        """The parts of a file's name; None if it is no name of BIDS, with one entity at least."""
        *pairs, suffix = stem(path.name).split("_")
        entities = [_ENTITY.fullmatch(pair) for pair in pairs]
        if not pairs or None in entities or not suffix.isalnum():
            return None
        return cls({match[1]: match[2] for match in entities if match}, suffix)

    def __str__(self) -> str:
        return "_".join([*(f"{key}-{value}" for key, value in self.entities.items()), self.suffix])


def bids_outputs(out: Path, fixed: Path, moving: Path, also: Sequence[Other] = ()) -> "BidsOutputs":
    """Where everything goes: out/sub-01/[ses-a/]anat/sub-01_..., with sidecars and a description of the data set.

    Raises:
        ValueError: if the moving image's name is none of BIDS, or has no subject.
    """
    name = _moving_name(moving)
    place, space = name.suffix, _space(fixed, name)
    start = {key: value for key, value in name.entities.items() if key not in REPLACED}
    folder = _folder(out, name, moving)

    def transform(one: str, two: str, desc: str | None = None) -> str:
        ends = {"from": one, "to": two, "mode": "image"} | ({} if desc is None else {"desc": desc})
        return str(Name(start | ends, "xfm"))

    forth, back = transform(place, space), transform(space, place)
    warped = str(Name(start | {"space": space, "desc": "warped"}, name.suffix))
    shown = str(Name(start | {"space": space, "desc": "registration"}, name.suffix))
    paths = {
        "warped": f"{warped}.nii.gz",
        "transform": f"{forth}.h5",
        "inverse": f"{back}.h5",
        "affine": f"{transform(place, space, 'affine')}.tfm",
        "displacement": f"{transform(place, space, 'displacement')}.nii.gz",
        "picture": f"{shown}.png",
        "page": f"{shown}.html",
        "report": f"{transform(place, space, 'report')}.json",
        **{other: f"{transform(place, space, other)}.nii.gz" for other in also},
    }
    sources = {"Sources": [str(fixed), str(moving)]}
    beside = {
        warped: {"Description": "the moving image on the fixed grid", "SpatialReference": str(fixed), **sources},
        forth: {"Description": f"images from {place} to {space}: points from {space} to {place}", **sources},
        back: {"Description": f"images from {space} to {place}: points from {place} to {space}", **sources},
    }
    return BidsOutputs(
        {what: folder / name for what, name in paths.items()},
        {folder / f"{name}.json": _json(content) for name, content in beside.items()},
        {out / "dataset_description.json": _json(_description())},
        space,
    )


@dataclass(frozen=True)
class BidsOutputs(Outputs):
    """Where everything goes, by names of BIDS.

    Attributes:
        space: label of the fixed image.
    """

    space: str = ""

    def passenger(self, file: Path) -> Path:
        """Where another image that is warped goes, which has a name of BIDS too.

        Raises:
            ValueError: if it has not.
        """
        name = _moving_name(file)
        entities = {key: value for key, value in name.entities.items() if key not in ("space", "res", "den", "desc")}
        named = Name(entities | {"space": self.space, "desc": "warped"}, name.suffix)
        return self.report.parent / f"{named}.nii.gz"


def _moving_name(path: Path) -> Name:
    name = Name.of(path)
    if name is None or "sub" not in name.entities:
        raise ValueError(f"{path} has no name of BIDS, expected one such as sub-01_T1w.nii.gz with --bids")
    return name


def _space(fixed: Path, moving: Name) -> str:
    """The label of the fixed image: its template, its space, its suffix, or what it is called.

    Of another subject or session than the moving image, these stand before the suffix: sub02T1w.
    """
    name = Name.of(fixed)
    if name is None:
        return _LABEL.sub("", stem(fixed.name)) or "fixed"
    if template := name.entities.get("tpl") or name.entities.get("space"):
        return _LABEL.sub("", template)
    others = [key for key, value in name.entities.items() if key not in REPLACED and moving.entities.get(key) != value]
    label = "".join(f"{key}{_LABEL.sub('', name.entities[key])}" for key in others) + name.suffix
    return label if label != moving.suffix else f"fixed{label}"


def _folder(out: Path, name: Name, moving: Path) -> Path:
    levels = [f"{key}-{name.entities[key]}" for key in ("sub", "ses") if key in name.entities]
    kind = moving.absolute().parent.name
    return out.joinpath(*levels, kind if kind in DATATYPES else "anat")


def _description() -> dict[str, object]:
    return {
        "Name": "Registration by dio-lightning",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "dio-lightning", "Version": __version__}],
    }


def _json(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=2) + "\n"
