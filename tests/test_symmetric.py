"""Training both ways in one step: the pair doubled, and DIO's loss the mean of its two directions."""

from typing import Any, cast

import pytest
import torch
from torch.testing import assert_close

from data_modules import SyntheticPairs
from data_modules.augment import Swap
from data_modules.base import collate
from dio_lightning.features import UNet
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import Dice, Objective, inverse_consistency
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair, both_ways


@pytest.fixture(params=[(20, 18), (12, 13, 14)], ids=["2d", "3d"])
def samples(request):
    data = SyntheticPairs(size=request.param, train_pairs=2).dataset("train")
    return [data[0], data[1]]


def exchanged(samples) -> Pair:
    """The pairs the other way round, without a true displacement."""
    plain = [{k: v for k, v in sample.items() if k != "displacement"} for sample in samples]
    return collate([Swap(1.0)(sample) for sample in plain])


def module(samples, **settings) -> DIO:
    torch.manual_seed(0)
    d = samples[0]["fixed"].ndim - 1
    layer = OptimizerLayer((3, 3), clamp_quantile=1.0)
    return DIO(UNet(1, 4, (2, 1), d, widths=(4, 8)), layer, Objective(label=Dice()), **settings)


def test_both_ways_is_the_batch_and_its_exchange(samples):
    doubled, other = both_ways(collate(samples)), exchanged(samples)
    assert "displacement" not in doubled
    for key in other:
        one, both, two = ([s[key] for s in samples], *(cast(dict[str, Any], x)[key] for x in (doubled, other)))
        if isinstance(two, torch.Tensor):
            assert torch.equal(both, torch.cat([torch.stack(one), two])), key
        else:
            assert both == [*one, *two], key


def test_what_only_one_image_has_is_left_out_and_two_grids_are_refused(samples):
    pair = collate(samples)
    del pair["moving_label"]
    assert "fixed_label" not in both_ways(pair)
    with pytest.raises(ValueError, match="on one grid"):
        both_ways({**pair, "moving_affine": torch.eye(4)[None]})


def test_the_loss_and_its_gradient_are_the_means_of_both_directions(samples):
    def learned(pair: Pair, **settings) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = module(samples, **settings)
        loss = model._learn(pair)[0]["loss"]
        loss.backward()
        return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    loss, slopes = learned(collate(samples), symmetric=True)
    one, other = learned(collate(samples)), learned(exchanged(samples))
    assert_close(loss, (one[0] + other[0]) / 2)
    largest = max(float(slope.norm()) for slope in slopes)
    for both, forth, back in zip(slopes, one[1], other[1], strict=True):
        assert (both - (forth + back) / 2).norm() < 1e-4 * (both.norm() + 0.1 * largest)


def test_levels_count_by_their_weights(samples):
    pair = collate(samples)
    coarse, fine, both, thirds = (
        float(module(samples, level_weights=weights)._learn(pair)[0]["loss"])
        for weights in ((1e6, 1e-6), (0.0, 2.0), None, (1.0, 2.0))
    )
    assert abs(coarse - fine) > 1e-3
    assert both == pytest.approx((coarse + fine) / 2, abs=1e-5)
    assert thirds == pytest.approx((coarse + 2 * fine) / 3, abs=1e-5)
    early = module(samples, level_weights=(0.0, 1.0), opens=(0, 5))
    assert float(early._learn(pair)[0]["loss"]) == pytest.approx(coarse, abs=1e-5), "what is open counts"
    for wrong in ((1.0,), (1.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="level_weights is"):
            module(samples, level_weights=wrong)


def test_consistency_counts_beside_the_objective_at_every_level(samples):
    pair = collate(samples)
    plain, strict = (module(samples, symmetric=True, consistency=weight) for weight in (0.0, 0.5))
    without, solutions = plain._learn(pair)
    terms = strict._learn(pair)[0]
    trips = [inverse_consistency(*solution.value.chunk(2)) for solution in solutions]
    assert float(trips[-1]) > 1e-4, "untrained features are not consistent"
    assert_close(terms["consistency"], torch.stack(trips).mean())
    assert_close(terms["loss"], without["loss"] + 0.5 * terms["consistency"])
    assert "consistency" not in without
    terms["consistency"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in strict.parameters())


@pytest.mark.parametrize(
    "settings",
    [{"consistency": 1.0}, *({"symmetric": True, "consistency": x} for x in (-1.0, float("nan"), float("inf")))],
)
def test_consistency_needs_both_ways_and_a_weight(samples, settings):
    with pytest.raises(ValueError, match="and above it with symmetric alone"):
        module(samples, **settings)
