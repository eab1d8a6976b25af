"""Grids, fields and SimpleITK's twins of them, for the tests of transforms."""

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from dio_lightning.transforms import Affine, Field

FLIP = np.array([-1.0, -1.0, 1.0])


def affine_of(d, handed=1, scale=1.0, angle=0.4):
    """Oblique and anisotropic, of either handedness; a plane lies in x, y of the world."""
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    if d == 3:
        c, s = np.cos(0.2), np.sin(0.2)
        turn = turn @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([handed * 1.5 * scale, 2.0 * scale, 2.5 if d == 3 else 1.0])
    affine[:d, 3] = [11.0 if handed < 0 else 0.0, -7.0, 5.0][:d]
    return affine


def smooth_field(grid, amplitude=3.0, seed=0, dtype=torch.float64):
    """A smooth displacement of a few millimetres; one of a plane stays in it."""
    rng = np.random.default_rng(seed)
    v = np.stack([gaussian_filter(rng.normal(size=grid.size), 2.0) for _ in range(3)])
    v *= amplitude / np.abs(v).max()
    v[len(grid.size) :] = 0
    return Field(torch.from_numpy(v).to(dtype), grid.affine)


def itk_affine(matrix, d):
    """SimpleITK's transform for a matrix of RAS millimetres, with a centre of its own."""
    lps = np.diag([*FLIP, 1.0]) @ matrix @ np.diag([*FLIP, 1.0])
    transform, centre = sitk.AffineTransform(d), np.array([3.0, -5.0, 8.0])[:d]
    transform.SetMatrix(lps[:d, :d].flatten().tolist())
    transform.SetCenter(centre.tolist())
    transform.SetTranslation((lps[:d, 3] - centre + lps[:d, :d] @ centre).tolist())
    return transform


def itk_grid(grid, values=None):
    """SimpleITK's image on a grid of ours; values (*s), or (*s, d) for vectors; zeros without."""
    d = len(grid.size)
    values = np.zeros(grid.size) if values is None else values
    vectors = values.ndim > d
    array = np.ascontiguousarray(values.transpose(*range(d - 1, -1, -1), *range(d, values.ndim)))
    image = sitk.GetImageFromArray(array, isVector=vectors)
    edges = (np.diag(FLIP) @ grid.affine[:3, :3])[:d, :d]
    spacing = np.linalg.norm(edges, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((edges / spacing).flatten().tolist())
    image.SetOrigin((FLIP * grid.affine[:3, 3])[:d].tolist())
    return image


def itk_field(field):
    """SimpleITK's displacement field."""
    d = len(field.grid.size)
    v = np.moveaxis(field.displacement.double().numpy()[:d], 0, -1) * FLIP[:d]
    return sitk.DisplacementFieldTransform(itk_grid(field.grid, v))


def random_points(grid, n=40, beyond=0.2, seed=3):
    """Points in and somewhat beyond a grid, RAS millimetres."""
    rng = np.random.default_rng(seed)
    size = np.array(grid.size)
    at = rng.uniform(-beyond, 1 + beyond, (n, len(size))) * (size - 1)
    return at @ grid.affine[:3, : len(size)].T + grid.affine[:3, 3]


def turned(angle=0.3, shift=(4.0, -3.0, 2.0), d=3):
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [1.1 * np.sin(angle), np.cos(angle)]]
    matrix[:d, 3] = shift[:d]
    return Affine(matrix)
