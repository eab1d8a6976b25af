"""Predicted displacement fields and warped images as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.callbacks.volumes import as_volume, grid_affine, save_volume, warped_file
from dio_lightning.fields import on_moving_grid, resample, warp
from dio_lightning.fields.files import half
from dio_lightning.fields.names import Ids, full_name, listed_pairs, own_names, pair_name
from dio_lightning.files import replacing
from dio_lightning.metrics import warp_label
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import one_pair

SUFFIX = {"nii": ".nii.gz", "npz": ".npz"}


class FieldWriter(BasePredictionWriter):
    """Writes disp_<fixed>_<moving>.nii.gz (or .npz) and warped_<fixed>_<moving>.nii.gz while predicting.

    Displacements have the Learn2Reg layout: (X, Y, Z, 3), voxels of the fixed grid, component i along array axis i. A
    2-D field is one slice of a volume, (X, Y, 1, 2). NIfTI files are float32 with the affine of the grid; npz files
    hold one array, float16 unless told otherwise. Half resolution is what Learn2Reg's tasks of 2020 and 2021 read: the
    same field sampled on a grid of half the size (odd sizes rounded up) with the same ends, its values still voxels of
    the full grid; those tasks had the channels first. For Learn2Reg's files on the command line:

        dio-lightning predict ... --trainer.callbacks FieldWriter --trainer.callbacks.format npz

    Names are Learn2Reg's short ones where they mean one pair among all that are predicted, else the full ids
    (`fields.names.own_names`). The warped image has intensities, type and scale of the moving file, on the fixed grid;
    where a pair is no whole volume of a file (synthetic pairs, slices, volumes that a data set resamples), it has the
    intensities that the method saw, normalised, as float32. Both forms of a header are the fixed image's affine in mm.
    """

    def __init__(
        self,
        out: str | None = None,
        warped: bool = True,
        labels: bool | None = None,
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
            labels: write the moving label maps too, warped to the nearest voxel of the full grid (0 outside), as
                label_<fixed>_<moving>.nii.gz; by default those of pairs whose fixed image has none, as for an atlas.
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
        self.out, self.warped, self.labels, self.overwrite = out, warped, labels, overwrite
        self.format, self.resolution, self.channels = format, resolution, channels
        self.dtype = np.dtype(dtype or ("float32" if format == "nii" else "float16"))
        self._names: dict[Ids, tuple[str, ...]] = {}
        self._written: dict[str, Ids] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the folder and name all pairs before anything is solved.

        Raises:
            FileExistsError: it holds displacement fields, and overwrite is off.
            ValueError: if two pairs would share a name.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        self._written = {}
        self._names = own_names(listed_pairs(getattr(trainer, "datamodule", None), "test") or [])
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
        files = batch.get("moving_file")
        moved = warp(batch["moving"].to(u), on_moving_grid(u, batch)) if self.warped and files is None else None
        for sample in range(len(u)):
            index = batch_indices[sample] if batch_indices else batch_idx * len(u) + sample
            ids = pair_ids(batch, sample, f"{dataloader_idx}x{index}")
            name, *others = self._own(ids, getattr(trainer, "world_size", 1))
            affine = grid_affine(batch, sample)
            self._save_field(folder / f"disp_{name}", u[sample : sample + 1], affine)
            for other in others:
                # left by an earlier run under another name of the pair, it would contradict the new one
                for suffix in SUFFIX.values():
                    (folder / f"disp_{other}{suffix}").unlink(missing_ok=True)
            self._save_label(folder / f"label_{name}.nii.gz", u[sample : sample + 1], one_pair(batch, sample), affine)
            if moved is not None:
                save_volume(folder / f"warped_{name}.nii.gz", as_volume(moved[sample])[..., 0], affine)
            elif files is not None and self.warped:
                v = on_moving_grid(u[sample : sample + 1].cpu().double(), one_pair(batch, sample))[0]
                values, header = warped_file(v, Path(files[sample]), batch["moving"].shape[2:])
                save_volume(folder / f"warped_{name}.nii.gz", values, affine, header.scale)

    def _save_field(self, stem: Path, u: Tensor, affine: NDArray[np.float64]) -> None:
        """One displacement (1, d, *s); a file of the other format, left by an earlier run, would contradict it."""
        full = u.shape[2:]
        if self.resolution == "half":
            u = resample(u, half(full))
            affine = affine.copy()
            for axis, (n, h) in enumerate(zip(full, u.shape[2:], strict=True)):
                affine[:3, axis] *= (n - 1) / max(h - 1, 1) if n > 1 else 1.0
        array = as_volume(u[0])
        if self.channels == "first":
            array = np.moveaxis(array, -1, 0)
        array = np.ascontiguousarray(array.astype(self.dtype))
        file = stem.with_name(stem.name + SUFFIX[self.format])
        if self.format == "nii":
            save_volume(file, array, affine)
        else:
            with replacing(file) as temporary:
                np.savez_compressed(temporary, displacement=array)
        for suffix in SUFFIX.values():
            if suffix != SUFFIX[self.format]:
                stem.with_name(stem.name + suffix).unlink(missing_ok=True)

    def _save_label(self, path: Path, u: Tensor, pair: Pair, affine: NDArray[np.float64]) -> None:
        wanted = "fixed_label" not in pair if self.labels is None else self.labels
        if wanted and "moving_label" in pair:
            label = warp_label(pair["moving_label"], on_moving_grid(u, pair))[0, 0].cpu().numpy()
            save_volume(path, label.reshape(*label.shape, *[1] * (3 - label.ndim)), affine)

    def folder(self, trainer: Trainer) -> Path:
        """Where the files go."""
        return Path(self.out) if self.out is not None else Path(trainer.default_root_dir) / "predictions"

    def _own(self, ids: Ids, processes: int) -> tuple[str, ...]:
        """The names of a pair, the one that is written first; two pairs never share one."""
        if ids in self._names:
            return self._names[ids]
        # of pairs that no data module lists, several processes know a part each
        name = pair_name(*ids) if processes == 1 else full_name(*ids)
        if self._written.setdefault(name, ids) != ids:
            raise ValueError(f"pairs {self._written[name]} and {ids} would both be written as {name}")
        return (name,)


def pair_ids(batch: Pair, sample: int, index: str) -> Ids:
    """Ids of one pair of a batch; those of pairs without a name are made of `index`."""
    fixed = str(batch["fixed_id"][sample]) if "fixed_id" in batch else f"fixed{index}"
    moving = str(batch["moving_id"][sample]) if "moving_id" in batch else f"moving{index}"
    return fixed, moving
