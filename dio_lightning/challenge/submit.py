"""A Learn2Reg submission: every field checked, then one zip."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

from dio_lightning.api import build
from dio_lightning.challenge.evaluate import arguments
from dio_lightning.errors import times
from dio_lightning.fields.files import half, refuse_fsl, stored
from dio_lightning.fields.names import Ids, find_field, listed_pairs, own_names, pair_names, shared_files, strangers
from dio_lightning.fields.placing import check_place
from dio_lightning.files import replacing
from dio_lightning.modules.precomputed import affine_of, samples_of

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


@dataclass(frozen=True)
class Expected:
    """What the test pairs of the data say of their fields."""

    ids: list[Ids]
    grids: Iterable[tuple[Ids, tuple[int, ...], NDArray[np.float64] | None]]
    """Ids, fixed grid and its affine (4, 4), pair by pair."""


def pairs_of(folder: Path, options: Sequence[str]) -> Expected:
    """The test pairs of the data."""
    data = build(arguments(folder, options, folder)).data
    data.prepare_data()
    data.setup("test")
    samples = samples_of(data.test_dataloader().dataset)
    ids = listed_pairs(data, "test")
    if ids is None:
        samples = list(samples)
        ids = [_ids(sample) for sample in samples]
    return Expected(ids, ((_ids(one), tuple(one["fixed"].shape[1:]), affine_of(one)) for one in samples))


def _ids(sample: dict) -> Ids:
    return str(sample["fixed_id"]), str(sample["moving_id"])


def _checked(folder: Path, pairs: Expected, resolution: Resolution) -> dict[str, Path]:
    """Names in the zip and the files behind them."""
    names, official = own_names(pairs.ids), official_names(pairs.ids)
    problems, members = shared_files(folder, names), {}
    fields: dict[Ids, Path] = {}
    for ids, own in names.items():
        try:
            fields[ids] = find_field(folder, *ids, own)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
            continue
        name = f"disp_{official[ids]}{_suffix(fields[ids])}"
        if name in members:
            problems.append(f"two pairs would both be {name}, the second of them {' <- '.join(ids)}")
        members[name] = fields[ids]
    problems += [f"{path} belongs to no pair" for path in strangers(folder, fields.values())]
    if not problems:
        for ids, size, affine in pairs.grids:
            problems += _problems(fields[ids], size, affine, resolution)
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError("\n".join([*problems[:SHOWN], *more]))
    return members


def official_names(pairs: Sequence[Ids]) -> dict[Ids, str]:
    """The name that Learn2Reg's evaluation looks for; where it looks for one name for two pairs, a name of their own.

    Raises:
        ValueError: if the full names of two pairs are one.
    """
    names = own_names(pairs)
    wanted = {ids: pair_names(*ids)[0] for ids in names}
    count = Counter(wanted.values())
    result = {ids: name if count[name] == 1 else names[ids][0] for ids, name in wanted.items()}
    for name, users in count.items():
        if users > 1:
            own = next(result[ids] for ids in names if wanted[ids] == name)
            sentence = (
                f"Learn2Reg's evaluation looks for disp_{name} for {users} pairs; the zip has disp_{own} and so on"
            )
            print(f"warning: {sentence}", file=sys.stderr)
    return result


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), path.suffix)


def _problems(
    path: Path, size: tuple[int, ...], affine: NDArray[np.float64] | None, resolution: Resolution
) -> list[str]:
    """What Learn2Reg's evaluation would refuse, or misread, in one file."""
    if not path.name.endswith(SUFFIXES):
        return [f"{path} is not compressed, expected .nii.gz or .npz"]
    try:
        file = stored(path)
        refuse_fsl(file)
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
    if file.header is not None and affine is not None:
        try:
            check_place(file.header, grid, size, affine)
        except ValueError as error:
            return [str(error)]
    _warn(path, values, max(size))
    return []


def _warn(path: Path, values: NDArray, extent: int) -> None:
    largest = float(np.abs(values).max())
    if largest == 0:
        print(f"warning: {path} is zero everywhere, the identity", file=sys.stderr)
    elif largest > extent:
        print(f"warning: {path} has displacements up to {largest:.4g} voxels on a grid of {extent}", file=sys.stderr)
