"""The Learn2Reg folder: which files belong to a case, which cases make a pair."""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

FOLDERS = {"label": "labels", "mask": "masks", "keypoints": "keypoints"}


@dataclass(frozen=True)
class Case:
    """The files of one image; None where there is none."""

    image: Path
    label: Path | None = None
    mask: Path | None = None
    keypoints: Path | None = None

    @property
    def id(self) -> str:
        """File name of the image without its extension."""
        return self.image.name.removesuffix(".gz").removesuffix(".nii")

    @property
    def volumes(self) -> dict[str, Path]:
        """The files on a grid: image, label, mask."""
        named = {"image": self.image, "label": self.label, "mask": self.mask}
        return {kind: path for kind, path in named.items() if path is not None}


CasePair = tuple[Case, Case]
"""Fixed and moving case."""


@dataclass(frozen=True)
class Layout:
    """Training cases (used where no training pairs are listed), pairs of every split, names of the labels."""

    cases: list[Case]
    train: list[CasePair]
    val: list[CasePair]
    test: list[CasePair]
    label_names: dict[int, str]


def read_layout(root: Path, json_name: str | None = None, test_split: str = "registration_test") -> Layout:
    """The layout of a folder, from its `*_dataset.json` and, for what that does not say, from its file names.

    Raises:
        FileNotFoundError, ValueError: naming the folder, file or key that is not as expected.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected a Learn2Reg folder with imagesTr")
    path = _find_json(root, json_name)
    content = _read_json(path) if path else {}
    folder = _Folder(root, path or root, content)
    cases, train = folder.cases(), folder.pairs("training_paired_images")
    val, test = folder.pairs("registration_val"), folder.pairs(test_split)
    if not test and test_split != "registration_test":
        raise ValueError(f"{path or root} has no pairs under {test_split!r}, expected one of {folder.pair_keys()}")
    free = _without(cases, [*val, *test])
    if not train and content.get("pairings") != "unpaired":
        train = _pairs_by_name(free)
    if not val:
        free, train, val = _hold_out(root, free, train)
    return Layout(free, train, val, test or val, _label_names(content))


def _without(cases: Iterable[Case], pairs: Iterable[CasePair]) -> list[Case]:
    """The cases that are in none of the pairs."""
    used = {case.image for pair in pairs for case in pair}
    return [case for case in cases if case.image not in used]


def _find_json(root: Path, name: str | None) -> Path | None:
    if name is not None:
        if not (root / name).is_file():
            raise FileNotFoundError(f"{root / name} does not exist, expected the dataset JSON named by `json`")
        return root / name
    found = sorted(root.glob("*_dataset.json"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{root} has {len(found)} dataset files ({names}), expected one: name it with `json`")
    return found[0] if found else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object with Learn2Reg's keys")
    return content


@dataclass(frozen=True)
class _Folder:
    """Reads the entries of a dataset JSON; `source` is what an error names."""

    root: Path
    source: Path
    content: dict[str, Any]

    def cases(self) -> list[Case]:
        """Training cases: those listed, otherwise every image of imagesTr, sorted."""
        listed = self._list("training")
        if listed:
            return [self._case(entry, f"entry {i} of 'training'") for i, entry in enumerate(listed)]
        return [self._case(str(path), "imagesTr") for path in sorted((self.root / "imagesTr").glob("*.nii*"))]

    def pairs(self, key: str) -> list[CasePair]:
        """Pairs listed under a key (`a/b` is b inside a); empty if there is no such key."""
        known = {case.image: case for case in self.cases()}
        pairs = []
        for i, entry in enumerate(self._list(key)):
            what = f"entry {i} of {key!r}"
            if not isinstance(entry, dict) or not {"fixed", "moving"} <= entry.keys():
                raise ValueError(f"{self.source}: {what} is {entry!r}, expected the keys 'fixed' and 'moving'")
            fixed, moving = (self._case(entry[side], what) for side in ("fixed", "moving"))
            pairs.append((known.get(fixed.image, fixed), known.get(moving.image, moving)))
        return pairs

    def pair_keys(self) -> list[str]:
        """Keys that hold pairs, for a message."""
        flat = dict(self.content)
        for key, value in self.content.items():
            flat |= {f"{key}/{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {}
        return [k for k, v in flat.items() if isinstance(v, list) and v and isinstance(v[0], dict) and "fixed" in v[0]]

    def _list(self, key: str) -> Sequence[Any]:
        value: Any = self.content
        for part in key.split("/"):
            value = value.get(part, []) if isinstance(value, dict) else []
        if not isinstance(value, list):
            raise ValueError(f"{self.source}: {key!r} is a {type(value).__name__}, expected a list")
        return value

    def _case(self, entry: object, what: str) -> Case:
        listed: dict[str, Any] = entry if isinstance(entry, dict) else {"image": entry}
        if any(not isinstance(listed.get(kind, ""), str) for kind in ("image", *FOLDERS)) or not listed.get("image"):
            raise ValueError(f"{self.source}: {what} is {entry!r}, expected the path of an image")
        image = self.root / listed["image"]
        return Case(image, *(self._sibling(image, kind, listed.get(kind)) for kind in FOLDERS))

    def _sibling(self, image: Path, kind: str, listed: str | None) -> Path | None:
        """The label, mask or landmark file of an image: by its place if that exists, otherwise as listed."""
        folder = image.parent.with_name(image.parent.name.replace("images", FOLDERS[kind]))
        name = image.name if kind != "keypoints" else image.name.removesuffix(".gz").removesuffix(".nii") + ".csv"
        derived = folder / name
        # some releases list landmarks with an image's extension, so the place goes before the list for them
        if listed and (kind != "keypoints" or not derived.is_file()):
            return self.root / listed
        return derived if folder != image.parent and derived.is_file() else None


def _pairs_by_name(cases: Sequence[Case]) -> list[CasePair]:
    """name_0000 (fixed) with name_0001 (moving), if every case has its partner."""
    by_id = {case.id: case for case in cases}
    fixed = [case for case in cases if case.id.endswith("_0000")]
    pairs = [(case, by_id[case.id[:-1] + "1"]) for case in fixed if case.id[:-1] + "1" in by_id]
    return pairs if pairs and 2 * len(pairs) == len(cases) else []


def _hold_out(
    root: Path, cases: list[Case], train: list[CasePair]
) -> tuple[list[Case], list[CasePair], list[CasePair]]:
    """Training cases, training pairs, validation pairs: the last tenth of the pairs, or of the cases, consecutive."""
    if len(train) > 1:
        last = max(1, len(train) // 10)
        return cases, train[:-last], train[-last:]
    if not train and len(cases) >= 4:
        val = list(pairwise(cases[-max(2, len(cases) // 10) :]))
        return _without(cases, val), train, val
    if len(cases) > 1:
        warnings.warn(f"{root} is too small to hold out pairs: it validates on its training pairs", stacklevel=4)
    return cases, train, train or list(pairwise(cases))


def _label_names(content: dict[str, Any]) -> dict[int, str]:
    """Names by label; the entry of the first modality if the JSON has one per modality."""
    labels = content.get("labels") or {}
    if isinstance(labels, dict) and labels and all(isinstance(value, dict) for value in labels.values()):
        labels = next(iter(labels.values()))
    if not isinstance(labels, dict) or not all(str(key).lstrip("-").isdigit() for key in labels):
        return {}
    return {int(key): str(name) for key, name in labels.items()}
