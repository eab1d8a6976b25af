"""Transforms in files: whose format a file has, and what else must be known to read it."""

from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from dio_lightning.fields.files import FSL_COEFFICIENTS, FSL_FIELD, displacement_of, stored
from dio_lightning.fields.placing import EXACT
from dio_lightning.files import replacing
from dio_lightning.headers import Unreadable
from dio_lightning.transforms import fsl, itk_files
from dio_lightning.transforms.chain import Chain
from dio_lightning.transforms.links import Field
from dio_lightning.transforms.world import ImageGrid
from dio_lightning.volume_files import save_volume

Format = Literal["itk", "fsl", "learn2reg"]
FORMATS: tuple[Format, ...] = get_args(Format)
H5, TEXT, NIFTI = (".h5", ".hdf5", ".hdf"), (".tfm", ".txt"), (".nii.gz", ".nii")
ENDINGS = (*H5, *TEXT, ".mat", *NIFTI, ".npz")


class ImageNeeded(ValueError):
    """A file that means nothing without an image: its path, and whether that is its fixed or its moving one."""

    def __init__(self, path: Path, which: Literal["fixed", "moving"]) -> None:
        super().__init__(f"{path} means nothing without the {which} image: name it with --{which}")
        self.path, self.which = path, which


def read_transform(
    path: Path, fixed: ImageGrid | None = None, moving: ImageGrid | None = None, format: Format | None = None
) -> Chain:
    """The transform of a file, fixed world to moving world.

    Its format follows from its content, where that says it: HDF5, text and MATLAB files of ITK; NIfTI with intent 1007
    (ITK, ANTs) or 2006 (FNIRT). A .mat of sixteen numbers is FLIRT's, any other NIfTI and .npz Learn2Reg's.

    Args:
        path: the file.
        fixed: the fixed image's grid; FLIRT's matrices and Learn2Reg's fields mean nothing without it.
        moving: the moving image's grid, for FSL's files.
        format: whose it is, if the content does not say it or says it wrong.

    Raises:
        FileNotFoundError: if there is no such file.
        ImageNeeded: if a grid is missing.
        ValueError: if it is damaged, or no such transform.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a transform")
    ending = ending_of(path)
    try:
        if ending in H5:
            return itk_files.read_h5(path)
        if ending in (*TEXT, ".mat"):
            return _linear(path, fixed, moving, format)
        return _displacement(path, fixed, moving, format)
    except (Unreadable, ImageNeeded):
        raise
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path} {text}") from error


def write_transform(
    path: Path,
    chain: Chain,
    fixed: ImageGrid | None = None,
    moving: ImageGrid | None = None,
    format: Format | None = None,
    overwrite: bool = False,
) -> None:
    """Write a transform; whole or not at all.

    ITK's .h5 holds any chain as it is. Where a file holds one field (.nii.gz, .npz), the whole chain is sampled on the
    fixed grid, or on that of the chain's own first field if no fixed image is named; FSL's needs both images.

    Args:
        path: .h5, .tfm, .txt, .mat, .nii.gz, .nii or .npz.
        chain: the transform.
        fixed: the fixed image's grid.
        moving: the moving image's grid, for FSL's files.
        format: whose; by default ITK's, and Learn2Reg's for .npz.
        overwrite: replace a file.

    Raises:
        FileExistsError: the file exists, and overwrite is off.
        ValueError: if the format cannot hold the transform, or a grid is missing.
    """
    ending = ending_of(path)
    format = format or ("learn2reg" if ending == ".npz" else "itk")
    check_writable(path, format, overwrite)
    d = dimension_of(chain, fixed)
    if format == "fsl" and ending == ".mat":
        fsl.write_flirt(path, chain, _needed(fixed, "fixed", path), _needed(moving, "moving", path))
    elif format == "fsl":
        fsl.write_fnirt(path, chain, _needed(fixed, "fixed", path), _needed(moving, "moving", path))
    elif format == "learn2reg":
        _write_voxels(path, chain, _own_grid(chain, fixed, path))
    elif ending in NIFTI:
        grid = _own_grid(chain, fixed, path)
        only = chain.links[0] if len(chain.links) == 1 else None
        itself = isinstance(only, Field) and only.grid.like(grid, EXACT)
        itk_files.write_field(path, cast(Field, only) if itself else Field.of(chain, grid))
    else:
        write = (
            itk_files.write_h5 if ending in H5 else itk_files.write_mat if ending == ".mat" else itk_files.write_text
        )
        write(path, chain, d)


def check_writable(path: Path, format: Format, overwrite: bool) -> None:
    """Refuse a file that is there, and a format that has no such ending, before any work.

    Raises:
        FileExistsError, ValueError: as said.
    """
    allowed = {"itk": (*H5, *TEXT, ".mat", *NIFTI), "fsl": (".mat", *NIFTI), "learn2reg": (*NIFTI, ".npz")}[format]
    if ending_of(path) not in allowed:
        raise ValueError(f"{path} has an ending that the format {format} has not, expected one of {', '.join(allowed)}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another file, or give --overwrite")


def ending_of(path: Path) -> str:
    """The ending of a file of a transform.

    Raises:
        ValueError: if it has none such.
    """
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return ending
    raise ValueError(f"{path} has no ending of a transform, expected one of {', '.join(ENDINGS)}")


def dimension_of(chain: Chain, fixed: ImageGrid | None = None) -> int:
    """2 for fields or a fixed image of two dimensions, else 3."""
    sizes = [link.grid.size for link in chain.links if isinstance(link, Field)]
    return len((sizes or [fixed.size if fixed is not None else (1, 1, 1)])[0])


def _linear(path: Path, fixed: ImageGrid | None, moving: ImageGrid | None, format: Format | None) -> Chain:
    content = path.read_bytes()
    numbers = all(byte < 128 for byte in content) and not content.lstrip().startswith(b"#") and b":" not in content
    if format != "itk" and ending_of(path) == ".mat" and numbers and b"\0" not in content:
        format = "fsl"
    if format == "fsl":
        text = content.decode("ascii", "replace")
        return fsl.read_flirt(text, _needed(fixed, "fixed", path), _needed(moving, "moving", path))
    if ending_of(path) == ".mat":
        return itk_files.read_mat(path)
    if numbers:
        raise ValueError("does not say whose it is, expected ITK's text, or the format fsl for a matrix of FLIRT")
    return itk_files.read_text(content.decode("utf-8", "replace"))


def _displacement(path: Path, fixed: ImageGrid | None, moving: ImageGrid | None, format: Format | None) -> Chain:
    file = stored(path)
    if format == "itk" and not file.world:
        raise ValueError("is no displacement of ITK, expected five axes and NIfTI's intent 1007")
    if file.intent in FSL_COEFFICIENTS:
        raise ValueError("holds coefficients of FNIRT, expected the field that fnirt --fout writes")
    if file.world and format in (None, "itk"):
        return itk_files.read_field(file)
    if format == "fsl" or (format is None and file.intent == FSL_FIELD):
        return fsl.read_fnirt(file, _needed(moving, "moving", path))
    grid = _needed(fixed, "fixed", path)
    u = displacement_of(file, grid.size, grid.affine)
    return Chain([Field.of_voxels(u[None], grid.affine)])


def _write_voxels(path: Path, chain: Chain, fixed: ImageGrid) -> None:
    """Learn2Reg's layout: (X, Y, Z, 3) in voxels of the fixed grid, float32; one slice of a plane."""
    u = chain.on_grid(fixed.size, fixed.affine)[0].movedim(0, -1).float().numpy()
    d = len(fixed.size)
    u = u.reshape(*fixed.size, *[1] * (3 - d), d)
    if ending_of(path) in NIFTI:
        return save_volume(path, u, fixed.affine)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, displacement=u)
    return None


def _own_grid(chain: Chain, fixed: ImageGrid | None, path: Path) -> ImageGrid:
    if fixed is None and chain.links and isinstance(first := chain.links[0], Field):
        return first.grid
    return _needed(fixed, "fixed", path)


def _needed(grid: ImageGrid | None, which: Literal["fixed", "moving"], path: Path) -> ImageGrid:
    if grid is None:
        raise ImageNeeded(path, which)
    return grid
