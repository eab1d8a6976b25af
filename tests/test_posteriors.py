"""Probabilities of structures as features, and their training by labels, beside an objective or alone."""

from typing import cast

import pytest
import torch
from monai.losses.dice import DiceCELoss
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from trainings import trainer

from data_modules import SyntheticPairs
from data_modules.base import collate
from dio_lightning.features import LocalContrast, Posteriors, UNet
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import Dice, DiceCrossEntropy, Objective
from dio_lightning.modules import DIO

LABELS = 3


def data(*size: int) -> SyntheticPairs:
    return SyntheticPairs(size=size, num_labels=LABELS, train_pairs=8, test_pairs=2, val_pairs=2)


def module(d: int = 2, anatomy: bool = True, objective: bool = True, seed: int = 0, **settings) -> DIO:
    torch.manual_seed(seed)
    features = Posteriors(UNet(1, 8, (2, 1), d, widths=(8, 16)), LABELS, d)
    loss = DiceCELoss(to_onehot_y=True, softmax=True) if anatomy else None
    score = Objective(label=Dice()) if objective else None
    return DIO(features, OptimizerLayer((3, 3)), score, anatomy=loss, **settings)


def posteriors(model: DIO) -> Posteriors:
    assert isinstance(model.features, Posteriors)
    return model.features


@pytest.mark.parametrize("size", [(20, 18), (12, 13, 14)], ids=str)
def test_features_are_probabilities_of_the_network_s_classes(size):
    model = module(len(size))
    pair = collate([data(*size).dataset("train")[0]])
    raw = posteriors(model).features(pair["fixed"])
    for level, x, p in zip((2, 1), raw, model.features(pair["fixed"]), strict=True):
        assert p.shape == (1, LABELS + 1, *(-(-n // level) for n in size))
        assert_close(p, posteriors(model).classifiers[str(level)](x).softmax(1))
        assert_close(p.sum(1), torch.ones_like(p[:, 0]))


def test_a_descriptor_beside_them_changes_neither_the_probabilities_nor_their_loss():
    model, pair = module(objective=False), collate([data(16, 18).dataset("train")[0]])
    with pytest.raises(ValueError, match=r"have levels \[4, 2, 1\] and \[2, 1\]"):
        Posteriors(posteriors(model).features, LABELS, 2, beside=LocalContrast())
    descriptor = LocalContrast((2, 1))
    wider = Posteriors(UNet(1, 8, (2, 1), 2, widths=(8, 16)), LABELS, 2, descriptor, weight=0.5)
    wider.load_state_dict(model.features.state_dict())  # the descriptor has no weights
    both = DIO(wider, model.layer, anatomy=DiceCrossEntropy())
    for x, p, c in zip(wider(pair["fixed"]), model.features(pair["fixed"]), descriptor(pair["fixed"]), strict=True):
        assert_close(x, torch.cat([p, 0.5 * c], 1))
        assert x.shape[1] == wider.channels
    alone = DIO(model.features, model.layer, anatomy=DiceCrossEntropy())
    assert_close(both._learn(pair)[0]["loss"], alone._learn(pair)[0]["loss"])


@pytest.mark.parametrize("d", [2, 3])
def test_dice_and_cross_entropy_are_monai_s_where_every_label_is_present(d):
    logits = torch.randn(2, LABELS + 1, *(7, 6, 5)[:d], requires_grad=True)
    label = torch.randint(0, LABELS + 1, (2, 1, *logits.shape[2:]))
    ours = DiceCrossEntropy(0.7, 1.3)(logits.log_softmax(1), label)
    theirs = DiceCELoss(to_onehot_y=True, softmax=True, lambda_dice=0.7, lambda_ce=1.3)(logits, label)
    assert_close(ours, theirs)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    assert_close(*slopes)


def test_a_label_that_is_not_there_has_no_dice():
    logits, label = torch.randn(2, LABELS + 1, 6, 5), torch.randint(0, LABELS, (2, 1, 6, 5))
    label[1] = 0
    probabilities = logits.log_softmax(1)
    expected = []
    for sample, present in enumerate((range(LABELS), (0,))):
        for k in present:
            p, t = probabilities[sample, k].exp(), label[sample, 0] == k
            expected.append(1 - 2 * p[t].sum() / (p.sum() + t.sum()))
    assert_close(DiceCrossEntropy(cross_entropy=0.0)(probabilities, label), torch.stack(expected).mean())
    with pytest.raises(ValueError, match="labels are 0 to 4, expected 0 to 3"):
        DiceCrossEntropy()(probabilities, label + 2 * (label == 2))
    with pytest.raises(ValueError, match="expected weights of at least 0"):
        DiceCrossEntropy(-1.0)


def test_a_loss_of_the_features_is_for_probabilities_alone():
    with pytest.raises(ValueError, match="features are UNet, expected Posteriors"):
        DIO(UNet(1, 8, (2, 1), 2, widths=(8, 16)), OptimizerLayer((3, 3)), anatomy=DiceCrossEntropy())


def test_the_loss_is_monai_s_over_both_images_and_all_levels():
    model, pair = module(objective=False), collate([data(16, 18).dataset("train")[0]])
    plain = DIO(model.features, model.layer, anatomy=DiceCELoss(to_onehot_y=True, softmax=True, lambda_dice=0.0))
    expected = []
    whole = cast(dict[str, torch.Tensor], pair)
    for side in ("fixed", "moving"):
        label = whole[f"{side}_label"].long()
        raw = zip((2, 1), posteriors(model).features(whole[side]), strict=True)
        coarse, fine = (posteriors(model).classifiers[str(level)](x) for level, x in raw)
        # the nearest voxel of a block's centre is the far one
        expected += [cross_entropy(coarse, label[:, 0, 1::2, 1::2]), cross_entropy(fine, label[:, 0])]
    terms, solutions = plain._learn(pair)
    assert_close(terms["loss"], torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    assert not solutions
    assert float(model._learn(pair)[0]["loss"]) > float(terms["loss"])  # Dice beside it


def test_beside_an_objective_it_counts_with_its_weight():
    pair = collate([data(16, 18).dataset("train")[0]])
    both, none = module(anatomy_weight=0.3)._learn(pair)[0], module(anatomy=False)._learn(pair)[0]
    assert_close(both["loss"], none["loss"] + 0.3 * both["features"])
    assert "features" not in none


def test_training_by_labels_alone_aligns_what_it_learned_to_recognise(tmp_path):
    """In the mean of three trainings: one of 64 updates moves by 0.02 from seed to seed."""
    pairs = data(32, 32)
    pair = next(iter(pairs.val_dataloader()))

    def overlap(u: Tensor) -> float:
        return 1 - float(Dice()(pair["fixed_label"], pair["moving_label"], u))

    gains = []
    for seed in range(3):
        model = module(objective=False, seed=seed, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
        with torch.no_grad():
            before = overlap(model.register(pair))
        trainer(tmp_path / str(seed), max_epochs=8).fit(model, pairs)
        with torch.no_grad():
            u = model.register(pair)
        gains.append((overlap(u) - before, overlap(u) - overlap(torch.zeros_like(u))))
    trained, registered = torch.tensor(gains).mean(0)
    assert trained > 0.1 and registered > 0.03


def test_a_pair_without_labels_is_refused():
    pair = collate([data(16, 18).dataset("train")[0]])
    del pair["moving_label"]
    with pytest.raises(ValueError, match="needs labels"):
        module()._learn(pair)
    with pytest.raises(ValueError, match="at least 1"):
        Posteriors(UNet(spatial_dims=2), 0, 2)
