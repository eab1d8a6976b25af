"""Cases in memory: each is read and checked once, however many pairs it is part of."""

from collections.abc import Sequence
from typing import cast

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from data_modules.base import Sample
from data_modules.checks import UNREADABLE, Problems, check_counts, check_volumes, read_points, unique_cases, watched
from data_modules.layout import Case, CasePair
from data_modules.transforms import Normalise, preparing, reading

Subject = dict[str, Tensor]
"""One case: image, label and mask (1, *s), points (d, n) in voxels, spacing (d,) in mm, affine (4, 4)."""


class Subjects:
    """Reads cases; with `cache` it keeps them. Filled before loaders fork, it is shared by their processes."""

    def __init__(
        self, normalise: Normalise, clip: Sequence[float] | None, labels: Sequence[int] | None, cache: bool
    ) -> None:
        self.read, self.prepare = reading(), preparing(normalise, clip, labels)
        self.cache = cache
        self.largest_label = 0
        self._cached: dict[Case, Subject] = {}

    def fill(self, pairs: Sequence[CasePair], progress: bool = True) -> None:
        """Read and check the cases of the pairs.

        Raises:
            ValueError: with up to five sentences.
        """
        problems = Problems()
        for case in watched(unique_cases(pairs), "Reading cases", progress):
            if case not in self._cached:
                self._load(case, problems)
        problems.stop()
        check_counts(pairs, lambda case: self._cached[case]["points"].shape[-1], problems)
        problems.stop()

    def __getitem__(self, case: Case) -> Subject:
        """The case, from memory if it is there.

        Raises:
            ValueError: if its values are not as expected.
        """
        if case in self._cached:
            return self._cached[case]
        problems = Problems()
        subject = self._load(case, problems)
        problems.stop()
        assert subject is not None
        return subject

    def pair(self, fixed: Case, moving: Case) -> Sample:
        """One pair, with what both cases have.

        Raises:
            ValueError: if the cases differ in their number of landmarks.
        """
        one, two = self[fixed], self[moving]
        sample: Sample = {"spacing": one["spacing"], "affine": one["affine"]}
        for key, name in [("image", ""), ("label", "_label"), ("mask", "_mask"), ("points", "_points")]:
            if key in one and key in two:
                sample |= {f"fixed{name}": one[key], f"moving{name}": two[key]}
        problems = Problems()
        check_counts([(fixed, moving)], lambda case: (one if case is fixed else two)["points"].shape[-1], problems)
        problems.stop()
        return {**sample, "fixed_id": fixed.id, "moving_id": moving.id}

    def _load(self, case: Case, problems: Problems) -> Subject | None:
        """Read, check, prepare and keep a case; None if it has problems."""
        before = len(problems.sentences)
        try:
            volumes = cast(Subject, self.read(dict(case.volumes)))
        except UNREADABLE as error:
            why = error.__cause__ or error
            problems.add(f"{case.image} or its label or mask cannot be read ({why}), expected NIfTI files")
            return None
        affine = torch.as_tensor(cast(MetaTensor, volumes["image"]).affine, dtype=torch.float64)
        shape = tuple(volumes["image"].shape[1:])
        check_volumes(case, volumes, problems)
        points = read_points(case.keypoints, shape, problems) if case.keypoints else None
        if len(problems.sentences) > before:
            return None
        subject = cast(Subject, self.prepare(volumes))
        subject |= {"spacing": affine[:3, : len(shape)].norm(dim=0).float(), "affine": affine}
        if points is not None:
            subject["points"] = torch.from_numpy(points).T.contiguous()
        if "label" in subject:
            self.largest_label = max(self.largest_label, int(subject["label"].max()))
        if self.cache:
            self._cached[case] = subject
        return subject
