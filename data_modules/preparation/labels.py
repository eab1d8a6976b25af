"""Structures that are too small to score become background."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


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
