"""Displacements out of files: any tool as a method like any other."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dio_lightning.fields import on_one_grid
from dio_lightning.fields.files import read_displacement
from dio_lightning.fields.names import Ids, find_all, find_field, listed_pairs
from dio_lightning.layers import Run
from dio_lightning.modules.base import RegistrationModule
from dio_lightning.modules.refinement import Refinement
from dio_lightning.pair import Pair

SPLITS = {"validate": "val", "test": "test", "predict": "test"}


class Precomputed(RegistrationModule):
    """Reads the displacement of every pair from a folder, so that every score applies to fields made by any tool.

    Files are disp_<fixed>_<moving> in .nii.gz or .npz with Learn2Reg's short or long names or the full ids of the pair
    (`fields.names.own_names`), in any layout and resolution of `fields.files.read_displacement`. Values are voxels of
    the fixed grid, but for the files of ITK and ANTs, which are resampled onto it. It has no weights and nothing to
    train.

    Args:
        folder: where the files are, such as `predictions` of `dio-lightning predict`.
        refine: see `RegistrationModule`.

    Raises:
        FileNotFoundError: if there is no such folder; in `setup`, naming every pair that has no file.
        ValueError: in `setup`, if two files fit one pair or one file fits two pairs, or a file cannot be read, or has
            another shape or place than its pair or values that are not finite.
    """

    def __init__(self, folder: str, refine: Refinement | None = None) -> None:
        super().__init__(refine=refine)
        self.folder = Path(folder).expanduser()
        self._files: dict[Ids, Path] = {}
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is no folder, expected one with displacement fields")

    @property
    def title(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def setup(self, stage: str) -> None:
        """Looks for the files of all pairs, and reads them, before the first one is scored."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None and not self._files:
            self.examine(data, stage)

    def examine(self, data: Any, stage: str) -> None:  # noqa: ANN401
        """See `setup`."""
        if stage not in SPLITS:
            return
        split = SPLITS[stage]
        dataset = getattr(data, f"{split}_dataloader")().dataset
        listed = listed_pairs(data, split)
        if listed is None:
            listed = [(sample["fixed_id"], sample["moving_id"]) for sample in samples_of(dataset)]
        self._files = find_all(self.folder, listed)
        problems: list[str] = []
        for sample in samples_of(dataset):
            path = self._files[sample["fixed_id"], sample["moving_id"]]
            try:
                read_displacement(path, sample["fixed"].shape[1:], affine_of(sample))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            more = f" (and {len(problems) - 1} more files are not as expected)" if len(problems) > 1 else ""
            raise ValueError(problems[0] + more)

    def register(self, pair: Pair, run: Run = Run()) -> Float[Tensor, "b d *s"]:
        """The displacement on the pair's grid, refined where there is a refinement."""
        self.expect_no_steps(run)
        fixed = pair["fixed"]
        if "fixed_id" not in pair or "moving_id" not in pair:
            raise ValueError("displacements in files need pairs with a fixed_id and a moving_id")
        fields = []
        for index, ids in enumerate(zip(pair["fixed_id"], pair["moving_id"], strict=True)):
            path = self._files.get(ids) or find_field(self.folder, *ids)
            affine = pair["affine"][index].double().cpu().numpy() if "affine" in pair else None
            fields.append(read_displacement(path, fixed.shape[2:], affine))
        u = torch.stack(fields).to(fixed)
        return u if self.refine is None else self.refine(on_one_grid(pair), u)[0]

    def _evaluate(self, pair: Pair, stage: str, index: int = 0) -> dict[str, Tensor]:
        return {"displacement": self.register(pair)}


def samples_of(dataset: Dataset) -> Iterable[dict]:
    """The pairs of a map-style data set, in order."""
    sequence = cast(list[dict], dataset)
    return (sequence[index] for index in range(len(sequence)))


def affine_of(sample: dict) -> NDArray[np.float64] | None:
    """Voxels of a pair's fixed grid to RAS millimetres (4, 4), where the pair says it."""
    return sample["affine"].double().numpy() if "affine" in sample else None
