"""Cases as tensors: each is read and checked once, however many pairs it is part of."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from monai.transforms.compose import Compose
from monai.transforms.traits import RandomizableTrait
from monai.transforms.transform import Transform

from data_modules.base import Sample
from data_modules.checking.findings import Findings, watched
from data_modules.checking.headers import Asked, check_counts
from data_modules.checking.volumes import read_case
from data_modules.layout import Case, CasePair, unique_cases
from data_modules.preparation.caching import Cache, Stamp, Store, cache_folder, cache_mode, content_key, stamp
from data_modules.preparation.describing import recipe
from data_modules.preparation.labels import large_labels, without_small
from data_modules.preparation.remembering import Facts, Subject, check_inside, facts_of
from data_modules.preparation.transforms import Normalise, carried, preparing, tensors
from dio_lightning.errors import times
from dio_lightning.fields.placing import corners_apart, same_grid


class Subjects:
    """Reads cases, and keeps them in memory or on disk.

    Filled before loaders fork, the memory is shared by their processes. The disk cache is found by the content of all
    files of a case and every option of its preparation (`caching`), so neither can change without being seen.

    Args:
        asked: what must hold of a case, with the normalisation and the labels that are kept.
        cache: `memory` (True), `disk` or `none` (False).
        cache_dir: Folder of the disk cache: see `caching.cache_folder`.
        extra: As in `transforms.preparing`.
        name: Of the data set, for the progress bar.

    Raises:
        ValueError: if a transform of `extra` is random or, with a disk cache, cannot be described.
    """

    def __init__(
        self,
        asked: Asked,
        cache: Cache = True,
        cache_dir: str | None = None,
        extra: Sequence[Transform] = (),
        name: str = "",
    ) -> None:
        for transform in Compose(list(extra)).flatten().transforms:
            if isinstance(transform, RandomizableTrait):
                raise ValueError(f"{type(transform).__name__} is random, expected transforms of one result in extra")
        normalise = cast(Normalise, asked.normalise)
        self.prepare = preparing(normalise, asked.clip, asked.mask_images, extra)
        self.read, self.asked, self.name = read_case, asked, name
        self.cache = cache_mode(cache)
        self.world_kept = not extra
        self.kept: list[int] | None = None
        self._store = Store(cache_folder(cache_dir)) if self.cache == "disk" else None
        self._recipe = recipe(asked.labels, self.prepare) if self._store else ""
        self._cached: dict[Case, Subject] = {}
        self._facts: dict[Case, Facts] = {}
        self._stamps: dict[Case, Stamp] = {}
        self._keys: dict[Case, str] = {}

    @property
    def digests(self) -> list[tuple[Path, str]]:
        """The images read so far, each with a digest of its prepared values."""
        return [(case.image, facts.digest) for case, facts in self._facts.items()]

    @property
    def present(self) -> list[set[int]]:
        """The labels above 0 of every label map read so far, under the numbers that they have here."""
        maps = [facts.voxels.nonzero().flatten().tolist() for facts in self._facts.values() if facts.labelled]
        return [set(labels) - {0} for labels in maps]

    @property
    def largest_label(self) -> int:
        """Of the cases read so far."""
        largest = max((len(facts.voxels) for facts in self._facts.values()), default=1) - 1
        return largest if self.kept is None else min(largest, max(self.kept))

    def fill(self, pairs: Sequence[CasePair], findings: Findings, progress: bool = True) -> None:
        """Read and check the cases of the pairs, those again whose files have changed.

        Raises:
            ValueError: with up to five sentences.
        """
        for case in self._watched(unique_cases(pairs), progress):
            self._get(case, findings)
        findings.stop()
        for fixed, moving in pairs:
            self._compare(fixed, moving, findings)
        findings.stop()

    def keep_large(self, cases: Sequence[Case], least: int, progress: bool = True) -> list[int]:
        """Labels with fewer voxels than `least` in any of the cases become background; returns those known.

        So does a label that none of the cases has.

        Raises:
            ValueError: if a case is not as expected, or no label is left.
        """
        findings = Findings()
        for case in self._watched(cases, progress):
            if case not in self._facts:
                self._get(case, findings, keep=False)
        findings.stop()
        kept = large_labels([self._facts[case].voxels for case in cases], least)
        if kept != self.kept:
            if self.kept is not None:
                self._cached.clear()
            self.kept = kept
            for case, subject in self._cached.items():
                self._cached[case] = without_small(subject, kept)
        present = {label for facts in self._facts.values() for label in facts.voxels.nonzero().flatten().tolist()}
        return sorted(present - {0, *kept})

    def __getitem__(self, case: Case) -> Subject:
        """The case, from memory or disk if it is there.

        Raises:
            ValueError: if its values are not as expected.
        """
        findings = Findings()
        subject = self._get(case, findings)
        findings.stop()
        assert subject is not None
        return subject

    def pair(self, fixed: Case, moving: Case) -> Sample:
        """One pair, with what both cases have; `moving_affine` where the moving case lies on another grid.

        Raises:
            ValueError: if the cases differ in their number of landmarks, or in their grid though one is expected.
        """
        one, two = self[fixed], self[moving]
        sample: Sample = {"spacing": one["spacing"], "affine": one["affine"]}
        for key, name in [("image", ""), ("label", "_label"), ("mask", "_mask")]:
            sample |= {f"{side}{name}": case[key] for side, case in (("fixed", one), ("moving", two)) if key in case}
        if "points" in one and "points" in two:
            sample |= {"fixed_points": one["points"], "moving_points": two["points"]}
        findings = Findings()
        if self._compare(fixed, moving, findings):
            sample["moving_affine"] = two["affine"]
        findings.stop()
        if self.world_kept:
            sample |= {"fixed_file": str(fixed.image), "moving_file": str(moving.image)}
        return {**sample, "fixed_id": fixed.id, "moving_id": moving.id}

    def _watched(self, cases: Sequence[Case], progress: bool) -> Iterator[Case]:
        """The cases with a bar; forgets those whose files have changed since they were read."""
        title = f"{'Reading' if self.cache == 'none' else 'Caching'} {self.name or 'cases'}"
        for case in watched(cases, title, progress):
            now = stamp(case.files)
            if self._stamps.get(case) != now:
                for memory in (self._cached, self._facts, self._keys):
                    memory.pop(case, None)
                self._stamps[case] = now
            yield case

    def _get(self, case: Case, findings: Findings, keep: bool = True) -> Subject | None:
        """A case from memory, from disk or from its files; None if it has errors."""
        if case in self._cached:
            return self._cached[case]
        subject = self._stored(case, findings) if self._store else self._load(case, findings)
        if subject is None:
            return None
        if case not in self._facts:
            self._facts[case] = facts_of(subject)
        if self.kept is not None:
            subject = without_small(subject, self.kept)
        if keep and self.cache == "memory":
            self._cached[case] = subject
        return subject

    def _stored(self, case: Case, findings: Findings) -> Subject | None:
        """A case from the disk cache, where it is put if it is not there."""
        assert self._store is not None
        paths = case.files
        before = stamp(paths)
        if case not in self._keys:
            try:
                self._keys[case] = content_key(paths, self._recipe)
            except OSError as error:
                findings.error(str(error.filename), f"cannot be read ({error.strerror}), expected a file of {case.id}")
                return None
        subject = self._store.load(self._keys[case])
        if subject is None:
            subject = self._load(case, findings)
            # what was read is stored only under the name of what was hashed
            if subject is not None and stamp(paths) == before == self._stamps.setdefault(case, before):
                self._store.save(self._keys[case], subject)
        return subject

    def _load(self, case: Case, findings: Findings) -> Subject | None:
        """Read, check and prepare a case; None if it has errors."""
        before = findings.errors
        volumes = self.read(case, self.asked, findings)
        if volumes is None:
            return None
        subject = cast(Subject, self.prepare(tensors(volumes)))
        if volumes.headers.points is not None:
            stored = torch.from_numpy(volumes.headers.image.affine)
            points = torch.from_numpy(volumes.headers.points.astype("float32")).T.contiguous()
            subject["points"] = carried(points, stored, subject["affine"])
            check_inside(subject, case, findings)
        label = subject.get("label", torch.zeros(1, dtype=torch.int16))
        subject["voxels"] = torch.bincount(label.flatten())
        return subject if findings.errors == before else None

    def _compare(self, fixed: Case, moving: Case, findings: Findings) -> bool:
        """Whether the cases lie on two grids, an error for a common grid; their landmarks are counted."""
        one, two = self._facts[fixed], self._facts[moving]
        if fixed.keypoints and moving.keypoints:
            check_counts(moving.keypoints, two.landmarks, fixed.keypoints, one.landmarks, findings)
        places = one.affine.numpy(), two.affine.numpy()
        if same_grid(one.shape, places[0], two.shape, places[1]):
            return False
        if self.asked.common_grid:
            away = f", a corner {corners_apart(one.shape, *places):.3g} voxels away" if one.shape == two.shape else ""
            sentence = f"lies on another grid ({times(two.shape)}{away}) than {fixed.image} ({times(one.shape)})"
            findings.error(moving.image, f"{sentence} once prepared, expected one grid: set common_grid to false")
        return True
