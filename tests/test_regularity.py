"""Folding and the spread of the Jacobian determinant against closed forms, numpy and SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch.testing import assert_close

from dio_lightning.metrics import folds, regularity, sdlogj, std_logj

SIZES = [(14, 11), (10, 9, 12)]


def affine(matrix, size):
    """Displacement of x -> matrix x."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij"))
    return (torch.einsum("ij,j...->i...", matrix, grid) - grid)[None]


@pytest.mark.parametrize("size", SIZES)
def test_an_affine_map_has_one_determinant(size):
    d = len(size)
    u = affine(torch.eye(d, dtype=torch.float64) * 1.2 ** (1 / d), size)
    assert_close(torch.stack(regularity(u)), torch.zeros(3, 1).double(), atol=1e-7, rtol=0)
    flip = torch.eye(d, dtype=torch.float64)
    flip[0, 0] = -1
    assert folds(affine(flip, size)).item() == 100


def test_a_fold_of_known_size():
    u = torch.zeros(2, 2, 20, 20)
    # at rows 9 and 10 the central difference of this spike is -1.5 and 1.5, so one row folds
    u[1, 0, 9, 4:8] = 3.0
    expected = 100 * 4 / 16**2
    assert_close(folds(u).tolist(), [0.0, expected])
    mask = torch.zeros(2, 1, 20, 20, dtype=torch.uint8)
    mask[:, :, 10, 4:12] = 1
    assert_close(folds(u, mask=mask).tolist(), [0.0, 50.0])
    assert folds(u, mask=torch.zeros_like(mask)).isnan().all()


def test_a_broken_displacement_does_not_pass_as_smooth():
    u = torch.zeros(2, 3, 8, 8, 8)
    u[1, 0, 4, 4, 4] = torch.nan
    for values in regularity(u):
        assert values[0] == 0
        assert values[1].isnan()
    with pytest.raises(ValueError, match=r"border of 4 voxels leaves nothing of a grid of \(8, 8, 8\)"):
        folds(u, border=4)


@pytest.mark.parametrize("size", SIZES)
def test_regularity_is_numpys(size):
    u = torch.randn(1, len(size), *size, dtype=torch.float64) * 0.6
    gradient = np.stack([np.stack(np.gradient(c)) for c in u[0].numpy()]) + np.eye(len(size)).reshape(
        len(size), len(size), *[1] * len(size)
    )
    determinant = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))[(slice(2, -2),) * len(size)]
    assert folds(u).item() == pytest.approx(100 * (determinant <= 0).mean())
    assert sdlogj(u).item() == pytest.approx(np.log((determinant + 3).clip(1e-9, 1e9)).std())
    assert std_logj(u).item() == pytest.approx(np.log(determinant.clip(1e-9, 1e9)).std())
    mask = torch.rand(1, 1, *size) > 0.4
    inner = mask[0, 0][(slice(2, -2),) * len(size)].numpy()
    assert sdlogj(u, mask=mask).item() == pytest.approx(np.log((determinant + 3).clip(1e-9, 1e9))[inner].std())
    assert_close(torch.stack(regularity(u, 2, mask)), torch.stack([f(u, 2, mask) for f in (folds, sdlogj, std_logj)]))


@pytest.mark.parametrize("size", SIZES)
def test_folds_are_simpleitks(size):
    u = torch.randn(1, len(size), *size, dtype=torch.float64) * 0.6
    # ITK's axes and components run backwards through the array's
    field = sitk.GetImageFromArray(np.moveaxis(u[0].numpy()[::-1], 0, -1).copy(), isVector=True)
    determinant = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    inner = determinant[(slice(1, -1),) * len(size)]
    assert folds(u, border=1).item() == pytest.approx(100 * (inner <= 0).mean())
