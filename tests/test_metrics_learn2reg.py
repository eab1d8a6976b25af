"""Our scores and Learn2Reg's official ones against plain loops that follow the published definitions."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from dio_lightning.metrics import element_areas, folds
from dio_lightning.metrics.learn2reg import aggregate, hd95, learn2reg, num_foldings, robust
from dio_lightning.scores.pairs import score_pair
from dio_lightning.scores.registered import ScoreOptions

SIZE, SPACING = (13, 11, 12), (1.5, 1.0, 2.5)
RNG = np.random.default_rng(5)


def smooth(sigma=1.7):
    return gaussian_filter(RNG.normal(size=SIZE), sigma)


def label_map():
    """Labels 0..3 as competing smooth fields."""
    return np.stack([smooth() for _ in range(4)]).argmax(0).astype(np.int16)


FIELD = np.stack([smooth(2.0) for _ in range(3)])
# strong enough to fold here and there
FIELD = (1.6 * FIELD / FIELD.std()).astype(np.float32)
FIXED, MOVING = label_map(), label_map()
# 4 is only in the fixed image, 5 only in the moving one
FIXED[:2, :2, :2], MOVING[-2:, -2:, -2:] = 4, 5
POINTS = [RNG.uniform(0, 10, (3, 7)).astype(np.float32) for _ in range(2)]
MASK = (smooth() > -0.1).astype(np.uint8)


def pair(**changed):
    tensors = {
        "fixed": torch.zeros(1, 1, *SIZE),
        "moving": torch.zeros(1, 1, *SIZE),
        "fixed_label": torch.from_numpy(FIXED)[None, None],
        "moving_label": torch.from_numpy(MOVING)[None, None],
        "fixed_mask": torch.from_numpy(MASK)[None, None],
        "fixed_points": torch.from_numpy(POINTS[0])[None],
        "moving_points": torch.from_numpy(POINTS[1])[None],
        "spacing": torch.tensor([SPACING]),
    }
    return tensors | changed


def warped():
    """The moving label of the voxel nearest to x + u(x), 0 outside."""
    result = np.zeros_like(MOVING)
    for x in np.ndindex(*SIZE):
        y = [x[i] + float(FIELD[(i, *x)]) for i in range(3)]
        if all(0 <= y[i] <= SIZE[i] - 1 for i in range(3)):
            result[x] = MOVING[tuple(int(np.floor(c + 0.5)) for c in y)]
    return result


def surface(mask, spacing):
    """Codes of the cells between voxels and their areas; distance of every cell to the surface."""
    padded = np.pad(mask, 1).astype(int)
    codes = np.zeros([n - 1 for n in padded.shape], int)
    for cell in np.ndindex(*codes.shape):
        corners = padded[tuple(slice(c, c + 2) for c in cell)].ravel()
        codes[cell] = sum(int(inside) << bit for bit, inside in enumerate(corners))
    border = (codes > 0) & (codes < 255)
    return border, element_areas(spacing)[codes], distance_transform_edt(~border, sampling=spacing)


def percentile(distances, areas):
    """The first distance, sorted, at which 95 % of the area is reached."""
    reached = 0.0
    order = np.argsort(distances)
    for index in order:
        reached += areas[index]
        if reached / areas.sum() >= 0.95:
            return distances[index]
    return distances[order[-1]]


def slow_hd95(one, two, spacing):
    a, b = surface(one, spacing), surface(two, spacing)
    return max(percentile(b[2][a[0]], a[1][a[0]]), percentile(a[2][b[0]], b[1][b[0]]))


def determinants():
    """Of id + u by central differences, without two voxels at each side."""
    values = np.empty([n - 4 for n in SIZE])
    for x in np.ndindex(*values.shape):
        jacobian = np.eye(3)
        for j in range(3):
            at = [np.array(x) + 2, np.array(x) + 2]
            at[0][j] += 1
            at[1][j] -= 1
            high, low = (FIELD[(slice(None), *place)].astype(float) for place in at)
            jacobian[:, j] += (high - low) / 2
        values[x] = np.linalg.det(jacobian)
    return values


@pytest.mark.parametrize("masked", [False, True])
def test_both_definitions_agree_with_plain_loops(masked):
    u = torch.from_numpy(FIELD)[None]
    ours, _ = score_pair(u, pair(), ScoreOptions(masked=masked))
    official = learn2reg(u, pair(), masked)
    moved, labels = warped(), (1, 2, 3)
    assert set(np.unique(FIXED)) - set(np.unique(MOVING)) == {4} and 5 in MOVING and 5 not in FIXED
    dice = np.mean(
        [2 * ((moved == k) & (FIXED == k)).sum() / ((moved == k).sum() + (FIXED == k).sum()) for k in labels]
    )
    at = POINTS[0].astype(float)
    there = at + np.stack([map_coordinates(channel.astype(float), at) for channel in FIELD])
    error = np.linalg.norm((there - POINTS[1]) * np.array(SPACING)[:, None], axis=0).mean()
    for found in (ours, official):
        assert found["dice"] == pytest.approx(dice, abs=1e-6)
        assert found["tre"] == pytest.approx(error, abs=1e-6)
    for found, spacing in ((ours, SPACING), (official, (1.0, 1.0, 1.0))):
        expected = np.mean([slow_hd95(FIXED == k, moved == k, spacing) for k in labels])
        assert found["hd95"] == pytest.approx(expected, abs=1e-6)
    j = determinants()
    inside = MASK[2:-2, 2:-2, 2:-2] > 0 if masked else np.ones(j.shape, bool)
    assert (j <= 0).sum() > 10
    assert ours["folds"] == pytest.approx(100 * (j[inside] <= 0).mean(), abs=1e-6)
    assert ours["std_logj"] == pytest.approx(np.log(j.clip(1e-9, 1e9))[inside].std(), abs=1e-6)
    shifted = np.ma.MaskedArray(np.log((j + 3).clip(1e-9, 1e9)), ~inside).std()
    assert official["sdlogj"] == pytest.approx(shifted, abs=1e-6) and ours["sdlogj"] == pytest.approx(shifted, abs=1e-6)
    assert official["num_foldings"] == 0


def test_a_structure_that_the_warp_lost_is_infinitely_far():
    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int16)
    label[..., 2:5, 2:5, 2:5], label[..., 6:, 6:, 6:] = 1, 2
    u = torch.zeros(1, 3, 8, 8, 8)
    u[..., 6:, 6:, 6:] = 5
    found = hd95(u, label, label)
    assert found[0] == 0 and found[1] == torch.inf
    lost = {"fixed": label.float(), "moving": label.float(), "fixed_label": label, "moving_label": label}
    assert learn2reg(u, lost)["hd95"] == np.inf
    ours, _ = score_pair(u, lost, ScoreOptions())
    assert ours["hd95"] == 0 and ours["hd_missed"] == 1


def test_the_official_count_of_folds_finds_none():
    u = torch.zeros(1, 3, 9, 9, 9)
    u[:, 0] = -6 * torch.arange(9.0).view(-1, 1, 1)
    assert folds(u).item() == 100 and num_foldings(u) == 0


def test_the_value_at_thirty_percent_takes_the_best_pairs_of_a_distance():
    distances = [1.0, 2.0, 3.0, 4.0, 11.0]
    found = aggregate(distances)
    assert found["mean"] == pytest.approx(4.2) and found["std"] == pytest.approx(np.std(distances))
    assert found["30"] == pytest.approx(2.2) and robust(distances, rising=False) == pytest.approx(3.8)
    assert robust(distances, rising=True) == found["30"]
    assert np.isnan(aggregate([1.0, np.nan])["mean"]) and robust([1.0, np.nan], rising=True) == 1


def test_a_pair_without_labels_or_landmarks_has_its_regularity_alone():
    bare = {"fixed": torch.zeros(1, 1, *SIZE), "moving": torch.zeros(1, 1, *SIZE)}
    assert learn2reg(torch.from_numpy(FIELD)[None], bare).keys() == {"sdlogj", "num_foldings"}


def test_landmarks_of_another_grid_count_in_its_millimetres():
    bare = pair()
    moving_affine = torch.diag(torch.tensor([3.0, 2.0, 5.0, 1.0], dtype=torch.float64))[None]
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))[None]
    elsewhere = pair(affine=affine, moving_affine=moving_affine, moving_points=bare["moving_points"] / 2)
    del elsewhere["fixed_label"]
    u = torch.from_numpy(FIELD)[None]
    scale = torch.tensor([2.0, 2.0, 2.0])
    assert torch.allclose(moving_affine.diagonal(dim1=1, dim2=2)[0, :3].float(), scale * torch.tensor(SPACING))
    assert learn2reg(u, elsewhere)["tre"] == pytest.approx(learn2reg(u, bare)["tre"], rel=1e-5)
