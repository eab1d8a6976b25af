"""Predicted displacement fields and warped images as NIfTI files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from nibabel.loadsave import save
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.callbacks.files import replacing
from dio_lightning.fields import warp
from dio_lightning.pair import Pair


class FieldWriter(BasePredictionWriter):
    """Writes disp_<fixed>_<moving>.nii.gz and warped_<fixed>_<moving>.nii.gz while predicting.

    Displacements have the Learn2Reg layout: (X, Y, Z, 3) float32, voxels of the fixed grid, component i along array
    axis i, with the affine of the fixed image. A 2-D field is one slice of a volume, (X, Y, 1, 2).
    """

    def __init__(self, out: str | None = None, warped: bool = True, overwrite: bool = False) -> None:
        """Choose what is written.

        Args:
            out: folder; by default `predictions` under the trainer's default_root_dir.
            warped: write the warped moving images too.
            overwrite: replace the fields of an earlier run.
        """
        super().__init__(write_interval="batch")
        self.out, self.warped, self.overwrite = out, warped, overwrite
        self._written: dict[str, tuple[str, str]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the folder before anything is solved.

        Raises:
            FileExistsError: it holds displacement fields, and overwrite is off.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        self._written = {}
        folder = self._folder(trainer)
        first = next(iter(sorted(folder.glob("disp_*.nii.gz"))), None)
        # every process looks before the first one writes
        trainer.strategy.barrier()
        if first is not None and not self.overwrite:
            raise FileExistsError(
                f"{first} exists: choose another folder (FieldWriter.out or trainer.default_root_dir), "
                "or set FieldWriter.overwrite to true"
            )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,  # noqa: ANN401
        batch_indices: Sequence[int] | None,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the pairs of a batch; `prediction` is the displacement (b, d, *s)."""
        u: Tensor = prediction.detach().float()
        folder = self._folder(trainer)
        moved = warp(batch["moving"].to(u), u) if self.warped else None
        for sample in range(len(u)):
            index = batch_indices[sample] if batch_indices else batch_idx * len(u) + sample
            name = self._name(batch, sample, f"{dataloader_idx}x{index}")
            affine = grid_affine(batch, sample)
            _save(folder / f"disp_{name}.nii.gz", as_volume(u[sample]), affine)
            if moved is not None:
                _save(folder / f"warped_{name}.nii.gz", as_volume(moved[sample])[..., 0], affine)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.out) if self.out is not None else Path(trainer.default_root_dir) / "predictions"

    def _name(self, batch: Pair, sample: int, index: str) -> str:
        """The pair's part of a file name; two pairs never share one."""
        fixed, moving = pair_ids(batch, sample, index)
        name = pair_name(fixed, moving)
        if self._written.setdefault(name, (fixed, moving)) != (fixed, moving):
            raise ValueError(f"pairs {self._written[name]} and {(fixed, moving)} would both be written as {name}")
        return name


def pair_name(fixed: str, moving: str) -> str:
    """A pair's part of a file name, as Learn2Reg has it.

    0011_0012 for subjects of modality 0000, 0011_0000_0012_0001 if one has another; ids without Learn2Reg's four digits
    keep their letters and digits.
    """
    found = [re.fullmatch(r"(?:.*_)?(\d{4})_(\d{4})|(?:.*_)?(\d{4})", _stem(name)) for name in (fixed, moving)]
    short = all(match is None or match[2] in (None, "0000") for match in found)
    names = []
    for match, name in zip(found, (fixed, moving), strict=True):
        if match is None:
            names.append(re.sub(r"[^A-Za-z0-9]+", "-", _stem(name)).strip("-") or "unnamed")
        else:
            subject = match[1] or match[3]
            names.append(subject if short or match[2] is None else f"{subject}_{match[2]}")
    return "_".join(names)


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name.replace("\\", "/").rsplit("/", 1)[-1])


def pair_ids(batch: Pair, sample: int, index: str) -> tuple[str, str]:
    """Ids of one pair of a batch; those of pairs without a name are made of `index`."""
    fixed = str(batch["fixed_id"][sample]) if "fixed_id" in batch else f"fixed{index}"
    moving = str(batch["moving_id"][sample]) if "moving_id" in batch else f"moving{index}"
    return fixed, moving


def grid_affine(batch: Pair, sample: int) -> NDArray[np.float64]:
    """Voxel to world (4, 4) of the fixed grid; without one, the spacing on the diagonal, or 1 mm."""
    if "affine" in batch:
        return batch["affine"][sample].double().cpu().numpy()
    affine = np.eye(4)
    if "spacing" in batch:
        spacing = batch["spacing"][sample].double().cpu().numpy()
        np.fill_diagonal(affine[: len(spacing), : len(spacing)], spacing)
    return affine


def as_volume(image: Tensor) -> NDArray[np.float32]:
    """Channels last, with three spatial axes: (c, *s) -> (x, y, z, c)."""
    array = image.detach().to("cpu", torch.float32).movedim(0, -1).numpy()
    *size, channels = array.shape
    return array.reshape(*size, *[1] * (3 - len(size)), channels)


def _save(path: Path, array: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    image = Nifti1Image(np.ascontiguousarray(array), affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        save(image, temporary)
