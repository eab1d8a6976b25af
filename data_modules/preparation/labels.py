"""Which labels are registered and scored, under which numbers."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor
from torch.nn.functional import pad

from data_modules.checking.volumes import LARGEST_LABEL

Labels = list[int | str] | dict[str, int] | str
"""`all`, labels by number or name, or each with the number that it gets."""


def check_labels(labels: Labels) -> None:
    """The option `labels` of a data module.

    Raises:
        ValueError: if it can be no choice of labels, whatever the data set.
    """
    numbers = [*labels.values()] if isinstance(labels, Mapping) else []
    listed = [labels] if isinstance(labels, str) else list(labels)
    stored = [number for entry in listed if (number := _number(entry)) is not None]
    if not listed or min([*stored, *numbers], default=1) < 1 or max(numbers, default=1) > LARGEST_LABEL:
        raise ValueError(
            f"labels is {labels}, expected 'all' or a list of labels of at least 1 (or of their names), or a number "
            f"from 1 to {LARGEST_LABEL} that each gets"
        )


def chosen_labels(labels: Labels, names: Mapping[int, str]) -> dict[int, int] | None:
    """Labels of the files that are kept, with the number that each gets; None keeps all of them.

    Raises:
        ValueError: for a name that the data set does not have, or a label above 32767 that keeps its number.
    """
    if labels == "all":
        return None
    entries = {labels: None} if isinstance(labels, str) else dict.fromkeys(labels)
    wanted = labels if isinstance(labels, Mapping) else entries
    numbers = {name.lower(): label for label, name in names.items()}
    chosen: dict[int, int] = {}
    for entry, number in wanted.items():
        label = _number(entry)
        if label is None:
            label = _named(str(entry), numbers, names)
        chosen[label] = label if number is None else int(number)
    if max(chosen.values()) > LARGEST_LABEL:
        largest = max(chosen.values())
        raise ValueError(
            f"labels has {largest}, expected numbers up to {LARGEST_LABEL}: give it another one ({{{largest}: 1}})"
        )
    return chosen


def renamed(names: Mapping[int, str], chosen: Mapping[int, int]) -> dict[int, str]:
    """Names by the numbers that labels get, background included; of labels that are merged, the first one names all."""
    kept = {number: names[label] for label, number in reversed(list(chosen.items())) if label in names}
    return {label: name for label, name in names.items() if label == 0} | dict(sorted(kept.items()))


def _number(entry: int | str) -> int | None:
    text = str(entry).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _named(entry: str, numbers: Mapping[str, int], names: Mapping[int, str]) -> int:
    """The label of a name."""
    if entry.lower() in numbers:
        return numbers[entry.lower()]
    close = get_close_matches(entry.lower(), numbers, n=3)
    likely = [f"{names[numbers[name]]} ({numbers[name]})" for name in close]
    if not numbers:
        hint = "numbers: the data set gives its labels no names"
    else:
        hint = f"a name of the data set: did you mean {' or '.join(likely)}?" if likely else "a name of the data set"
    raise ValueError(f"labels has {entry!r}, expected {hint}")


def large_labels(voxels: Sequence[Tensor], least: int) -> list[int]:
    """The labels above 0 with at least `least` voxels in every case; `voxels` counts those of label 0, 1, ... by case.

    Raises:
        ValueError: if there is none.
    """
    size = max((len(counts) for counts in voxels), default=0)
    smallest = torch.stack([pad(counts, (0, size - len(counts))) for counts in voxels]).amin(0)
    kept = [label for label in (smallest >= least).nonzero().flatten().tolist() if label > 0]
    if not kept:
        raise ValueError(f"no label has {least} voxels in each of {len(voxels)} cases, expected a lower min_voxels")
    return kept


def without_small(subject: dict[str, Tensor], kept: Sequence[int]) -> dict[str, Tensor]:
    """The case with background for labels that are not kept; itself if it has none of them, or no label."""
    if "label" not in subject:
        return subject
    table = torch.zeros(2**15, dtype=torch.int16)
    table[list(kept)] = torch.tensor(list(kept), dtype=torch.int16)
    present = subject["voxels"].nonzero().flatten()
    return (
        subject if torch.equal(table[present].long(), present) else {**subject, "label": table[subject["label"].int()]}
    )
