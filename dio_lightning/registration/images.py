"""Whether files and values are those of a scan, without anything that takes long to import."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dio_lightning.errors import times
from dio_lightning.headers import Header, read_header

SHORTEST = 4
"""Voxels that an axis has at least."""


def check_images(*paths: Path) -> None:
    """Read images that belong together, and look at all that can be wrong with them.

    Raises:
        FileNotFoundError, ValueError: if one of them is no scan, or they differ in dimension.
    """
    headers = [read_header(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        check_header(header, str(path))
    check_dimensions({str(path): header.dimension for path, header in zip(paths, headers, strict=True)})
    for header in headers:
        check_plane(header)
    for path, header in zip(paths, headers, strict=True):
        checked_values(header.values(), str(path))


def check_formats(also: Sequence[str], export: bool, *paths: Path) -> None:
    """Raises ValueError if images lie where a format that is asked for has no images."""
    for path in paths:
        header = read_header(path)
        if "fsl" in also and header.dimension != 3:
            raise ValueError(f"{path} is a plane, FSL's transforms need volumes: expected --also without fsl")
        if export and not right_angled(header.affine, header.dimension):
            raise ValueError(
                f"{path} has axes that are not at right angles, which ITK does not have: no --check-export"
            )


def check_plane(header: Header) -> None:
    """Raises ValueError for a slice whose transforms no file of ITK could hold: one that is not in the plane x, y."""
    if header.dimension != 2:
        return
    from dio_lightning.transforms.itk_parameters import IN_PLANE

    if np.abs(header.affine[2, :2]).max() > IN_PLANE * np.linalg.norm(header.affine[:3, :2]):
        raise ValueError(
            f"{header.path} is a slice that leaves the plane x, y, which ITK's transforms of two dimensions cannot: "
            "expected an axial one, or an affine that lays it there"
        )


def right_angled(affine: NDArray[np.float64], d: int) -> bool:
    """Whether the d axes of an image are at right angles, to a thousandth."""
    axes = affine[:3, :d] / np.linalg.norm(affine[:3, :d], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(d)).max() < 1e-3)


def check_dimensions(dimensions: dict[str, int]) -> None:
    """Raises ValueError if images differ in dimension; a dictionary of their names."""
    if len({*dimensions.values()}) > 1:
        names, numbers = " and ".join(dimensions), " and ".join(map(str, dimensions.values()))
        raise ValueError(f"{names} have {numbers} dimensions, expected as many")


def check_header(header: Header, name: str) -> None:
    """Raises ValueError if the header is not that of a scan."""
    if header.dtype.kind not in "iuf":
        raise ValueError(f"{name} holds {header.dtype}, expected real numbers, one a voxel")
    if header.dimension not in (2, 3):
        shape = times(header.stored_shape)
        raise ValueError(f"{name} has {header.dimension} dimensions ({shape}), expected one image of 2 or 3")
    if header.cut_off:
        raise ValueError(f"{name} cannot be read to its end ({header.cut_off}), expected a whole image")
    if not header.invertible:
        raise ValueError(f"{name} has an affine that is not invertible, expected one that says where it lies")


def checked_values(values: NDArray, name: str, contrast: bool = True) -> NDArray[np.float32]:
    """Values (*s) in single precision; with `contrast` they may not be the same everywhere.

    Raises:
        ValueError: if they are not those of a scan.
    """
    if values.dtype.kind not in "iufb":
        raise ValueError(f"{name} holds {values.dtype}, expected real numbers, one a voxel")
    if values.ndim not in (2, 3):
        raise ValueError(f"{name} has {values.ndim} dimensions ({times(values.shape)}), expected one image of 2 or 3")
    if min(values.shape) < SHORTEST:
        short = int(np.argmin(values.shape))
        raise ValueError(
            f"{name} has {times(values.shape)} voxels, expected at least {SHORTEST} along axis {short}; a plane is an "
            "image of two dimensions"
        )
    wrong = int((~np.isfinite(values)).sum()) if values.dtype.kind == "f" else 0
    if wrong:
        raise ValueError(f"{name} has {wrong} values that are NaN or infinite, expected finite ones")
    # huge integers and doubles keep their contrast, not their zero
    floats = np.ascontiguousarray((values.astype(np.float64)).astype(np.float32))
    if not floats.size or (contrast and floats.min() == floats.max()):
        raise ValueError(f"{name} is {floats.flat[0]:g} everywhere, expected an image with some contrast")
    return floats
