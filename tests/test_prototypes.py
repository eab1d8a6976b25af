"""The loss that tells structures apart, against its definition, and in the training of DIO."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from data_modules import SyntheticPairs
from data_modules.base import collate
from dio_lightning.features import UNet
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import Dice, Objective, Prototypes
from dio_lightning.modules import DIO


def drawn(*size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = (torch.randn(2, 3, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    fixed, moving = images
    a, b = (torch.randint(0, 4, (2, 1, *size), generator=generator, dtype=torch.int16) for _ in range(2))
    return fixed, moving, a, b


@pytest.mark.parametrize("size", [(7, 6), (4, 5, 3)], ids=str)
def test_it_is_its_definition(size: tuple[int, ...]) -> None:
    fixed, moving, of_fixed, of_moving = drawn(*size)
    expected = []
    for f, m, a, b in zip(fixed, moving, of_fixed, of_moving, strict=True):
        scale = torch.stack([f.flatten(1).var(1), m.flatten(1).var(1)]).mean()
        for x, y, p, q in ((f, a, m, b), (m, b, f, a)):
            means = torch.stack([p[:, q[0] == k].mean(1) for k in range(4)])
            distance = (x.flatten(1).T[:, None] - means).square().sum(2)
            values = cross_entropy(-distance / (0.7 * scale), y.flatten().long(), reduction="none")
            expected += [torch.stack([values[y.flatten() == k].mean() for k in range(4)]).mean()]
    assert_close(Prototypes(0.7)(fixed, moving, of_fixed, of_moving), torch.stack(expected).mean())


def test_the_scale_of_the_features_does_not_matter() -> None:
    fixed, moving, *labels = drawn(8, 8)
    assert_close(Prototypes()(20 * fixed, 20 * moving, *labels), Prototypes()(fixed, moving, *labels))


def test_features_that_tell_structures_apart_cost_nothing_and_gradients_lead_there() -> None:
    *_, of_fixed, of_moving = drawn(8, 8)
    codes = torch.eye(4, dtype=torch.float64)
    apart = [codes[x[:, 0].long()].movedim(-1, 1) for x in (of_fixed, of_moving)]
    assert Prototypes(0.05)(*apart, of_fixed, of_moving) < 1e-6
    features = [x.clone().requires_grad_() for x in drawn(8, 8, seed=1)[:2]]
    loss = before = Prototypes()(*features, of_fixed, of_moving)
    for _ in range(30):
        loss = Prototypes()(*features, of_fixed, of_moving)
        for x, slope in zip(features, torch.autograd.grad(loss, features), strict=True):
            x.data -= 20 * slope
    assert loss < 0.3 * before


def test_structures_of_one_image_alone_are_left_out() -> None:
    fixed, moving, of_fixed, of_moving = drawn(8, 8)
    only = of_fixed.clone()
    only[:, :, 0] = 9
    moved = fixed.clone()
    moved[:, :, 0] += 1e3  # what belongs to label 9 alone
    fixed.requires_grad_()
    Prototypes()(fixed, moving, only, of_moving).backward()
    assert fixed.grad is not None and fixed.grad.isfinite().all()
    assert Prototypes()(fixed.detach(), moving, torch.full_like(of_fixed, 7), of_moving) == 0


def test_some_of_the_voxels_say_what_all_do_in_the_mean() -> None:
    pair = drawn(40, 40)
    torch.manual_seed(0)
    some = torch.stack([Prototypes(voxels=400)(*pair) for _ in range(30)])
    assert some.std() > 1e-4
    assert_close(some.mean(), Prototypes()(*pair), rtol=1e-2, atol=0)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"weight": -1.0}, {"voxels": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        Prototypes(**settings)


def module(anatomy: Prototypes | None) -> DIO:
    torch.manual_seed(0)
    features = UNet(1, 4, (2, 1), 2, widths=(4, 8))
    return DIO(features, OptimizerLayer((2, 2)), Objective(label=Dice()), anatomy=anatomy)


def test_dio_adds_it_at_every_level_and_evaluates_without_it() -> None:
    pair = collate([SyntheticPairs(size=(16, 18), train_pairs=1).dataset("train")[0]])
    terms, _ = module(Prototypes(weight=0.5))._learn(pair)
    plain, _ = module(None)._learn(pair)
    assert_close(terms["loss"], plain["loss"] + 0.5 * terms["features"])
    assert_close(terms["label"], plain["label"])
    with_it, without = module(Prototypes()), module(None)
    assert with_it.state_dict().keys() == without.state_dict().keys()
    assert "features" not in with_it._terms(pair, with_it(pair["fixed"], pair["moving"]))
    del pair["fixed_label"]
    with pytest.raises(ValueError, match="needs labels"):
        with_it._learn(pair)
