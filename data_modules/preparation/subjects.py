"""Cases as tensors: each is read and checked once, however many pairs it is part of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.traits import RandomizableTrait
from monai.transforms.transform import Transform
from torch import Tensor

from data_modules.base import Sample
from data_modules.checking.checks import (
    UNREADABLE,
    Problems,
    check_counts,
    check_volumes,
    read_points,
    unique_cases,
    watched,
)
from data_modules.layout import Case, CasePair
from data_modules.preparation.caching import Cache, Stamp, Store, cache_folder, cache_mode, content_key, stamp
from data_modules.preparation.describing import recipe
from data_modules.preparation.labels import large_labels, without_small
from data_modules.preparation.transforms import Normalise, carried, preparing, reading
from dio_lightning.errors import times

Subject = dict[str, Tensor]
"""One case: image, label and mask (1, *s), points (d, n) in voxels, spacing (d,) in mm, affine (4, 4), and the number
of voxels of every label, voxels (k + 1,), counted before small labels are dropped."""


@dataclass(frozen=True)
class _Facts:
    """What is remembered of a case that is not in memory."""

    shape: tuple[int, ...]
    affine: Tensor
    landmarks: int
    voxels: Tensor


class Subjects:
    """Reads cases, and keeps them in memory or on disk.

    Filled before loaders fork, the memory is shared by their processes. The disk cache is found by the content of all
    files of a case and every option of its preparation (`caching`), so neither can change without being seen.

    Args:
        normalise, clip, labels, mask_images, extra: As in `transforms.preparing`.
        cache: `memory` (True), `disk` or `none` (False).
        cache_dir: Folder of the disk cache: see `caching.cache_folder`.
        common_grid: Pairs must lie on one grid, after preparation too.
        name: Of the data set, for the progress bar.

    Raises:
        ValueError: if a transform of `extra` is random or, with a disk cache, cannot be described.
    """

    def __init__(
        self,
        normalise: Normalise,
        clip: Sequence[float] | None,
        labels: Sequence[int] | None,
        cache: Cache,
        cache_dir: str | None = None,
        mask_images: bool = False,
        extra: Sequence[Transform] = (),
        common_grid: bool = True,
        name: str = "",
    ) -> None:
        for transform in Compose(list(extra)).flatten().transforms:
            if isinstance(transform, RandomizableTrait):
                raise ValueError(f"{type(transform).__name__} is random, expected transforms of one result in extra")
        self.read, self.prepare = reading(), preparing(normalise, clip, labels, mask_images, extra)
        self.cache, self.mask_images, self.common_grid, self.name = cache_mode(cache), mask_images, common_grid, name
        self.kept: list[int] | None = None
        self.extra = tuple(extra)
        self._store = Store(cache_folder(cache_dir)) if self.cache == "disk" else None
        self._recipe = recipe(reading, self.prepare) if self._store else ""
        self._cached: dict[Case, Subject] = {}
        self._facts: dict[Case, _Facts] = {}
        self._stamps: dict[Case, Stamp] = {}
        self._keys: dict[Case, str] = {}

    @property
    def largest_label(self) -> int:
        """Of the cases read so far."""
        largest = max((len(facts.voxels) for facts in self._facts.values()), default=1) - 1
        return largest if self.kept is None else min(largest, max(self.kept))

    def fill(self, pairs: Sequence[CasePair], progress: bool = True) -> None:
        """Read and check the cases of the pairs, those again whose files have changed.

        Raises:
            ValueError: with up to five sentences.
        """
        problems = Problems()
        for case in self._watched(unique_cases(pairs), progress):
            self._get(case, problems)
        problems.stop()
        check_counts(pairs, lambda case: self._facts[case].landmarks, problems)
        for fixed, moving in pairs:
            self._other_grid(fixed, moving, problems)
        problems.stop()

    def keep_large(self, cases: Sequence[Case], least: int, progress: bool = True) -> list[int]:
        """Labels with fewer voxels than `least` in any of the cases become background; returns those known.

        So does a label that none of the cases has.

        Raises:
            ValueError: if a case is not as expected, or no label is left.
        """
        problems = Problems()
        for case in self._watched(cases, progress):
            if case not in self._facts:
                self._get(case, problems, keep=False)
        problems.stop()
        kept = large_labels([self._facts[case].voxels for case in cases], least)
        if kept != self.kept:
            if self.kept is not None:
                self._cached.clear()
            self.kept = kept
            for case, subject in self._cached.items():
                self._cached[case] = without_small(subject, kept)
        seen = {label for facts in self._facts.values() for label in facts.voxels.nonzero().flatten().tolist()}
        return sorted(seen - {0, *kept})

    def __getitem__(self, case: Case) -> Subject:
        """The case, from memory or disk if it is there.

        Raises:
            ValueError: if its values are not as expected.
        """
        problems = Problems()
        subject = self._get(case, problems)
        problems.stop()
        assert subject is not None
        return subject

    def pair(self, fixed: Case, moving: Case) -> Sample:
        """One pair, with what both cases have; `moving_affine` where the moving case lies on another grid.

        Raises:
            ValueError: if the cases differ in their number of landmarks, or in their grid though one is expected.
        """
        one, two = self[fixed], self[moving]
        sample: Sample = {"spacing": one["spacing"], "affine": one["affine"]}
        for key, name in [("image", ""), ("label", "_label"), ("mask", "_mask"), ("points", "_points")]:
            if key in one and key in two:
                sample |= {f"fixed{name}": one[key], f"moving{name}": two[key]}
        problems = Problems()
        check_counts([(fixed, moving)], lambda case: self._facts[case].landmarks, problems)
        if self._other_grid(fixed, moving, problems):
            sample["moving_affine"] = two["affine"]
        problems.stop()
        # further steps may leave the grid and the world of the file
        files = {} if self.extra else {"fixed_file": str(fixed.image), "moving_file": str(moving.image)}
        return {**sample, "fixed_id": fixed.id, "moving_id": moving.id, **files}

    def _watched(self, cases: Sequence[Case], progress: bool) -> Iterator[Case]:
        """The cases with a bar; forgets those whose files have changed since they were read."""
        title = f"{'Reading' if self.cache == 'none' else 'Caching'} {self.name or 'cases'}"
        for case in watched(cases, title, progress):
            now = stamp(_files(case))
            if self._stamps.get(case) != now:
                for known in (self._cached, self._facts, self._keys):
                    known.pop(case, None)
                self._stamps[case] = now
            yield case

    def _get(self, case: Case, problems: Problems, keep: bool = True) -> Subject | None:
        """A case from memory, from disk or from its files; None if it has problems."""
        if case in self._cached:
            return self._cached[case]
        subject = self._stored(case, problems) if self._store else self._load(case, problems)
        if subject is None:
            return None
        points = subject.get("points")
        self._facts[case] = _Facts(
            tuple(subject["image"].shape[1:]),
            subject["affine"].clone(),
            0 if points is None else points.shape[-1],
            subject["voxels"].clone(),
        )
        if self.kept is not None:
            subject = without_small(subject, self.kept)
        if keep and self.cache == "memory":
            self._cached[case] = subject
        return subject

    def _stored(self, case: Case, problems: Problems) -> Subject | None:
        """A case from the disk cache, where it is put if it is not there."""
        assert self._store is not None
        paths = _files(case)
        before = stamp(paths)
        if case not in self._keys:
            try:
                self._keys[case] = content_key(paths, self._recipe)
            except OSError as error:
                problems.add(f"{error.filename} cannot be read ({error.strerror}), expected a file of {case.id}")
                return None
        subject = self._store.load(self._keys[case])
        if subject is None:
            subject = self._load(case, problems)
            # what was read is stored only under the name of what was hashed
            if subject is not None and stamp(paths) == before == self._stamps.setdefault(case, before):
                self._store.save(self._keys[case], subject)
        return subject

    def _load(self, case: Case, problems: Problems) -> Subject | None:
        """Read, check and prepare a case; None if it has problems."""
        before = len(problems.sentences)
        if self.mask_images and case.mask is None:
            problems.add(f"{case.image} has no mask, expected one for mask_images")
            return None
        try:
            volumes = cast(Subject, self.read(dict(case.volumes)))
        except UNREADABLE as error:
            why = error.__cause__ or error
            problems.add(f"{case.image} or its label or mask cannot be read ({why}), expected image files")
            return None
        stored = torch.as_tensor(cast(MetaTensor, volumes["image"]).affine, dtype=torch.float64)
        check_volumes(case, volumes, problems)
        shape = tuple(volumes["image"].shape[1:])
        points = read_points(case.keypoints, shape, problems) if case.keypoints else None
        if len(problems.sentences) > before:
            return None
        subject = cast(Subject, self.prepare(volumes))
        if points is not None:
            subject["points"] = carried(torch.from_numpy(points).T.contiguous(), stored, subject["affine"])
            _check_inside(subject, case, problems)
        label = subject.get("label", torch.zeros(1, dtype=torch.int16))
        subject["voxels"] = torch.bincount(label.flatten())
        return subject if len(problems.sentences) == before else None

    def _other_grid(self, fixed: Case, moving: Case, problems: Problems) -> bool:
        """Whether the cases differ in shape, or in affine by a hundredth of a voxel; a problem for a common grid."""
        one, two = self._facts[fixed], self._facts[moving]
        voxel = one.affine[:3, :3].norm(dim=0).min()
        if one.shape == two.shape and bool((one.affine - two.affine).abs().max() <= 0.01 * voxel):
            return False
        if self.common_grid:
            shapes = [times(facts.shape) for facts in (two, one)]
            problems.add(
                f"{moving.image} lies on another grid ({shapes[0]}) than {fixed.image} ({shapes[1]}) once prepared, "
                "expected one grid: set common_grid to false"
            )
        return True


def _files(case: Case) -> dict[str, Path]:
    """Every file of a case, by kind."""
    return case.volumes | ({"keypoints": case.keypoints} if case.keypoints else {})


def _check_inside(subject: Subject, case: Case, problems: Problems) -> None:
    """Landmarks lie on the prepared grid, to half a voxel: resampling to coarser voxels moves its border."""
    last = torch.tensor(subject["image"].shape[1:])[:, None] - 1
    outside = ((subject["points"] < -0.5) | (subject["points"] > last + 0.5)).any(0).nonzero().flatten().tolist()
    if outside:
        problems.add(f"{case.keypoints}: row {outside[0] + 1} lies outside of the prepared image, expected it inside")
