"""How a scan is stored changes nothing: 48 orders and directions of axes, oblique grids, other voxels, handedness."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from scans import SPACING, affine_of, moved, scene, turned
from scipy.ndimage import affine_transform

from dio_lightning.registration import Scan
from dio_lightning.registration.linear import align
from dio_lightning.registration.starts import rotation

SIZE = (20, 18, 16)
WAYS = list(product(permutations(range(3)), product((False, True), repeat=3)))
IMAGE, AFFINE, TRUTH = scene(SIZE), affine_of(SIZE), turned(SIZE, 10, 6)
MOVED = moved(IMAGE, AFFINE, TRUTH)
POINTS = Scan.of(IMAGE, AFFINE).grid.points()[:, IMAGE > 20].numpy().T


def stored_as(values: np.ndarray, way: tuple[tuple[int, ...], tuple[bool, ...]]) -> nib.Nifti1Image:
    """The same image in the same world, its array axes in another order and direction."""
    orientation = np.array([[axis, -1 if flip else 1] for axis, flip in zip(*way, strict=True)])
    return nib.Nifti1Image(values, AFFINE).as_reoriented(orientation)


def regridded(values: np.ndarray, turn: np.ndarray, spacing: list[float]) -> nib.Nifti1Image:
    """The same image on a grid turned in the world, with other voxels, that covers it: SciPy's cubic splines."""
    size = np.ceil(1.3 * SPACING * np.array(SIZE) / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((size - 1) / 2)
    voxels = np.linalg.inv(AFFINE) @ affine
    image = affine_transform(values, voxels[:3, :3], voxels[:3, 3], tuple(size), order=3, mode="constant")
    return nib.Nifti1Image(image.clip(0).astype(np.float32), affine)


def places(fixed: nib.Nifti1Image, moving: nib.Nifti1Image) -> np.ndarray:
    """Where the points of the foreground come to lie, in voxels of 4 mm."""
    matrix = align(Scan.of(fixed), Scan.of(moving), ["rigid"])
    return (POINTS @ matrix[:3, :3].T + matrix[:3, 3]) / SPACING


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    base = places(nib.Nifti1Image(IMAGE, AFFINE), nib.Nifti1Image(MOVED, AFFINE))
    truth = (POINTS @ TRUTH[:3, :3].T + TRUTH[:3, 3]) / SPACING
    assert np.linalg.norm(base - truth, axis=1).mean() < 0.05
    return base


@pytest.mark.parametrize("index", range(0, len(WAYS), 2))
def test_axes_in_any_order_and_direction(index, expected) -> None:
    """Each of the 48 ways is that of one image: the even ones of the fixed image, the odd ones of the moving one."""
    fixed, moving = stored_as(IMAGE, WAYS[index]), stored_as(MOVED, WAYS[(5 * index + 7) % len(WAYS)])
    assert np.linalg.norm(places(fixed, moving) - expected, axis=1).mean() < 0.05


@pytest.mark.parametrize(
    ("turn", "spacing"),
    [
        (rotation(0.3, -0.2, 0.4), [4.0, 4.0, 4.0]),
        (rotation(-0.5, 0.3, 0.1) @ np.diag([1.0, 1.0, -1.0]), [4.0, 4.0, 4.0]),
        (np.eye(3), [2.0, 3.0, 2.5]),
        (rotation(0.1, 0.5, -0.3)[:, [2, 0, 1]], [3.0, 2.0, 4.0]),
    ],
    ids=["oblique", "oblique and left-handed", "other voxels", "all of it"],
)
@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_oblique_grids_and_other_voxels(which, turn, spacing, expected) -> None:
    images = {"fixed": nib.Nifti1Image(IMAGE, AFFINE), "moving": nib.Nifti1Image(MOVED, AFFINE)}
    images[which] = regridded({"fixed": IMAGE, "moving": MOVED}[which], turn, spacing)
    assert np.linalg.norm(places(**images) - expected, axis=1).mean() < 0.05
