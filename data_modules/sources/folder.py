"""A Learn2Reg folder as downloaded: its `*_dataset.json` and, for what that does not say, its file names."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_modules.layout import Case, CasePair, Layout, pairs_by_name, without
from dio_lightning.headers import SUFFIXES, is_image, stem

FOLDERS = {"label": "labels", "mask": "masks", "keypoints": "keypoints"}
TRAIN, VAL, TEST = "training_paired_images", "registration_val", "registration_test"


def read_layout(root: Path, json_name: str | None = None, test_split: str = TEST) -> Layout:
    """The layout of a folder.

    Raises:
        FileNotFoundError, ValueError: naming the folder, file or key that is not as expected.
    """
    folder = Folder.read(root, json_name)
    train, val = folder.pairs(TRAIN), folder.pairs(VAL)
    test = folder.pairs(test_split) if test_split == TEST else folder.required(test_split)
    free = without(folder.cases, [*val, *test])
    if not (free or train or val or test):
        raise FileNotFoundError(
            f"{root} has no images, expected a *_dataset.json that lists some, or imagesTr with .nii.gz, .nii, .mgz, "
            f".mgh or .img files{_instead(root)}"
        )
    if not train and folder.content.get("pairings") != "unpaired":
        train = pairs_by_name(free)
        if not train and free and folder.content.get("pairings") == "paired" and folder.content.get("training"):
            raise ValueError(
                f"{folder.source} has no pairs under {TRAIN!r}, expected them as its 'pairings' is 'paired' and "
                f"not every image is name_0000 or name_0001, such as {free[0].image.name}"
            )
    if val:
        return Layout(free, train, val, test or val, folder.label_names)
    return divided(Layout(free, train, [], test, folder.label_names))


@dataclass(frozen=True)
class Folder:
    """The entries of a folder; `source`, its dataset JSON or the folder itself, is what an error names."""

    root: Path
    source: Path
    content: dict[str, Any]

    @staticmethod
    def read(root: Path, json_name: str | None = None) -> "Folder":
        """The folder, with its JSON if there is one.

        Raises:
            FileNotFoundError, ValueError: naming the folder or file that is not as expected.
        """
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder, expected a Learn2Reg folder with imagesTr")
        path = _find_json(root, json_name)
        return Folder(root, path or root, _read_json(path) if path else {})

    @cached_property
    def cases(self) -> list[Case]:
        """Training cases: those listed, otherwise every image of imagesTr, sorted."""
        listed = self._list("training")
        if not listed:
            names = sorted(path.name for path in (self.root / "imagesTr").glob("*") if is_image(path))
            return [self._case(f"imagesTr/{name}", "imagesTr") for name in names]
        cases = [self._case(entry, f"entry {i} of 'training'") for i, entry in enumerate(listed)]
        self._once([case.image for case in cases], "training", "image")
        return cases

    def pairs(self, key: str) -> list[CasePair]:
        """Pairs listed under a key (`a/b` is b inside a); empty if there is no such key."""
        labelled = {case.image: case for case in self.cases}
        pairs = []
        for i, entry in enumerate(self._list(key)):
            what = f"entry {i} of {key!r}"
            if not isinstance(entry, dict) or not {"fixed", "moving"} <= entry.keys():
                raise ValueError(f"{self.source}: {what} is {entry!r}, expected the keys 'fixed' and 'moving'")
            fixed, moving = (self._case(entry[side], what) for side in ("fixed", "moving"))
            if fixed.image == moving.image:
                raise ValueError(f"{self.source}: {what} is {entry!r}, expected two images")
            pairs.append((labelled.get(fixed.image, fixed), labelled.get(moving.image, moving)))
        self._once([(fixed.image, moving.image) for fixed, moving in pairs], key, "pair")
        return pairs

    def required(self, key: str) -> list[CasePair]:
        """Pairs listed under a key that must be there."""
        pairs = self.pairs(key)
        if not pairs:
            raise ValueError(f"{self.source} has no pairs under {key!r}, expected one of {self._pair_keys()}")
        return pairs

    @property
    def label_names(self) -> dict[int, str]:
        """Names by label; the entry of the first modality if the JSON has one per modality."""
        labels = self.content.get("labels") or {}
        if isinstance(labels, dict) and labels and all(isinstance(value, dict) for value in labels.values()):
            labels = next(iter(labels.values()))
        if not isinstance(labels, dict) or not all(str(key).lstrip("-").isdigit() for key in labels):
            return {}
        return {int(key): str(name) for key, name in labels.items()}

    def _pair_keys(self) -> list[str]:
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

    def _once(self, entries: Sequence[object], key: str, what: str) -> None:
        first: dict[object, int] = {}
        for i, entry in enumerate(entries):
            if first.setdefault(entry, i) != i:
                raise ValueError(
                    f"{self.source}: entry {i} of {key!r} repeats entry {first[entry]}, {self._list(key)[i]!r}, "
                    f"expected every {what} once"
                )

    def _case(self, entry: object, what: str) -> Case:
        listed: dict[str, Any] = entry if isinstance(entry, dict) else {"image": entry}
        if any(not isinstance(listed.get(kind, ""), str) for kind in ("image", *FOLDERS)) or not listed.get("image"):
            key = " under the key 'image'" if isinstance(entry, dict) else ""
            raise ValueError(f"{self.source}: {what} is {entry!r}, expected the path of an image{key}")
        image = self.root / listed["image"]
        files = {kind: self._sibling(image, kind, listed.get(kind)) for kind in FOLDERS}
        return Case(image, files["label"], files["mask"], files["keypoints"], shape=self._shape(Case(image).id))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The JSON's shape of an image's modality, which is the number that its name ends in."""
        shapes = self.content.get("tensorImageShape")
        modality = name.rpartition("_")[2]
        shape = shapes.get(str(int(modality)) if modality.isdigit() else "0") if isinstance(shapes, dict) else None
        return tuple(shape) if isinstance(shape, list) and all(isinstance(n, int) for n in shape) else None

    def _sibling(self, image: Path, kind: str, listed: str | None) -> Path | None:
        """The label, mask or landmark file of an image: by its place if that exists, otherwise as listed."""
        folder = image.parent.with_name(image.parent.name.replace("images", FOLDERS[kind]))
        name = image.name if kind != "keypoints" else f"{stem(image.name)}.csv"
        derived = folder / name
        # some releases list landmarks with an image's extension
        if kind == "keypoints" and listed and not listed.endswith(".csv"):
            return derived
        if listed and (kind != "keypoints" or not derived.is_file()):
            return self.root / listed
        if folder == image.parent or derived.is_file():
            return derived if folder != image.parent else None
        # an image in .nii.gz may have its label in .nii or .mgz
        alike = [folder / f"{stem(image.name)}{suffix}" for suffix in SUFFIXES] if kind != "keypoints" else []
        return next((path for path in alike if path.is_file()), None)


def _instead(root: Path) -> str:
    """What a folder has that is no Learn2Reg folder."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir() if path.name[0] != ".")
    return f"; it has {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}" if names else "; it is empty"


def _find_json(root: Path, name: str | None) -> Path | None:
    if name is not None:
        if not (root / name).is_file():
            raise FileNotFoundError(f"{root / name} does not exist, expected the dataset JSON named by `json`")
        return root / name
    # macOS leaves ._name beside a file
    files = sorted(path for path in root.glob("*_dataset.json") if not path.name.startswith("."))
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ValueError(f"{root} has {len(files)} dataset files ({names}), expected one: name it with `json`")
    return files[0] if files else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object with Learn2Reg's keys")
    return content


def divided(layout: Layout) -> Layout:
    """The layout with test pairs, where it has none, and validation pairs of cases that are in no other split.

    From the end, a tenth of the pairs (at least one) or of the cases (at least two, in consecutive pairs) each. A
    folder that is too small for both has one set for both; one too small for any is tested on its training pairs.
    """
    count = max(1, len(layout.train) // 10) if layout.train else max(2, len(layout.cases) // 10)
    rest, test = (layout, layout.test) if layout.test else _held_out(layout, count)
    rest, val = _held_out(rest, count)
    everything = layout.train or list(pairwise(layout.cases))
    val = val or test or everything
    parts = rest, replace(rest, val=val), replace(rest, test=test or val)
    counts = [len(part.images(split)) for part, split in zip(parts, ("train", "val", "test"), strict=True)]
    listed = "validation" if layout.test else "validation or test"
    remark = f"lists no {listed} pairs: of its images, sorted by name, {counts[0]} are for training, {counts[1]} for "
    return replace(rest, val=val, test=test or val, remarks=(f"{remark}validation, {counts[2]} for test",))


def _held_out(layout: Layout, count: int) -> tuple[Layout, list[CasePair]]:
    """The layout without its last training pairs or cases, and the pairs of these; none if too few would be left."""
    if layout.train:
        enough = len(layout.train) > count
        return (replace(layout, train=layout.train[:-count]), layout.train[-count:]) if enough else (layout, [])
    if len(layout.cases) < count + 2:
        return layout, []
    return replace(layout, cases=layout.cases[:-count]), list(pairwise(layout.cases[-count:]))


def check_split(split: str, test_split: str, sizes: Sequence[int] | None, least: int) -> None:
    """The options by which a preset divides its folder; every part of `sizes` has at least `least`.

    Raises:
        ValueError: if one is not as expected.
    """
    if split not in ("challenge", "paper"):
        raise ValueError(f"split is {split!r}, expected 'challenge' or 'paper'")
    if split == "paper" and test_split != VAL:
        raise ValueError(f"test_split is {test_split!r}, expected it with split='challenge' alone")
    if sizes is not None and (split != "paper" or len(sizes) != 3 or min(sizes) < least):
        raise ValueError(f"split_sizes is {sizes}, expected three numbers of at least {least} and split='paper'")
