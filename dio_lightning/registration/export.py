"""Whether SimpleITK makes of the written files what we make: the moving image warped anew, and points."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dio_lightning.headers import Header, read_header
from dio_lightning.registration.images import right_angled
from dio_lightning.transforms import ImageGrid

if TYPE_CHECKING:
    from dio_lightning.registration.result import Registration

ALLOWED = 0.5
"""Percent of the moving image's range by which the two warped images may differ on average."""
MISSED = 0.01
"""Millimetres by which points may differ."""
POINTS = 64
MARGIN = 1.0
"""Voxels to the border of both images, beyond which tools differ in what lies beside an image."""
_LPS = np.array([-1.0, -1.0, 1.0])


def simple_itk() -> Any:  # noqa: ANN401
    """SimpleITK; imported late, for it is an extra.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        return import_module("SimpleITK")
    except ModuleNotFoundError as error:
        sentence = '--check-export needs the package SimpleITK: pip install "dio-lightning[itk]"'
        raise ValueError(sentence) from error


def check_export(result: "Registration", transform: Path, warped: Path) -> Mapping[str, Any]:
    """What SimpleITK makes of a written transform, beside what was written.

    The moving image is resampled onto the fixed grid through the file, linearly, and compared with the written image
    where both images are a voxel away from their borders. Integers are compared but for their rounding. Points go
    through TransformPoint.

    Returns:
        mean_percent and largest_percent: absolute differences, relative to the moving image's range; points_mm: the
        largest distance; passed, and a sentence.

    Raises:
        ValueError: if SimpleITK is missing, or an image lies on a grid that ITK does not have.
    """
    sitk = simple_itk()
    read = sitk.ReadTransform(str(transform))
    images = [_image(sitk, scan.header, scan.grid, scan.values[0, 0].numpy()) for scan in (result.fixed, result.moving)]
    theirs = _array(sitk, sitk.Resample(images[1], images[0], read, sitk.sitkLinear, 0.0, sitk.sitkFloat64))
    header = read_header(warped)
    ours = np.asarray(header.values(), dtype=np.float64)
    values = _array(sitk, images[1])
    rounding = abs(header.scale[0]) / 2 if header.dtype.kind in "iu" else 0.0
    inside = _interior(result)
    difference = np.maximum(np.abs(theirs - ours)[inside] - rounding, 0) / (values.max() - values.min()) * 100
    mean, largest = (float(difference.mean()), float(difference.max())) if difference.size else (0.0, 0.0)
    missed = _points(result, read)
    passed = mean <= ALLOWED and missed <= MISSED
    scans = zip((result.fixed, result.moving), images, strict=True)
    moved = [scan.name for scan, image in scans if not _grid(image).like(scan.grid)]
    about = f"differs by {mean:.3g} % of the range on average and {largest:.3g} % at most, points by {missed:.2g} mm"
    if not passed:
        about += f", expected at most {ALLOWED} % and {MISSED} mm"
        about += "".join(f"; it places {name} elsewhere than its sform does" for name in moved)
    return {
        "mean_percent": mean,
        "largest_percent": largest,
        "points_mm": missed,
        "simpleitk": str(sitk.Version_VersionString()),
        "passed": passed,
        "sentence": f"SimpleITK's warped image {about}",
    }


def _image(sitk: Any, header: Header | None, grid: ImageGrid, values: NDArray) -> Any:  # noqa: ANN401
    """The image as SimpleITK reads its file; where it has no such reader, or there is no file, made of the values."""
    if header is not None and header.path.is_file() and header.path.name.lower().endswith((".nii", ".nii.gz")):
        image = sitk.ReadImage(str(header.path), sitk.sitkFloat64)
        if image.GetSize() == grid.size:
            return image
    return itk_image(sitk, grid, values)


def itk_image(sitk: Any, grid: ImageGrid, values: NDArray) -> Any:  # noqa: ANN401
    """SimpleITK's image of values (*s) on a grid.

    Raises:
        ValueError: if the grid's axes are not at right angles, which ITK does not have.
    """
    d = len(grid.size)
    edges = (np.diag(_LPS) @ grid.affine[:3, :3])[:d, :d]
    if not right_angled(grid.affine, d):
        raise ValueError("an image has axes that are not at right angles, which ITK does not have")
    direction = edges / grid.spacing
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T.astype(np.float64)))
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(direction.flatten().tolist())
    image.SetOrigin((_LPS * grid.affine[:3, 3])[:d].tolist())
    return image


def _grid(image: Any) -> ImageGrid:  # noqa: ANN401
    """Where SimpleITK's image lies."""
    d, affine = image.GetDimension(), np.eye(4)
    affine[:d, :d] = np.reshape(image.GetDirection(), (d, d)) * np.array(image.GetSpacing())
    affine[:d, 3] = image.GetOrigin()
    return ImageGrid(image.GetSize(), np.diag([*_LPS, 1.0]) @ affine)


def _array(sitk: Any, image: Any) -> NDArray[np.float64]:  # noqa: ANN401
    return sitk.GetArrayFromImage(image).T


def _interior(result: "Registration") -> NDArray[np.bool_]:
    """Which voxels of the fixed grid are away from the borders of both images."""
    at = result.transform.at(result.fixed.grid)
    inside = torch.ones(at.shape[1:], dtype=torch.bool)
    for scan, points in ((result.fixed, result.fixed.grid.points()), (result.moving, at)):
        voxels = scan.grid.voxels(points)
        last = torch.tensor(scan.grid.size).view(-1, *[1] * (voxels.ndim - 1)) - 1
        inside &= ((voxels >= MARGIN) & (voxels <= last - MARGIN)).all(0)
    return inside.numpy()


def _points(result: "Registration", transform: Any) -> float:  # noqa: ANN401
    """The largest distance in mm between where we and where SimpleITK take points of the fixed image."""
    grid, d = result.fixed.grid, len(result.fixed.grid.size)
    share = np.random.default_rng(0).uniform(0.02, 0.98, (POINTS, d))
    points = share * (np.array(grid.size) - 1) @ grid.affine[:3, :d].T + grid.affine[:3, 3]
    ours = result.warp_points(points)[:, :d]
    theirs = [transform.TransformPoint((point * _LPS)[:d].tolist()) for point in points]
    return float(np.linalg.norm(ours - np.array(theirs) * _LPS[:d], axis=1).max())
