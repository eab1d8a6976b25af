"""One case in memory, and what is remembered of one that is not."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from data_modules.checking.findings import Findings
from data_modules.layout import Case

Subject = dict[str, Tensor]
"""One case: image, label and mask (1, *s), points (d, n) in voxels, spacing (d,) in mm, affine (4, 4), and the number
of voxels of every label, voxels (k + 1,), counted before small labels are dropped."""


@dataclass(frozen=True)
class Facts:
    """What is remembered of a case that is not in memory."""

    shape: tuple[int, ...]
    affine: Tensor
    landmarks: int
    voxels: Tensor
    labelled: bool
    digest: str


def facts_of(subject: Subject) -> Facts:
    """What is remembered of a case."""
    points = subject.get("points")
    return Facts(
        tuple(subject["image"].shape[1:]),
        subject["affine"].clone(),
        0 if points is None else points.shape[-1],
        subject["voxels"].clone(),
        "label" in subject,
        hashlib.blake2b(subject["image"].numpy().tobytes(), digest_size=16).hexdigest(),
    )


def check_inside(subject: Subject, case: Case, findings: Findings) -> None:
    """Landmarks lie on the prepared grid, to half a voxel: resampling to coarser voxels moves its border."""
    last = torch.tensor(subject["image"].shape[1:])[:, None] - 1
    outside = ((subject["points"] < -0.5) | (subject["points"] > last + 0.5)).any(0).nonzero().flatten().tolist()
    if outside:
        findings.error(
            str(case.keypoints), f"row {outside[0] + 1} lies outside of the prepared image, expected it inside"
        )
