"""Predicted displacement fields and warped images as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from nibabel.loadsave import save
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.callbacks.files import replacing
from dio_lightning.fields import on_moving_grid, resample, warp
from dio_lightning.fields.files import half, pair_name
from dio_lightning.pair import Pair

SUFFIX = {"nii": ".nii.gz", "npz": ".npz"}


class FieldWriter(BasePredictionWriter):
    """Writes disp_<fixed>_<moving>.nii.gz (or .npz) and warped_<fixed>_<moving>.nii.gz while predicting.

    Displacements have the Learn2Reg layout: (X, Y, Z, 3), voxels of the fixed grid, component i along array axis i. A
    2-D field is one slice of a volume, (X, Y, 1, 2). NIfTI files are float32 with the affine of the grid; npz files
    hold one array, float16 unless told otherwise. Half resolution is what Learn2Reg's tasks of 2020 and 2021 read: the
    same field sampled on a grid of half the size (odd sizes rounded up) with the same ends, its values still voxels of
    the full grid; those tasks had the channels first. For Learn2Reg's files on the command line:

        dio-lightning predict ... --trainer.callbacks FieldWriter --trainer.callbacks.format npz
    """

    def __init__(
        self,
        out: str | None = None,
        warped: bool = True,
        overwrite: bool = False,
        format: Literal["nii", "npz"] = "nii",
        resolution: Literal["full", "half"] = "full",
        dtype: Literal["float16", "float32"] | None = None,
        channels: Literal["last", "first"] = "last",
    ) -> None:
        """Choose what is written.

        Args:
            out: folder; by default `predictions` under the trainer's default_root_dir.
            warped: write the warped moving images too, on the full grid.
            overwrite: replace the fields of an earlier run.
            format: of the displacements, `nii` (compressed NIfTI) or `npz` (compressed NumPy).
            resolution: of the displacements, `full` or `half`.
            dtype: of the displacements; by default float32 in nii and float16 in npz files.
            channels: where the components of a displacement are, `last` (X, Y, Z, 3) or `first` (3, X, Y, Z).

        Raises:
            ValueError: for another value, or float16 in NIfTI files, which have no such type.
        """
        super().__init__(write_interval="batch")
        if format not in SUFFIX or resolution not in ("full", "half") or channels not in ("last", "first"):
            raise ValueError(
                f"FieldWriter: format is {format!r}, resolution {resolution!r}, channels {channels!r}, expected "
                "nii|npz, full|half, last|first"
            )
        if dtype not in (None, "float32", *(["float16"] if format == "npz" else [])):
            raise ValueError(f"FieldWriter: dtype is {dtype!r}, expected float32, or float16 with format npz")
        self.out, self.warped, self.overwrite = out, warped, overwrite
        self.format, self.resolution, self.channels = format, resolution, channels
        self.dtype = np.dtype(dtype or ("float32" if format == "nii" else "float16"))
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
        folder = self.folder(trainer)
        first = next(iter(sorted(path for suffix in SUFFIX.values() for path in folder.glob(f"disp_*{suffix}"))), None)
        # every process looks before the first one writes
        trainer.strategy.barrier()
        if first is not None and not self.overwrite:
            raise FileExistsError(
                f"{first} exists: choose another folder (FieldWriter.out or trainer.default_root_dir), "
                "or give --overwrite"
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
        folder = self.folder(trainer)
        moved = warp(batch["moving"].to(u), on_moving_grid(u, batch)) if self.warped else None
        for sample in range(len(u)):
            index = batch_indices[sample] if batch_indices else batch_idx * len(u) + sample
            name = self._name(batch, sample, f"{dataloader_idx}x{index}")
            affine = grid_affine(batch, sample)
            self._save_field(folder / f"disp_{name}", u[sample : sample + 1], affine)
            if moved is not None:
                _save(folder / f"warped_{name}.nii.gz", as_volume(moved[sample])[..., 0], affine)

    def _save_field(self, stem: Path, u: Tensor, affine: NDArray[np.float64]) -> None:
        """One displacement (1, d, *s); a file of the other format, left by an earlier run, would contradict it."""
        full = u.shape[2:]
        if self.resolution == "half":
            u = resample(u, half(full))
            affine = affine.copy()
            for axis, (n, h) in enumerate(zip(full, u.shape[2:], strict=True)):
                affine[:3, axis] *= (n - 1) / max(h - 1, 1)
        array = as_volume(u[0])
        if self.channels == "first":
            array = np.moveaxis(array, -1, 0)
        array = np.ascontiguousarray(array.astype(self.dtype))
        file = stem.with_name(stem.name + SUFFIX[self.format])
        if self.format == "nii":
            _save(file, array, affine)
        else:
            with replacing(file) as temporary:
                np.savez_compressed(temporary, displacement=array)
        for suffix in SUFFIX.values():
            if suffix != SUFFIX[self.format]:
                stem.with_name(stem.name + suffix).unlink(missing_ok=True)

    def folder(self, trainer: Trainer) -> Path:
        """Where the files go."""
        return Path(self.out) if self.out is not None else Path(trainer.default_root_dir) / "predictions"

    def _name(self, batch: Pair, sample: int, index: str) -> str:
        """The pair's part of a file name; two pairs never share one."""
        fixed, moving = pair_ids(batch, sample, index)
        name = pair_name(fixed, moving)
        if self._written.setdefault(name, (fixed, moving)) != (fixed, moving):
            raise ValueError(f"pairs {self._written[name]} and {(fixed, moving)} would both be written as {name}")
        return name


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
