"""Overlap and landmarks against closed forms, scipy and SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from jaxtyping import TypeCheckError
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.testing import assert_close

from dio_lightning.losses import soft_dice
from dio_lightning.metrics import dice_linear, dice_per_label, label_sizes, tre, warp_label
from dio_lightning.metrics.overlap import ranked

# with signatures checked, what they exclude does not reach the function's own error
REFUSED = (ValueError, TypeCheckError)
SIZES = [(14, 11), (10, 9, 12)]


def blobs(size, labels=3, seed=0):
    """A label map of smooth structures, touching each other and the border."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.normal(size=size), 1.5) for _ in range(labels + 1)])
    return torch.from_numpy(fields.argmax(0).astype(np.int16))[None, None]


def points_of(u):
    return np.stack(np.meshgrid(*[np.arange(n) for n in u.shape[2:]], indexing="ij")) + u[0].double().numpy()


@pytest.mark.parametrize("size", SIZES)
def test_nearest_label_is_scipys_order_zero(size):
    label, u = blobs(size), torch.randn(1, len(size), *size) * 3
    expected = map_coordinates(label[0, 0].numpy(), points_of(u), order=0)
    np.testing.assert_array_equal(warp_label(label, u)[0, 0].numpy(), expected)


@pytest.mark.parametrize("size", SIZES)
def test_linear_label_is_the_mask_above_one_half(size):
    label, u = blobs(size), torch.randn(1, len(size), *size) * 2
    warped = warp_label(label, u, "linear")[0, 0].numpy()
    for value in range(1, 4):
        mask = (label[0, 0] == value).double().numpy()
        expected = map_coordinates(mask, points_of(u), order=1, mode="grid-constant") > 0.5
        np.testing.assert_array_equal(warped == value, expected)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_translation_moves_labels_in_and_background_follows(mode):
    label = torch.tensor([[[[1, 2, 3, 0], [4, 5, 6, 0]]]], dtype=torch.int16)
    u = torch.zeros(1, 2, 2, 4)
    u[:, 1] = 2
    assert warp_label(label, u, mode).tolist() == [[[[3, 0, 0, 0], [6, 0, 0, 0]]]]
    assert warp_label(label, torch.full_like(u, torch.nan), mode).sum() == 0
    with pytest.raises(REFUSED, match="cubic"):
        warp_label(label, u, "cubic")


def test_dice_of_a_hand_counted_case_and_its_missing_labels():
    fixed = torch.tensor([[[[1, 1, 1, 1, 2, 2, 3, 0]]], [[[1, 1, 0, 0, 0, 0, 0, 0]]]])
    warped = torch.tensor([[[[1, 1, 0, 0, 2, 0, 0, 5]]], [[[0, 0, 1, 1, 0, 0, 0, 0]]]])
    moving = torch.tensor([[[[1, 1, 2, 2, 2, 3, 0, 5]]], [[[1, 1, 0, 0, 0, 0, 0, 0]]]])
    dice = dice_per_label(fixed, warped, moving, 5)
    # label 3 was lost by the warp and counts 0; 4 is nowhere, 5 not in the fixed image
    expected = torch.tensor([[2 * 2 / 6, 2 * 1 / 3, 0.0, torch.nan, torch.nan], [0.0, *[torch.nan] * 4]])
    assert_close(dice, expected.double(), equal_nan=True, rtol=1e-6, atol=1e-6)
    assert dice_per_label(fixed, warped).shape == (2, 5)
    assert dice_per_label(fixed, warped, num_labels=2)[0, 1].item() == pytest.approx(2 / 3)
    assert label_sizes(fixed - 2, 1).tolist() == [[1], [0]]


def test_no_labels_at_all():
    empty = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert dice_per_label(empty, empty).shape == (2, 0)
    assert dice_per_label(empty, empty, num_labels=3).isnan().all()


@pytest.mark.parametrize("size", SIZES)
def test_dice_is_simpleitks(size):
    fixed, moving, u = blobs(size), blobs(size, seed=1), torch.randn(1, len(size), *size)
    warped = warp_label(moving, u, "linear")
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(*[sitk.GetImageFromArray(label[0, 0].numpy()) for label in (fixed, warped)])
    expected = [measure.GetDiceCoefficient(value) for value in (1, 2, 3)]
    assert_close(dice_linear(fixed, moving, u)[0].tolist(), expected)


@pytest.mark.parametrize("order", [1, 3])
def test_without_displacement_tre_is_the_distance_of_the_landmarks(order):
    fixed, moving = torch.rand(2, 3, 5) * 8, torch.rand(2, 3, 5) * 8
    spacing = torch.tensor([[1.0, 2.0, 0.5], [1.5, 1.5, 3.0]])
    expected = ((fixed - moving) * spacing[:, :, None]).norm(dim=1)
    found = tre(torch.zeros(2, 3, 9, 9, 9), fixed, moving, spacing, order)
    assert_close(found, expected, check_dtype=False)


def test_one_voxel_is_one_spacing():
    u = torch.zeros(1, 2, 9, 9)
    u[:, 1] = 1
    points = torch.tensor([[[2.5, 4.0], [3.0, 6.2]]])
    assert_close(tre(u, points, points, torch.tensor([[3.0, 0.25]])), torch.full((1, 2), 0.25))


@pytest.mark.parametrize("size", SIZES)
def test_cubic_tre_is_learn2regs(size):
    d = len(size)
    u = torch.randn(2, d, *size)
    # two of the landmarks lie outside, where the displacement counts as zero
    fixed = torch.rand(2, d, 7) * (min(size) - 1)
    fixed[:, 0, :2] = size[0] + 3
    moving, spacing = torch.rand(2, d, 7) * 8, torch.rand(2, d) + 0.5
    found = tre(u, fixed, moving, spacing, 3).numpy()
    for sample in range(2):
        at = fixed[sample].double().numpy()
        moved = at + np.stack([map_coordinates(channel.double().numpy(), at) for channel in u[sample]])
        expected = np.linalg.norm((moved - moving[sample].numpy()) * spacing[sample].numpy()[:, None], axis=0)
        np.testing.assert_allclose(found[sample], expected, rtol=1e-6)


def test_linear_tre_is_scipys_order_one():
    u, fixed = torch.randn(1, 3, 8, 9, 10), torch.rand(1, 3, 6) * 7
    at = fixed[0].double().numpy()
    moved = at + np.stack([map_coordinates(channel.double().numpy(), at, order=1) for channel in u[0]])
    np.testing.assert_allclose(tre(u, fixed, fixed, torch.ones(1, 3))[0], np.linalg.norm(moved - at, axis=0), rtol=1e-4)


def test_landmarks_that_do_not_match_are_refused():
    u, points = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 3)
    with pytest.raises(REFUSED, match="moving"):
        tre(u, points, points[..., :2], torch.ones(1, 2))
    with pytest.raises(REFUSED, match="order"):
        tre(u, points, points, torch.ones(1, 2), 2)


def test_labels_of_an_atlas_keep_their_dice_under_other_numbers():
    """Numbers up to 600 million are too many for a table of all of them, which would end the process."""
    fixed, moving = blobs((9, 10), 4).long(), blobs((9, 10), 4, 1).long()
    names = torch.tensor([0, 7, 576073732, 576073733, 614454277])
    one, two = ranked(names[fixed], names[moving])
    assert torch.equal(one, fixed) and torch.equal(two, moving), "all four labels are there"
    assert torch.equal(ranked(names[fixed].to(torch.int32), moving)[1] > 0, moving > 0)
    assert ranked(fixed, moving)[0] is fixed, "small numbers stay as they are"
    negative = torch.where(fixed == 1, -5, names[fixed])
    assert torch.equal(ranked(negative)[0] > 0, fixed > 1)
    for count in (lambda: dice_per_label(names[fixed], names[fixed]), lambda: label_sizes(fixed, 2**30)):
        with pytest.raises(ValueError, match="give them other numbers"):
            count()
    with pytest.raises(ValueError, match="labels go up to 614454277"):
        soft_dice(names[fixed], names[moving], torch.zeros(1, 2, 9, 10))
