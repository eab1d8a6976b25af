"""Random contrast: painted from the labels, seeded, alike or apart in the two images, nothing else changed."""

import pytest
import torch
from torch.testing import assert_close

from data_modules.augment import RandomContrast

PLAIN = {"texture": (0.0, 0.0), "blur": (0.0, 0.0)}


@pytest.fixture(params=[(24, 20), (12, 14, 10)], ids=["2d", "3d"])
def sample(request):
    size, generator = request.param, torch.Generator().manual_seed(0)
    label = torch.zeros(1, *size, dtype=torch.int16)
    label[:, 3:9], label[:, 9:-2] = 1, 4
    label[..., :3] = 0
    image = 10 + 90 * torch.rand(1, *size, generator=generator)
    image[..., 0] = 10.0  # background; what has no label beside it is tissue
    pair = {"fixed": image, "moving": image.flip(1), "fixed_label": label, "moving_label": label.flip(1)}
    return pair | {"spacing": torch.full((len(size),), 2.0), "fixed_points": torch.ones(len(size), 3)}


def painted(sample, seed: int = 0, **settings):
    torch.manual_seed(seed)
    return RandomContrast(**{"probability": 1.0, **PLAIN, **settings})(sample)


def test_every_label_has_one_intensity_and_the_range_stays(sample):
    changed = painted(sample)
    tissue = (sample["fixed_label"] == 0) & (sample["fixed"] > 10)
    for region in (sample["fixed_label"] == 1, sample["fixed_label"] == 4, tissue):
        assert changed["fixed"][region].unique().numel() == 1
    assert changed["fixed"][sample["fixed"] == 10].unique().tolist() == [10.0]
    assert changed["fixed"].min() >= 10 and changed["fixed"].max() <= sample["fixed"].max()
    for key in ("fixed_label", "moving_label", "fixed_points", "spacing"):
        assert changed[key] is sample[key]


def test_the_same_state_gives_the_same_contrast_and_another_another(sample):
    assert torch.equal(painted(sample, 1)["fixed"], painted(sample, 1)["fixed"])
    assert not torch.equal(painted(sample, 1)["fixed"], painted(sample, 2)["fixed"])


def test_images_have_one_table_or_two(sample):
    def intensities(changed, side: str) -> list[float]:
        return [float(changed[side][sample[f"{side}_label"] == k][0]) for k in (1, 4)]

    alike, apart = painted(sample, different=0.0), painted(sample, different=1.0)
    assert intensities(alike, "fixed") == intensities(alike, "moving")
    assert intensities(apart, "fixed") != intensities(apart, "moving")


@pytest.mark.parametrize("alike", [{1: 4}, {4: 1, 2: 7}, "names"])
def test_the_two_sides_of_a_structure_look_alike(sample, alike):
    names = {1: "Left-Cortex", 4: "Right-Cortex"}
    change = RandomContrast(probability=1.0, different=1.0, alike=alike, **PLAIN).named(names)
    for seed in range(3):
        torch.manual_seed(seed)
        changed = change(sample)
        for side in ("fixed", "moving"):
            one, other = (changed[side][sample[f"{side}_label"] == k].unique() for k in (1, 4))
            tissue = changed[side][(sample[f"{side}_label"] == 0) & (sample[side] > 10)].unique()
            assert one.numel() == 1 and torch.equal(one, other) and not torch.equal(one, tissue)


def test_names_of_sides_must_be_given(sample):
    with pytest.raises(ValueError, match="names its labels"):
        RandomContrast(alike="names")(sample)
    with pytest.raises(ValueError, match="left or right"):
        RandomContrast(alike="names").named({1: "Brain-Stem"})


def test_contrasts_change_their_sign(sample):
    pairs = [painted(sample, seed)["fixed"] for seed in range(30)]
    brighter = [bool(x[sample["fixed_label"] == 1][0] > x[sample["fixed_label"] == 4][0]) for x in pairs]
    assert 5 < sum(brighter) < 25


def test_texture_and_partial_volume_have_their_size():
    size = (64, 64)
    label = torch.ones(1, *size, dtype=torch.int16)
    label[:, 32:] = 2
    image = torch.rand(1, *size) + 1
    image[0, 0, 0], image[0, 0, 1] = 0.0, 10.0
    pair = {"fixed": image, "moving": image, "fixed_label": label, "moving_label": label}
    pair["spacing"] = torch.tensor([2.0, 2.0])
    rough = painted(pair, seed=4, texture=(0.05, 0.05))["fixed"]
    assert_close(rough[:, 40:60].std(), torch.tensor(0.5), rtol=0.1, atol=0)
    soft = painted(pair, seed=4, blur=(3.0, 3.0))["fixed"][0, :, 30]
    slope = (soft[32] - soft[31]) / (soft[50] - soft[10])
    # an edge after a Gaussian of 1.5 voxels; the kernel's tails are cut at 2 σ
    assert_close(slope, torch.tensor(0.2659), rtol=0.08, atol=0)


def test_what_is_kept_is_kept(sample):
    assert_close(painted(sample, keep=(1.0, 1.0))["fixed"], sample["fixed"])
    half, none = painted(sample, keep=(0.5, 0.5))["fixed"], painted(sample)["fixed"]
    assert_close(half, (sample["fixed"] + none) / 2)
    assert painted(sample, probability=0.0)["fixed"] is sample["fixed"]


@pytest.mark.parametrize(
    "settings", [{"texture": (0.2, 0.1)}, {"blur": (-1.0, 1.0)}, {"keep": (0.0, 2.0)}, {"different": 2.0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        RandomContrast(**settings)


def test_pairs_without_labels_are_refused(sample):
    del sample["moving_label"]
    with pytest.raises(ValueError, match="expected labels"):
        RandomContrast()(sample)
