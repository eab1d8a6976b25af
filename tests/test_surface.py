"""Areas of surface elements and Hausdorff distances against closed forms, SimpleITK and a slow reference."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from dio_lightning.metrics import element_areas, hausdorff_per_label

SIZES = [(14, 11), (10, 9, 12)]


def blobs(size, labels=3, seed=0):
    """A label map of smooth structures, touching each other and the border."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.normal(size=size), 1.5) for _ in range(labels + 1)])
    return torch.from_numpy(fields.argmax(0).astype(np.int16))[None, None]


def box(size, start, stop, value=1):
    label = torch.zeros(1, 1, *size, dtype=torch.int16)
    label[(0, 0, *(slice(a, b) for a, b in zip(start, stop, strict=True)))] = value
    return label


def test_areas_of_cells_with_a_known_surface():
    square, cube = element_areas((1.0, 1.0)), element_areas((1.0, 1.0, 1.0))
    half = 0.5**0.5
    ascending = [0, half, half, 1, half, 1, 2 * half, half]
    np.testing.assert_allclose(square, [*ascending, *ascending[::-1]])
    assert len(cube) == 256
    assert cube[0] == cube[255] == 0
    assert cube[1] == pytest.approx(3**0.5 / 8)  # one corner: a triangle with sides of √½
    assert cube[0b11] == pytest.approx(half)  # an edge: a slanted rectangle
    assert cube[0b1111] == pytest.approx(1)  # a face: a unit square
    assert cube[0b10000001] == pytest.approx(2 * 3**0.5 / 8)  # opposite corners: two triangles
    assert cube[0b01101001] == pytest.approx(4 * 3**0.5 / 8)  # every second corner: four triangles
    assert cube[0b00010111] == pytest.approx(6 * 3**0.5 / 8)  # a corner and its neighbours: a regular hexagon
    np.testing.assert_allclose(cube, cube[::-1])  # a structure and its complement share their surface


def test_areas_scale_with_the_spacing():
    spacing = (2.0, 3.0, 5.0)
    area = element_areas(spacing)
    assert area[0b1111] == pytest.approx(15)  # the plane across axis 0
    assert area[0b00110011] == pytest.approx(10)
    assert area[0b01010101] == pytest.approx(6)
    assert area[1] == pytest.approx(np.linalg.norm([15, 10, 6]) / 8)
    np.testing.assert_allclose(element_areas((2.0, 2.0, 2.0)), 4 * element_areas((1.0, 1.0, 1.0)))
    for wrong in [(1.0,), (1.0, 0.0), (1.0,) * 4]:
        with pytest.raises(ValueError, match="positive spacings"):
            element_areas(wrong)


@pytest.mark.parametrize("size", SIZES)
def test_hausdorff_of_a_shifted_box_is_the_shift(size):
    d = len(size)
    start, stop = (2,) * d, (6,) * d
    moved = box(size, (4, *start[1:]), (8, *stop[1:]))
    spacing = torch.tensor([[1.5, 0.7, 2.0][:d]])
    hd95, hd = hausdorff_per_label(box(size, start, stop), moved, spacing, [1])
    assert hd95.shape == hd.shape == (1, 1)
    assert hd.item() == pytest.approx(3.0) == hd95.item()
    hd95, hd = hausdorff_per_label(moved, moved, spacing, [1])
    assert hd95.item() == hd.item() == 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 2.5, 1.3)])
def test_hausdorff_of_boxes_is_simpleitks(spacing):
    first, second = box((12, 12, 12), (1, 2, 3), (7, 6, 9)), box((12, 12, 12), (2, 2, 1), (9, 9, 10))
    images = [sitk.GetImageFromArray(label[0, 0].numpy()) for label in (first, second)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    measure = sitk.HausdorffDistanceImageFilter()
    measure.Execute(*images)
    # the second box holds the first but for one slab, so distances between voxels are distances between surfaces
    outer = hausdorff_per_label(first, second, torch.tensor([spacing]), [1])[1].item()
    assert outer == pytest.approx(measure.GetHausdorffDistance(), rel=1e-5)


def brute_force(first, second, spacing, fraction):
    """The definition, by loops: contour lengths of the 16 squares written out, all distances between all cells."""
    diagonal = np.linalg.norm(spacing) / 2
    lengths = {1: diagonal, 3: diagonal}

    def contour(mask):
        mask = np.pad(mask, 1).astype(int)
        found = []
        for i, j in np.ndindex(mask.shape[0] - 1, mask.shape[1] - 1):
            cell = mask[i : i + 2, j : j + 2]
            if cell.sum() in (1, 3):
                length = lengths[int(cell.sum())]
            elif cell.sum() == 2 and cell[0, 0] == cell[1, 1]:
                length = 2 * diagonal
            elif cell.sum() == 2:
                length = spacing[1] if cell[0, 0] == cell[0, 1] else spacing[0]
            else:
                continue
            found.append((i * spacing[0], j * spacing[1], length))
        return np.array(found)

    def directed(a, b):
        distances = [min(np.hypot(p[0] - q[0], p[1] - q[1]) for q in b) for p in a]
        total = 0.0
        for distance, length in sorted(zip(distances, a[:, 2], strict=True)):
            total += length / a[:, 2].sum()
            if total >= fraction - 1e-12:
                return distance
        return max(distances)

    a, b = contour(first), contour(second)
    return max(directed(a, b), directed(b, a))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.7)])
def test_hausdorff_of_many_labels_is_the_definition(spacing):
    fixed, warped = blobs((18, 15)), blobs((18, 15), seed=4)
    hd95, hd = hausdorff_per_label(fixed, warped, torch.tensor([spacing], dtype=torch.float64), [3, 1, 2])
    for column, value in enumerate([3, 1, 2]):
        masks = [(label[0, 0] == value).numpy() for label in (fixed, warped)]
        assert hd95[0, column].item() == pytest.approx(brute_force(*masks, spacing, 0.95))
        assert hd[0, column].item() == pytest.approx(brute_force(*masks, spacing, 1.0))


def test_a_far_speck_moves_hd_but_not_hd95():
    size = (30, 30, 30)
    whole = box(size, (5, 5, 5), (15, 15, 15), 2)
    specked = whole.clone()
    specked[0, 0, 25, 10, 10] = 2
    hd95, hd = hausdorff_per_label(whole, specked, torch.ones(1, 3), [2])
    assert hd95.item() == 0
    assert hd.item() == pytest.approx(11)  # from the far side of the speck to the near side of the box


def test_a_missed_structure_has_no_distance():
    label = box((8, 8), (2, 2), (4, 4), 2)
    hd95, hd = hausdorff_per_label(label, torch.zeros_like(label), torch.ones(1, 2), [2, 5])
    assert hd95.isnan().all()
    assert hd.isnan().all()
    assert hausdorff_per_label(label, label, torch.ones(1, 2), [])[0].shape == (1, 0)
    with pytest.raises(ValueError, match="labels of 1 or more, not 0"):
        hausdorff_per_label(label, label, torch.ones(1, 2), [2, 0])


def test_large_numbers_of_labels_change_no_distance():
    """Boxes were listed for every number up to the largest."""
    fixed, warped = blobs((12, 11, 10)).long(), blobs((12, 11, 10), seed=1).long()
    names = torch.tensor([0, 614454277, 9, 70_000])
    expected = hausdorff_per_label(fixed, warped, torch.ones(1, 3), [1, 2, 3])
    moved = hausdorff_per_label(names[fixed], names[warped], torch.ones(1, 3), [614454277, 9, 70_000])
    assert all(torch.equal(a, b) for a, b in zip(expected, moved, strict=True)) and expected[0].isfinite().all()
    wide = torch.where(fixed == 0, 2**32 + 1, fixed)
    assert torch.equal(hausdorff_per_label(wide, warped, torch.ones(1, 3), [1, 2, 3])[0], expected[0])
