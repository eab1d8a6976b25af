"""Names of the files of pairs: how they are made of ids, and which file belongs to which pair."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dio_lightning.headers import stem

Ids = tuple[str, str]
"""fixed_id, moving_id."""
SUFFIXES = (".nii.gz", ".npz", ".nii")
_ID = re.compile(r"(?:.*_)?(\d{4})_(\d{4})|(?:.*_)?(\d{4})")


def pair_name(fixed: str, moving: str) -> str:
    """A pair's part of the names of the files that we write, as Learn2Reg has it.

    0011_0012 for subjects of modality 0000, 0011_0000_0012_0001 if one has another; ids without Learn2Reg's four digits
    keep their letters and digits.
    """
    matches = [_ID.fullmatch(_base(name)) for name in (fixed, moving)]
    short = all(match is None or match[2] in (None, "0000") for match in matches)
    names = []
    for match, name in zip(matches, (fixed, moving), strict=True):
        if match is None:
            names.append(re.sub(r"[^A-Za-z0-9]+", "-", _base(name)).strip("-") or "unnamed")
        else:
            subject = match[1] or match[3]
            names.append(subject if short or match[2] is None else f"{subject}_{match[2]}")
    return "_".join(names)


def pair_names(fixed: str, moving: str) -> tuple[str, ...]:
    """Every name by which Learn2Reg knows a pair's file; the first is the one that its evaluation looks for.

    It looks for the short name 0011_0012 where the modalities are equal, or 0000 and 0001, else for the long one.
    """
    one, two = (_ID.fullmatch(_base(name)) for name in (fixed, moving))
    if one is None or two is None:
        return (pair_name(fixed, moving),)
    (s, p), (t, q) = ((match[1] or match[3], match[2] or "0000") for match in (one, two))
    short = [f"{s}_{t}"] if p == q or (p, q) == ("0000", "0001") else []
    return tuple(dict.fromkeys([*short, f"{s}_{p}_{t}_{q}", pair_name(fixed, moving)]))


def full_name(fixed: str, moving: str) -> str:
    """Both ids as they are, but for what no file name may hold: sub01_0000_sub01_0001."""
    ids = (re.sub(r"[^\w.-]+", "-", stem(name)).strip("-.") or "unnamed" for name in (fixed, moving))
    return "_".join(ids)


def possible_names(fixed: str, moving: str) -> tuple[str, ...]:
    """Every name by which a pair's file may go, the one that we prefer first."""
    return tuple(dict.fromkeys([pair_name(fixed, moving), *pair_names(fixed, moving), full_name(fixed, moving)]))


def own_names(pairs: Iterable[Ids]) -> dict[Ids, tuple[str, ...]]:
    """The names that mean one pair among all of these, the one that we write first; a pair that is listed twice is one.

    A name that another pair may have too means neither: of `sub01_0000 <- sub01_0001` and `sub02_0000 <- sub02_0001`
    none is 0000_0001. The full ids of a pair are its own whatever the short names of others.

    Raises:
        ValueError: if the full names of two pairs are one.
    """
    listed = list(dict.fromkeys(pairs))
    owners: dict[str, Ids] = {}
    for pair in listed:
        name = full_name(*pair)
        if owners.setdefault(name, pair) != pair:
            both = f"{_arrow(owners[name])} and {_arrow(pair)}"
            raise ValueError(f"the pairs {both} would share the file name {name}, expected ids that differ in letters")
    count = Counter(name for pair in listed for name in possible_names(*pair))
    return {
        pair: tuple(n for n in possible_names(*pair) if owners.get(n, pair) == pair and (count[n] == 1 or n in owners))
        for pair in listed
    }


def listed_pairs(data: object, split: str) -> list[Ids] | None:
    """The ids of a split's pairs, as a data module's `pair_ids` says them without reading images; None if it has none.

    They are the same in every process, so that names made of them are too.
    """
    pair_ids: Callable[[str], list[Ids]] | None = getattr(data, "pair_ids", None)
    return None if pair_ids is None else pair_ids(split)


def find_field(folder: Path, fixed: str, moving: str, names: Sequence[str] | None = None) -> Path:
    """The one file of a folder that holds the displacement of a pair; `names` are those of `own_names`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if there are several.
    """
    names = names or possible_names(fixed, moving)
    files = _files(folder, names)
    if not files:
        wanted = " or ".join(f"disp_{name}.nii.gz" for name in names)
        raise FileNotFoundError(f"{folder} has no {wanted} (or .npz) for fixed {fixed} and moving {moving}")
    if len(files) > 1:
        several = " and ".join(path.name for path in files)
        raise ValueError(f"{folder} has {several} for fixed {fixed} and moving {moving}, expected one of them")
    return files[0]


def find_all(folder: Path, pairs: Iterable[Ids]) -> dict[Ids, Path]:
    """The file of every pair.

    Raises:
        FileNotFoundError: naming the pairs without a file.
        ValueError: if two files fit one pair or one file fits two.
    """
    names = own_names(pairs)
    for sentence in shared_files(folder, names):
        raise ValueError(sentence)
    fields: dict[Ids, Path] = {}
    missing: list[str] = []
    for pair, own in names.items():
        try:
            fields[pair] = find_field(folder, *pair, own)
        except FileNotFoundError as error:
            missing.append(str(error).removeprefix(f"{folder} has no "))
    if missing:
        extra = strangers(folder, fields.values())
        hint = f" (it has {extra[0].name}, which belongs to no pair)" if extra else ""
        count = f"{len(missing)} of {len(missing) + len(fields)} displacement fields"
        raise FileNotFoundError(f"{folder} lacks {count}{hint}: {'; '.join(missing)}")
    return fields


def shared_files(folder: Path, names: dict[Ids, tuple[str, ...]]) -> list[str]:
    """A sentence for every file whose name fits two pairs; `names` are those of `own_names`."""
    users: dict[str, list[Ids]] = {}
    for pair, own in names.items():
        for name in possible_names(*pair):
            if name not in own:
                users.setdefault(name, []).append(pair)
    owned = {name for own in names.values() for name in own}
    return [
        f"{path} fits the pairs {' and '.join(map(_arrow, pairs[:2]))}, expected long names such as "
        f"disp_{names[pairs[0]][0]}"
        for name, pairs in users.items()
        if name not in owned
        for path in _files(folder, [name])
    ]


def strangers(folder: Path, taken: Iterable[Path]) -> list[Path]:
    """Files of a folder that are named like displacements, but are none of the known ones."""
    names = {path.name for path in taken}
    return sorted(path for path in folder.glob("disp_*") if path.name not in names)


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    return [path for path in (folder / f"disp_{name}{s}" for name in names for s in SUFFIXES) if path.is_file()]


def _arrow(pair: Ids) -> str:
    return " <- ".join(pair)


def _base(name: str) -> str:
    return stem(name.replace("\\", "/").rsplit("/", 1)[-1])
