"""A Learn2Reg submission: every field checked, then one zip."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

from dio_lightning.callbacks.files import replacing
from dio_lightning.challenge.evaluate import arguments
from dio_lightning.errors import times
from dio_lightning.experiment import RegistrationCLI, prepare
from dio_lightning.fields.files import find_field, half, pair_names, stored
from dio_lightning.modules.precomputed import samples_of

SHOWN = 5
SUFFIXES = (".nii.gz", ".npz")
Resolution = Literal["full", "half"]


def submit(
    folder: Path, options: Sequence[str], out: Path, resolution: Resolution = "full", overwrite: bool = False
) -> int:
    """Check the displacement fields of a folder and write them into a zip; the number of fields.

    Learn2Reg's evaluation unpacks the zip and looks for disp_<fixed>_<moving>.nii.gz or .npz in it, so the zip is flat
    and holds these files alone, under the names that it looks for: whatever else is in the folder, such as warped
    images, stays out. Every test pair of the data needs one field of floating-point type, (X, Y, Z, 3) on the fixed
    grid; at half resolution (the tasks of 2020 and 2021) also with the channels first. Fields of zeros, or longer than
    the grid, are told on stderr, but are no error.

    Raises:
        FileExistsError: the zip exists, and overwrite is off.
        ValueError: with up to five things that are wrong.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists: choose another file, or give --overwrite")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, expected one with displacement fields")
    members = _checked(folder, pairs_of(folder, options), resolution)
    with replacing(out) as temporary, ZipFile(temporary, "w", ZIP_STORED) as archive:
        for name, path in members.items():
            archive.write(path, name)
    return len(members)


def pairs_of(folder: Path, options: Sequence[str]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Ids of the fixed and the moving image, and the fixed grid, of every test pair of the data."""
    prepare()
    data: LightningDataModule = _Idle(arguments(folder, options, folder)).datamodule
    data.prepare_data()
    data.setup("test")
    for sample in samples_of(data.test_dataloader().dataset):
        yield str(sample["fixed_id"]), str(sample["moving_id"]), tuple(sample["fixed"].shape[1:])


class _Idle(RegistrationCLI):
    """Builds the data and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        return


def _checked(
    folder: Path, pairs: Iterator[tuple[str, str, tuple[int, ...]]], resolution: Resolution
) -> dict[str, Path]:
    """Names in the zip and the files behind them."""
    problems: list[str] = []
    members: dict[str, Path] = {}
    for fixed, moving, size in pairs:
        try:
            path = find_field(folder, fixed, moving)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
            continue
        name = f"disp_{pair_names(fixed, moving)[0]}{''.join(path.suffixes)}"
        if name in members:
            problems.append(f"two pairs would both be {name}, the second of them {fixed} <- {moving}")
        members[name] = path
        problems += _problems(path, size, resolution)
    known = {path.name for path in members.values()}
    extra = sorted(path.name for path in folder.glob("disp_*") if path.name not in known)
    problems += [f"{folder / name} belongs to no pair" for name in extra]
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError("\n".join([*problems[:SHOWN], *more]))
    return members


def _problems(path: Path, size: tuple[int, ...], resolution: Resolution) -> list[str]:
    """What Learn2Reg's evaluation would refuse, or misread, in one file."""
    if not path.name.endswith(SUFFIXES):
        return [f"{path} is not compressed, expected .nii.gz or .npz"]
    try:
        file = stored(path)
    except ValueError as error:
        return [str(error)]
    grid = size if resolution == "full" else half(size)
    d, volume = len(size), (*grid, *[1] * (3 - len(size)))
    allowed = [(*volume, d), *([(d, *volume)] if resolution == "half" else [])]
    values = file.values
    if values.dtype not in (np.float16, np.float32, np.float64):
        return [f"{path} has the type {values.dtype}, expected float32 or float16"]
    if values.shape not in allowed:
        return [f"{path} has shape {times(values.shape)}, expected {' or '.join(map(times, allowed))}"]
    if not np.isfinite(values).all():
        return [f"{path} has {int((~np.isfinite(values)).sum())} values that are NaN or infinite"]
    _warn(path, values, max(size))
    return []


def _warn(path: Path, values: NDArray, extent: int) -> None:
    largest = float(np.abs(values).max())
    if largest == 0:
        print(f"warning: {path} is zero everywhere, the identity", file=sys.stderr)
    elif largest > extent:
        print(f"warning: {path} has displacements up to {largest:.4g} voxels on a grid of {extent}", file=sys.stderr)
