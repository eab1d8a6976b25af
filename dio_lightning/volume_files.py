"""Volumes as NIfTI files: whole or absent, both forms of the header alike, values as another file stores its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.loadsave import save
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from dio_lightning.files import replacing
from dio_lightning.headers import Header
from dio_lightning.pair import Pair

ALIGNED = 2
"""NIfTI's code of a form in the coordinates of another image, which is the fixed one."""


def grid_affine(batch: Pair, sample: int) -> NDArray[np.float64]:
    """Voxel to world (4, 4) of the fixed grid; without one, the spacing on the diagonal, or 1 mm."""
    if "affine" in batch:
        return batch["affine"][sample].double().cpu().numpy()
    affine = np.eye(4)
    if "spacing" in batch:
        spacing = batch["spacing"][sample].double().cpu().numpy()
        np.fill_diagonal(affine[: len(spacing), : len(spacing)], spacing)
    return affine


def save_volume(
    path: Path,
    array: NDArray,
    affine: NDArray[np.float64],
    scale: tuple[float, float] | None = None,
    intent: int = 0,
    pixdim: Sequence[float] | None = None,
) -> None:
    """Write a NIfTI file whose two forms agree, in millimetres; whole or not at all.

    Args:
        path: where to.
        array: the values as they are stored, in their type.
        affine: (4, 4), voxels to RAS millimetres.
        scale: slope and intercept that a reader applies; None: none.
        intent: NIfTI's code for what the values are; 0: not said.
        pixdim: edges of a voxel that the header lists, for FSL; None: those of the affine. Where they are others, the
            qform, which would count in them, is left out.
    """
    image = Nifti1Image(np.ascontiguousarray(array), affine, dtype=array.dtype)
    header = image.header
    header.set_xyzt_units("mm")
    header.set_intent(intent, allow_unknown=True)
    image.set_sform(affine, ALIGNED)
    image.set_qform(affine, ALIGNED)
    if not np.allclose(image.get_qform(), affine, rtol=1e-4, atol=1e-3):
        # a quaternion has no shear, and readers that ask it first would be misled
        image.set_qform(affine, 0)
    edges = header.get_zooms()
    if pixdim is not None and not np.allclose(pixdim, edges[: len(pixdim)], rtol=1e-6, atol=0):
        header["qform_code"] = 0
        header.set_zooms((*pixdim, *edges[len(pixdim) :]))
    if scale is not None and scale != (1.0, 0.0):
        header.set_slope_inter(*scale)
    with replacing(path) as temporary:
        save(image, temporary)


def as_stored(values: NDArray, header: Header) -> NDArray:
    """Scaled values in the type and scale in which a file has its own; integers are rounded, and kept in range."""
    slope, intercept = header.scale
    dtype = header.dtype.newbyteorder("=")
    raw = (values - intercept) / slope
    if dtype.kind == "f":
        return raw.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(raw).clip(limits.min, limits.max).astype(dtype)
