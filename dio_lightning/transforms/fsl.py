"""FSL's transforms: FLIRT's matrices and FNIRT's relative fields.

FSL counts in millimetres from the first voxel of an image, along its axes; x runs the other way where the axes of the
image form a right-handed system (the determinant of its affine is positive). What a millimetre is, the header's pixdim
says alone: neither the length of the affine's columns nor the unit. So its numbers mean nothing without both images. A
matrix of FLIRT leads from the moving image ("in") to the fixed one ("ref"); a field of FNIRT is on the fixed grid and
leads to the moving image.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dio_lightning.errors import times
from dio_lightning.fields.files import FSL_FIELD, Stored
from dio_lightning.files import write_atomic
from dio_lightning.transforms.base import Transform
from dio_lightning.transforms.chain import Chain
from dio_lightning.transforms.links import Affine, Field
from dio_lightning.transforms.world import ImageGrid, to_world
from dio_lightning.volume_files import save_volume


def to_fsl(grid: ImageGrid) -> NDArray:
    """RAS millimetres to FSL's millimetres in an image, (4, 4).

    Raises:
        ValueError: for a plane, or a pixdim that is not positive.
    """
    if len(grid.size) != 3:
        raise ValueError(f"an image of {times(grid.size)} voxels is a plane, FSL's transforms need volumes")
    edges = grid.spacing if grid.pixdim is None else np.array(grid.pixdim)
    if not (np.isfinite(edges).all() and (edges > 0).all()):
        what = f"an image of {times(grid.size)} voxels has the pixdim {', '.join(f'{edge:g}' for edge in edges)}"
        raise ValueError(f"{what}, expected positive numbers: FSL counts in them")
    scaled = np.diag([*edges, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        scaled[0] = -edges[0], 0.0, 0.0, (grid.size[0] - 1) * edges[0]
    return scaled @ np.linalg.inv(grid.affine)


def read_flirt(text: str, fixed: ImageGrid, moving: ImageGrid) -> Chain:
    """A matrix of FLIRT: four lines of four numbers.

    Raises:
        ValueError: if it is none.
    """
    try:
        matrix = np.array([line.split() for line in text.splitlines() if line.strip()], dtype=float)
    except ValueError as error:
        raise ValueError(f"is no matrix of FLIRT ({str(error).splitlines()[0]})") from error
    if matrix.shape != (4, 4) or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError(f"holds {times(matrix.shape)} numbers, expected FLIRT's invertible 4x4")
    return Chain([Affine(np.linalg.inv(to_fsl(moving)) @ np.linalg.inv(matrix) @ to_fsl(fixed))])


def write_flirt(path: Path, chain: Chain, fixed: ImageGrid, moving: ImageGrid) -> None:
    """Write affines, multiplied, as FLIRT's matrix.

    Raises:
        ValueError: if the chain has a field.
    """
    links = chain.merged().links or (Affine(np.eye(4)),)
    if len(links) != 1 or not isinstance(links[0], Affine):
        raise ValueError(f"{path.name} cannot hold a displacement field, expected .nii.gz")
    matrix = np.linalg.inv(to_fsl(moving) @ links[0].matrix @ np.linalg.inv(to_fsl(fixed)))
    write_atomic(path, "".join("  ".join(f"{value:.12g}" for value in row) + "\n" for row in matrix))


def read_fnirt(file: Stored, moving: ImageGrid) -> Chain:
    """A relative displacement of FNIRT (--fout) or convertwarp (--rel --out), on the grid of its header.

    Raises:
        ValueError: for another shape, an affine that is not invertible, or an absolute field.
    """
    assert file.header is not None
    if file.values.ndim != 4 or file.values.shape[-1] != 3:
        raise ValueError(f"has shape {times(file.values.shape)}, expected three volumes of a relative field of FSL")
    fixed = ImageGrid(file.values.shape[:3], file.header.affine, file.header.pixdim)
    v = torch.from_numpy(np.moveaxis(file.values.astype(np.float64), -1, 0).copy())
    at = fixed.points()
    coordinates = to_world(at, to_fsl(fixed))
    if float((v - coordinates).std()) < float(v.std()):  # FSL's own rule
        raise ValueError("looks like an absolute field of FSL, expected a relative one (convertwarp --relout)")
    sources = to_world(coordinates + v, np.linalg.inv(to_fsl(moving)))
    return Chain([Field((sources - at).float(), fixed.affine)])


def write_fnirt(path: Path, transform: Transform, fixed: ImageGrid, moving: ImageGrid) -> None:
    """Write a whole transform as a relative field on the fixed grid, which applywarp takes (--rel), float32."""
    v = to_world(transform.at(fixed), to_fsl(moving)) - to_world(fixed.points(), to_fsl(fixed))
    save_volume(path, v.movedim(0, -1).float().numpy(), fixed.affine, intent=FSL_FIELD, pixdim=fixed.pixdim)
