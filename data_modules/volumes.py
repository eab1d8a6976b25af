"""Pairs of volumes that lie in files: what every data set on disk shares, whatever its layout."""

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from monai.transforms.transform import Transform
from torch.utils.data import Dataset

from data_modules.augment import Augmentation, Augmented, Crop, Flip
from data_modules.base import Split
from data_modules.checking.findings import Findings
from data_modules.checking.headers import Asked, dimension_of
from data_modules.checking.report import check_stage, look_at, unreadable
from data_modules.checking.sets import check_chosen
from data_modules.checking.splits import check_copies
from data_modules.layout import unique_cases
from data_modules.listing import ListedPairs
from data_modules.options import check_cuts, check_exchange, check_window
from data_modules.preparation.caching import Cache, Mode, cache_mode
from data_modules.preparation.labels import Labels, check_labels, renamed
from data_modules.preparation.pairs import PairList
from data_modules.preparation.slices import Plane, SlicePairs, Slicing
from data_modules.preparation.subjects import Subjects
from data_modules.preparation.transforms import Normalise
from dio_lightning.findings import Report

STAGES: dict[str | None, list[Split]] = {
    "fit": ["train", "val"],
    "validate": ["val"],
    "test": ["test"],
    "predict": ["test"],
    None: ["train", "val", "test"],
}


class VolumePairs(ListedPairs):
    """Pairs of volumes in files, in two or three dimensions; a subclass says which files make a pair (`read_layout`).

    Cases of validation and test pairs are never drawn for unpaired training.

    With `plane` every volume is cut into two-dimensional slices, paired at equal index. Training draws from all slices
    of all candidate pairs, in epochs as long as without `plane`; validation, test and prediction read the slices first,
    first + every, ... of each pair in order. Ids end in the index (`_s040`), and landmarks are dropped. With `cache`
    `none` a volume is read for every slice.

    Args:
        root: The folder.
        batch_size: Pairs per batch; more than one needs images of equal shape.
        num_workers: Loader processes.
        steps_per_epoch: Training batches per epoch and process. Default: as many pairs as there are listed pairs,
            training cases (`random`) or candidate pairs (`ordered`, `all`).
        pairing: Candidates when no training pairs are listed: `random` and `all` every ordered pair of two training
            cases, `ordered` each case with the next one. They differ in the length of an epoch.
        normalise: Intensities to [0, 1]: `max` from the image's range, `percentile` from its 0.5 and 99.5 % values,
            `window` from `clip`, `none` leaves them.
        clip: Least and largest intensity kept.
        cache: `memory` (or true) keeps every prepared case (float32 image, int16 label, uint8 mask) in the memory of
            each process; `disk` keeps them in `cache_dir`, which all processes and later runs share, found by the
            content of their files and all options of preparation; both check all values before training. `none` (or
            false) checks values whenever they are read.
        cache_dir: Folder of the disk cache; what is in it may be deleted at any time. Default: dio-lightning in
            $XDG_CACHE_HOME or ~/.cache.
        seed: Of the order of the training pairs.
        labels: The labels kept, by number or by the data set's name: `all`, one, a list, or a mapping of each to the
            number that it gets, as for labels above 32767 or to merge some. Others become background.
        min_voxels: Labels with fewer voxels than this in any validation or test case become background, as VoxelMorph
            did with 100 (Balakrishnan et al., IEEE TMI 38, 2019). Every stage then reads all labels of both splits.
        mask_images: Images are 0 outside of their mask, once normalised.
        crop: Voxels of a random crop of every training pair; an axis that is shorter stays whole.
        flips: Axes along which training pairs are flipped with probability one half.
        augment: Random changes of the training pairs, in order, before `crop` and `flips`: Flip, RandomAffine,
            RandomDeformation, RandomContrast, RandomIntensity, RandomAnisotropy, Swap, Crop of `data_modules.augment`.
        plane: Cut volumes into slices of this plane. The affine says across which array axis; it must be the same one,
            and as long, in all cases. `crop` and `flips` then count the two axes that are left.
        slices: First and last index along that axis, both included. Default: all.
        every: Step from slice to slice in validation, test and prediction.
        common_grid: Fixed and moving image must lie on one grid. If not, a moving image may have another size or
            spacing: training brings it to the fixed grid; elsewhere its `moving_affine` says where it lies.

    Raises:
        ValueError: if an argument is not as expected.
        FileNotFoundError, ValueError: in `setup`, with up to five sentences that name file, value and expectation.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 1,
        num_workers: int = 0,
        steps_per_epoch: int | None = None,
        pairing: Literal["random", "ordered", "all"] = "random",
        normalise: Normalise = "max",
        clip: tuple[float, float] | None = None,
        cache: Cache = True,
        cache_dir: str | None = None,
        seed: int = 0,
        labels: Labels = "all",
        min_voxels: int = 0,
        mask_images: bool = False,
        crop: Sequence[int] | None = None,
        flips: Sequence[int] = (),
        augment: Augmentation | list[Augmentation] | None = None,
        plane: Plane | None = None,
        slices: tuple[int, int] | None = None,
        every: int = 1,
        common_grid: bool = True,
    ) -> None:
        super().__init__(batch_size, num_workers, steps_per_epoch, seed)
        check_labels(labels)
        check_window(normalise, clip)
        check_cuts(plane, slices, every, crop, flips)
        if min_voxels < 0:
            raise ValueError(f"min_voxels is {min_voxels}, expected an integer of at least 0")
        if plane is not None and not common_grid:
            raise ValueError("plane cuts slices at equal index, expected common_grid to be true with it")
        self.slicing = Slicing(plane, slices, every) if plane is not None else None
        self.crop, self.flips = crop, flips
        self.augment = [augment] if isinstance(augment, Augmentation) else augment or []
        self.root, self.pairing = Path(root).expanduser(), pairing
        self.cache: Mode = cache_mode(cache)
        self.cache_dir, self.common_grid = cache_dir, common_grid
        self.min_voxels, self.mask_images = min_voxels, mask_images
        self.normalise: Normalise = normalise
        self.clip = clip
        self.labels: Labels = labels
        self._said: set[str] = set()

    @cached_property
    def subjects(self) -> Subjects:
        """Reads cases, once each."""
        return Subjects(self.asked, self.cache, self.cache_dir, self.preparation(), self.root.name)

    @cached_property
    def asked(self) -> Asked:
        """What must hold of the files."""
        return Asked(self.common_grid, self.normalise, self.clip, self.chosen, self.mask_images)

    def preparation(self) -> Sequence[Transform]:
        """MONAI's dictionary transforms of a case's image, label and mask, before intensities are normalised.

        They always give the same result, may change the grid, and are part of the name of what is cached.
        """
        return ()

    def prepare_data(self) -> None:
        """Fills the disk cache; Lightning has one process of each node do this before any calls `setup`."""
        if self.cache == "disk":
            self.setup(self.trainer.state.fn if self.trainer is not None else None)

    def setup(self, stage: str | None = None) -> None:
        """Checks every case of the stage and reads it into the cache."""
        splits, findings = STAGES[stage], Findings()
        for split in splits:
            self.pairs(split)
        if "train" in splits:
            # what labels lack is said before the long work
            check_exchange(self.augmentations(), self.layout.train, self.batch_size)
        progress = self.trainer is None or self.trainer.is_global_zero
        pairs = check_stage(self.layout, splits, self.asked, findings, progress)
        findings.stop()
        if self.slicing is not None:
            self.slicing.check(unique_cases(pairs))
        if self.cache != "none":
            self.subjects.fill(pairs, findings, progress)
            check_copies(self.subjects.digests, self.layout, findings)
            check_chosen(self.root, self.chosen, self.subjects.present, findings)
        findings.stop()
        self._tell(findings)
        if self.min_voxels:
            held = unique_cases([*self.layout.val, *self.layout.test])
            dropped = self.subjects.keep_large(held, self.min_voxels, progress)
            rank_zero_info(
                f"{self.root.name}: labels {dropped} are background, with fewer than {self.min_voxels} voxels"
            )

    def _tell(self, findings: Findings) -> None:
        """Warnings, and how the splits came about, once each."""
        listed = self._listed[1]
        warnings = [*listed.sentences("warning"), *findings.sentences("warning")]
        for tell, sentences in ((rank_zero_info, listed.sentences("note")), (rank_zero_warn, warnings)):
            for sentence in [sentence for sentence in sentences if sentence not in self._said]:
                tell(sentence)
                self._said.add(sentence)

    def check(self) -> Report:
        """Reads every case once and says what is wrong with which file, without stopping at the first problem."""
        title = type(self).__name__
        try:
            layout, findings = self._listed
            conformed, asked = bool(self.preparation()), self.asked
        except (ValueError, FileNotFoundError) as error:
            if not self.root.is_dir():
                raise
            return unreadable(title, self.root, str(error))
        return look_at(title, self.root, layout, asked, conformed, findings, sys.stderr.isatty())

    def dataset(self, split: Split) -> Dataset:
        """Pairs of a split, or their slices; those of training are augmented."""
        listed = self.pairs(split)
        pairs: Dataset = PairList(self.subjects, listed, training=split == "train")
        if self.slicing is not None:
            axis, indices = self.slicing.cuts(listed[0][0], training=split == "train")
            pairs = SlicePairs(pairs, axis, indices)
        steps = self.augmentations() if split == "train" else []
        return Augmented(pairs, steps) if steps else pairs

    def augmentations(self) -> list[Augmentation]:
        """What is done to a training pair, in order.

        Raises:
            ValueError: if one needs names of labels that the data set does not have.
        """
        last = [*([Crop(self.crop)] if self.crop else []), *([Flip(self.flips)] if self.flips else [])]
        return [*(step.named(self.label_names) for step in self.augment), *last]

    @property
    def num_labels(self) -> int:
        """The largest label kept: of `labels`, of the JSON's names, or of the cases read so far; 0 without labels."""
        kept = self.subjects.kept or (self.chosen and self.chosen.values())
        if kept:
            return max(kept)
        return max([*self.layout.label_names, self.subjects.largest_label, 0])

    @property
    def label_names(self) -> dict[int, str]:
        """Names by label as it is here, background included; empty if the data set gives none."""
        names, kept = self.layout.label_names, self.subjects.kept
        if self.chosen is not None:
            names = renamed(names, self.chosen)
        return {k: v for k, v in names.items() if kept is None or k in (0, *kept)}

    @property
    def spatial_dims(self) -> int:
        """Dimensions of the first case; 2 for slices."""
        if self.slicing is not None:
            return 2
        return dimension_of(self.layout.every_case[0])
