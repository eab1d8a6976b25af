"""Random deformations: seeded, without folds, of the size asked for; labels, landmarks and truth follow the image."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from data_modules import SyntheticPairs
from data_modules.augment import RandomDeformation
from data_modules.augment.deformation import deformed, velocity
from dio_lightning.fields import compose, exponential, jacobian_determinant, resize, warp
from dio_lightning.fields import sample as sample_at

MODERATE = RandomDeformation((1.5, 1.5), (5.0, 6.0), probability=1.0)


@pytest.fixture(params=[(32, 28), (20, 18, 22)], ids=["2d", "3d"])
def sample(request):
    return SyntheticPairs(size=request.param, amplitude=1.5, train_pairs=1).dataset("train")[0]


def blob(size: tuple[int, ...], centre: Tensor) -> Tensor:
    """A smooth bump (1, *size) around a point."""
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in size], indexing="ij")
    squared = sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True))
    return torch.exp(-torch.as_tensor(squared) / 8)[None]


def top(image: Tensor) -> Tensor:
    """Centre of mass of what is above half the maximum, (d,)."""
    weight = (image[0] - 0.5 * image.max()).clamp(min=0)
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in image.shape[1:]], indexing="ij")
    return torch.stack([(weight * x).sum() for x in axes]) / weight.sum()


def test_the_same_state_gives_the_same_deformation_and_another_another(sample):
    def drawn(seed: int) -> dict:
        torch.manual_seed(seed)
        return MODERATE(sample)

    one, again, other = drawn(1), drawn(1), drawn(2)
    for key in ("fixed", "moving", "fixed_label", "fixed_points", "displacement"):
        assert torch.equal(one[key], again[key])
        assert not torch.equal(one[key], other[key])
        assert one[key].dtype == sample[key].dtype and one[key].shape == sample[key].shape


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 2.0), (1.5, 1.0, 2.0)], ids=str)
def test_a_velocity_has_its_size_in_millimetres_and_no_folds(spacing):
    torch.manual_seed(0)
    size = [round(90 / step) for step in spacing]
    for mm, sigma in ((2.0, 8.0), (6.0, 16.0)):
        v = velocity(size, spacing, mm, sigma)
        steps = [(n - 1) * step / (c - 1) for n, step, c in zip(size, spacing, v.shape[2:], strict=True)]
        length = (v * torch.tensor(steps).view(1, -1, *[1] * len(size))).square().sum(1).mean().sqrt()
        assert_close(length, torch.tensor(mm))
        u = resize(exponential(v), size)
        assert jacobian_determinant(u).min() > 0.05


def test_smoothness_is_the_distance_over_which_a_velocity_changes():
    torch.manual_seed(0)
    rough, smooth = (velocity((160, 160), (1.0, 1.0), 2.0, sigma) for sigma in (5.0, 20.0))
    fine = [resize(v, (160, 160)) for v in (rough, smooth)]
    changes = [x.diff(dim=2).square().mean().sqrt() / x.square().mean().sqrt() for x in fine]
    # of a field white before a Gaussian of σ, the slope is 1 / (√2 σ) of its size
    assert_close(torch.stack(changes), torch.tensor([1 / (2**0.5 * 5), 1 / (2**0.5 * 20)]), rtol=0.25, atol=0)


@pytest.mark.parametrize("size", [(40, 36), (26, 24, 28)], ids=str)
def test_a_landmark_moves_with_its_image(size):
    torch.manual_seed(3)
    centre = torch.tensor([n / 2 for n in size])
    sample = {side: blob(size, centre) for side in ("fixed", "moving")}
    sample |= {f"{side}_points": centre[:, None] for side in ("fixed", "moving")}
    v = velocity(size, [1.0] * len(size), 3.0, 12.0)
    changed = deformed(sample, v, None)
    shift = changed["fixed_points"][:, 0] - centre
    assert shift.norm() > 0.7
    assert_close(top(changed["fixed"]), centre + shift, atol=0.25, rtol=0)
    assert torch.equal(changed["moving_points"], sample["moving_points"])
    # and exactly: what is seen at the new place is what was at the old one
    u = resize(exponential(v), size)
    seen = changed["fixed_points"] + sample_at(u, changed["fixed_points"][None])[0]
    assert_close(seen[:, 0], centre, atol=1e-4, rtol=0)


def test_labels_stay_labels(sample):
    torch.manual_seed(0)
    changed = MODERATE(sample)
    for side in ("fixed", "moving"):
        assert set(changed[f"{side}_label"].unique().tolist()) <= set(sample[f"{side}_label"].unique().tolist())


@pytest.mark.parametrize("size", [(48, 44), (30, 28, 32)], ids=str)
def test_the_true_displacement_still_leads_from_fixed_to_moving(size):
    torch.manual_seed(0)
    axes = torch.meshgrid(*[torch.arange(n) / 5 for n in size], indexing="ij")
    moving = torch.as_tensor(sum(x.sin() for x in axes))[None]
    truth = resize(exponential(velocity(size, [1.0] * len(size), 1.5, 10.0)), size)
    sample = {"fixed": warp(moving[None], truth)[0], "moving": moving, "displacement": truth[0]}
    changed = RandomDeformation((1.5, 1.5), (8.0, 8.0), 1.0)(sample)
    inner = (slice(None), *[slice(6, -6)] * len(size))
    before = (changed["moving"] - changed["fixed"])[inner].square().mean().sqrt()
    warped = warp(changed["moving"][None], changed["displacement"][None])[0]
    assert (warped - changed["fixed"])[inner].square().mean().sqrt() < 0.05 * before


def test_together_both_images_move_alike_and_apart_they_do_not(sample):
    twins = sample | {"moving": sample["fixed"], "moving_label": sample["fixed_label"]}
    torch.manual_seed(0)
    alike = RandomDeformation((2.0, 2.0), (6.0, 6.0), 1.0, separate=False)(twins)
    apart = RandomDeformation((2.0, 2.0), (6.0, 6.0), 1.0)(twins)
    assert torch.equal(alike["fixed"], alike["moving"]) and not torch.equal(alike["fixed"], twins["fixed"])
    assert not torch.equal(apart["fixed"], apart["moving"])


def test_velocities_go_with_the_grid_and_not_with_its_resolution():
    drawn = []
    for n in (33, 65):
        torch.manual_seed(0)
        drawn.append(resize(velocity((n, n), [64 / (n - 1)] * 2, 3.0, 10.0), (33, 33)))
    assert_close(drawn[0], drawn[1])


def test_the_inverse_velocity_undoes_the_deformation():
    torch.manual_seed(0)
    v = velocity((64, 64), (1.0, 1.0), 3.0, 10.0)
    forth, back = (resize(exponential(w), (64, 64)) for w in (v, -v))
    assert compose(back, forth)[..., 10:-10, 10:-10].norm(dim=1).max() < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (3.0, 1.0)}, "least size"),
        ({"smoothness": (0.0, 1.0)}, "least smoothness"),
        ({"probability": 1.5}, "from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomDeformation(**settings)


def test_two_grids_have_no_common_velocity(sample):
    two = sample | {"affine": torch.eye(4), "moving_affine": torch.eye(4)}
    for augmentation in (MODERATE, RandomDeformation(separate=False)):
        with pytest.raises(ValueError, match="one grid"):
            augmentation(two)
    del two["displacement"]
    assert MODERATE(two)["moving"].shape == sample["moving"].shape
