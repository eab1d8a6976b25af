"""Triton's kernels of label maps against SciPy and plain PyTorch, in the interpreter where there is no GPU."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close

pytest.importorskip("triton", reason="needs Triton, which is made for Linux")

from dio_lightning import fields, metrics, ops
from dio_lightning.ops import grid_triton, labels, labels_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [(4, 5), (2, 3, 4), (1, 3, 2), (4, 1)]
PADDINGS = ["border", "zeros", "centres"]
TYPES = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several programs in a few voxels."""
    monkeypatch.setenv("DIO_OPS", "triton")
    for name, value in {"BLOCK": 16, "COUNTED": 16, "LEAST": 2, "MOST": 8}.items():
        monkeypatch.setattr(labels_triton, name, value)


def quarters(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Displacements of up to five voxels, halves among them, that lie nowhere in one piece."""
    u = torch.randint(-20, 21, (*size, 2)).to(dtype) / 4
    return u.to(DEVICE)[..., 0]


def integers(*size: int, most: int = 9, dtype: torch.dtype = torch.int16) -> Tensor:
    return torch.randint(0, most + 1, size).to(DEVICE, dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_nearest_label_is_scipys(size) -> None:
    label, u = integers(1, 1, *size, most=300), quarters(1, len(size), *size)
    points = (u + fields.identity(size, u))[0].cpu().double().numpy()
    for kind, padding in (("constant", "centres"), ("nearest", "border"), ("grid-constant", "zeros")):
        expected = map_coordinates(label[0, 0].cpu().numpy(), points, order=0, mode=kind)
        found = ops.nearest(label, u, padding, relative=True)
        assert labels.implementation("labels", label) is labels_triton
        np.testing.assert_array_equal(found[0, 0].cpu().numpy(), expected)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_voxels_of_any_type_are_those_of_the_reference(dtype, padding) -> None:
    """Also of several channels, of another grid, and where points are no numbers."""
    for size, points in zip(SIZES[:2], ((2, 3), (3, 2, 1)), strict=True):
        image = integers(2, 2, *size, dtype=torch.int64).to(dtype)
        for kind in (torch.float32, torch.float64):
            u = quarters(2, len(size), *points, dtype=kind).contiguous()
            u[0, 0].view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
            for relative in (False, True):
                found = ops.nearest(image.transpose(-1, -2), u, padding, relative)
                expected = labels.reference(image.transpose(-1, -2), u, padding, relative)
                assert found.dtype == dtype
                assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_one_image_serves_many_fields_and_large_labels_keep_their_digits() -> None:
    label, u = torch.full((1, 1, 3, 4), 2**53 + 1, device=DEVICE), quarters(3, 2, 3, 4)
    assert torch.equal(fields.warp(label, u, "nearest"), label.expand(3, -1, -1, -1))
    half = torch.full((1, 2, 3, 4), 0.5, device=DEVICE)
    assert torch.equal(metrics.warp_label(label, half)[0, 0, :2, :3], label[0, 0, 1:, 1:]), "halves round up"


def test_derivatives_with_respect_to_an_image_pass_by_plain_pytorch() -> None:
    image, u = torch.rand(1, 1, 3, 4, device=DEVICE).requires_grad_(), torch.zeros(1, 2, 3, 4, device=DEVICE)
    value = fields.warp(image, u, "nearest")
    assert torch.equal(torch.autograd.grad(value.sum(), image)[0], torch.ones_like(image))
    with forward_ad.dual_level(), torch.no_grad():
        dual = forward_ad.make_dual(image.detach(), 2 * image.detach())
        tangent = forward_ad.unpack_dual(ops.nearest(dual, u, relative=True)).tangent
        assert tangent is not None and torch.equal(tangent, 2 * image)


@pytest.mark.parametrize(
    ("count", "dtype"),
    [(1, torch.bool), (7, torch.uint8), (30, torch.int8), (30, torch.int32), (8, torch.int64)],
    ids=str,
)
def test_counts_are_those_of_numpy(count, dtype) -> None:
    """In several histograms; labels beyond the last one and below 0 are background."""
    first, second = (integers(2, 1, 3, 4, 3, most=40, dtype=dtype) for _ in range(2))
    if dtype.is_signed:
        first[0, 0, 0] = -3
    both = torch.where(first == second, first, 0)

    def counted(x: Tensor) -> Tensor:
        rows = [np.bincount(np.maximum(row.cpu().numpy().astype(int).ravel(), 0), minlength=99) for row in x]
        return torch.from_numpy(np.stack(rows))[:, 1 : count + 1]

    expected = counted(first), counted(second), counted(both)
    found = ops.overlap_counts(first, second, count)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(found, expected, strict=True))
    assert torch.equal(ops.label_counts(first.transpose(-1, -2), count).cpu(), expected[0])


def test_dice_of_many_labels_is_that_of_plain_pytorch(monkeypatch) -> None:
    monkeypatch.setattr(labels_triton, "MOST", 128)
    fixed, moving = integers(2, 1, 6, 7, most=500), integers(2, 1, 6, 7, most=500, dtype=torch.int32)
    fixed[:, :, :3] = moving[:, :, :3]
    ours = metrics.dice_per_label(fixed, moving, moving)
    assert ours.shape[1] > 8 and bool((ours == 1).any())
    monkeypatch.setenv("DIO_OPS", "reference")
    assert_close(ours, metrics.dice_per_label(fixed, moving, moving), rtol=0, atol=0, equal_nan=True)


def test_offsets_of_64_bits_no_labels_and_empty_batches(monkeypatch) -> None:
    label, u = integers(2, 1, 2, 3, 4), quarters(2, 3, 2, 3, 4)
    expected = ops.nearest(label, u, "centres", True)
    monkeypatch.setattr(grid_triton, "LARGEST", 0)
    assert torch.equal(ops.nearest(label, u, "centres", True), expected)
    assert ops.nearest(label[:0], u[:0]).shape == label[:0].shape
    assert [x.shape for x in ops.overlap_counts(label[:0], label[:0], 3)] == [(0, 3)] * 3
    assert ops.label_counts(label, 0).shape == (2, 0)
