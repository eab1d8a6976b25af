"""Crops and flips keep a pair a pair: what matched before matches after, and stands where it stood in the world."""

import pytest
import torch
from torch.testing import assert_close

from data_modules import Learn2Reg, SyntheticPairs
from data_modules.augment import Augmented, cropped, flipped
from dio_lightning.fields import warp


@pytest.fixture(params=[(24, 20), (14, 12, 16)], ids=["2d", "3d"])
def sample(request):
    pairs = SyntheticPairs(size=request.param, amplitude=1.5, train_pairs=1).dataset("train")
    found = pairs[0]
    return found | {"affine": found.get("affine", torch.eye(4, dtype=torch.float64))}


def agreement(sample) -> float:
    """Share of inner voxels whose label the true displacement finds in the moving image."""
    warped = warp(sample["moving_label"][None], sample["displacement"][None], mode="nearest")[0]
    inner = (slice(None), *[slice(3, -3)] * (warped.ndim - 1))
    return float((warped == sample["fixed_label"])[inner].float().mean())


def world(sample, key):
    d = sample["fixed"].ndim - 1
    points = sample[key].double()
    return sample["affine"][:d, :d] @ points + sample["affine"][:d, 3:]


@pytest.mark.parametrize("change", [lambda s: cropped(s, 0, 2, 10), lambda s: flipped(s, 0), lambda s: flipped(s, 1)])
def test_truth_and_landmarks_follow(sample, change):
    changed = change(sample)
    # nearest voxels of points half-way between two may differ after a flip
    assert agreement(sample) == 1 and agreement(changed) > 0.995
    for key in ("fixed_points", "moving_points"):
        assert_close(world(changed, key), world(sample, key), atol=1e-4, rtol=0)


def test_a_flip_undoes_itself(sample):
    twice = flipped(flipped(sample, 0), 0)
    for key, value in sample.items():
        if isinstance(value, torch.Tensor):
            assert_close(twice[key], value)


def test_random_crops_have_their_size_and_both_flips_occur(sample):
    class One(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return sample

    d = sample["fixed"].ndim - 1
    augmented = Augmented(One(), [8] * (d - 1) + [99], [0])
    drawn = [augmented[0] for _ in range(20)]
    assert {tuple(s["fixed"].shape) for s in drawn} == {(1, *[8] * (d - 1), sample["fixed"].shape[-1])}
    assert {bool(s["affine"][0, 0] < 0) for s in drawn} == {True, False}
    assert len({float(s["affine"][0, 3]) for s in drawn}) > 2


def test_wrong_settings_get_one_sentence():
    with pytest.raises(ValueError, match="crop is \\[0, 4\\]"):
        Learn2Reg(root="anywhere", crop=[0, 4])
    with pytest.raises(ValueError, match="flips \\[3\\]"):
        Learn2Reg(root="anywhere", flips=[3])
