"""Every term against finite differences, closed forms and independent references."""

from collections.abc import Callable

import pytest
import torch
from levels import SIZES, between, every_size, level_of, pair_of, smooth
from scipy.ndimage import map_coordinates
from torch.testing import assert_close

from dio_lightning.features import Intensity
from dio_lightning.fields import blocks, identity, jacobian_determinant, warp
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses import (
    LNCC,
    SSD,
    Bending,
    Diffusion,
    FeatureDistance,
    FeatureSimilarity,
    Folding,
    JacobianPenalty,
    LabelPrompt,
    LandmarkPrompt,
    MutualInformation,
    Objective,
    SplineDistance,
    Term,
    TotalVariation,
    prompts,
)
from dio_lightning.ops import mutual_information
from dio_lightning.pair import Pair
from dio_lightning.transformations import FreeForm
from dio_lightning.updates import Descent, GaussNewton, ImageDescent

TERMS: dict[str, Term] = {
    "features": FeatureDistance(),
    "features (mean)": FeatureDistance(normalise=False),
    "features (splines)": SplineDistance(),
    "ssd": SSD(),
    "lncc": LNCC(5),
    "signed lncc": LNCC(3, signed=True),
    "information": MutualInformation(9),
    "features (lncc)": FeatureSimilarity(LNCC(3)),
    "diffusion": Diffusion(),
    "diffusion (mean)": Diffusion("mean"),
    "bending": Bending(),
    "variation": TotalVariation(),
    "jacobian": JacobianPenalty(0.5, 0.3, 0.4),
    "folding": Folding(),
    "labels": LabelPrompt(),
    "some labels": LabelPrompt([1, 3]),
    "landmarks": LandmarkPrompt(),
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
every_factor = pytest.mark.parametrize("factor", [1, 2], ids=["whole", "blocks"])


@every_factor
@every_size
@every_term
def test_the_slope_is_the_gradient_of_voxels_times_the_value(term: Term, size, factor) -> None:
    """Central differences, for each sample of its own; and autograd of the value."""
    level = level_of(size, factor)
    u, energy, h = between(level), term.on(level), 1e-6
    towards = torch.randn_like(u)
    voxels = level.fixed[0, 0].numel()
    with torch.no_grad():
        value, slope = energy.slope(u)
        ahead, behind = (energy.value(u + sign * h * towards) for sign in (1, -1))
    assert value.shape == (2,)
    assert_close(value, energy.value(u))
    assert_close(value, term.value(level, u))
    expected = voxels * (ahead - behind) / (2 * h)
    assert_close((slope * towards).flatten(1).sum(1), expected, rtol=1e-5, atol=1e-6)
    at = u.clone().requires_grad_()
    (by_value,) = torch.autograd.grad(term.value(level, at).sum() * voxels, at)
    assert_close(slope, by_value)
    assert slope.abs().amax() > 0


@every_size
@every_term
def test_the_slope_can_be_differentiated(term: Term, size) -> None:
    """As an adjoint does: the derivative of the slope along one direction, by central differences."""
    level = level_of(size)
    u, energy, h = between(level).requires_grad_(), term.on(level), 1e-6
    left, right = torch.randn_like(u), torch.randn_like(u)
    slope = energy.slope(u)[1]
    (pulled,) = torch.autograd.grad((slope * left).sum(), u)
    with torch.no_grad():
        ahead, behind = ((energy.slope(u + sign * h * right)[1] * left).sum() for sign in (1, -1))
    assert_close((pulled * right).sum(), (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-5)


@every_term
def test_a_slope_needs_no_graph_and_belongs_to_its_sample(term: Term) -> None:
    level = level_of(SIZES["2d"], 2)
    u = between(level)
    with torch.no_grad():
        value, slope = term.slope(level, u)
    assert not slope.requires_grad and not term.slope(level, u)[1].requires_grad
    with torch.inference_mode():
        pair: Pair = {k: v.clone() for k, v in level.pair.items()}  # pyright: ignore
        inside = Level(level.fixed.clone(), level.moving.clone(), level.grid, pair)
        assert_close(term.slope(inside, u.clone()), (value, slope))
    assert level.pair is not None
    pair = {k: v[1:] for k, v in level.pair.items()}  # pyright: ignore
    alone = Level(level.fixed[1:], level.moving[1:], level.grid, pair)
    assert_close(term.slope(alone, u[1:]), (value[1:], slope[1:]))


@every_size
def test_images_are_brought_to_a_level_as_intensity_features_are(size) -> None:
    pair, levels = pair_of(size), (4, 2, 1)
    features = Intensity(levels)
    pyramids = [features(pair["fixed"].float()), features(pair["moving"].float()), features.grids(size)]
    for fixed, moving, grid in zip(*pyramids, strict=True):
        level = Level(fixed, moving, grid, Pair(fixed=pair["fixed"].float(), moving=pair["moving"].float()))
        assert_close(level.images, (fixed, moving))
        u = between(level).float()
        assert_close(SSD().value(level, u), FeatureSimilarity(SSD()).value(level, u))


@every_size
def test_similarities_are_those_of_images_that_scipy_warps(size) -> None:
    level = level_of(size)
    assert level.pair is not None
    u = between(level)
    points = (identity(size, u) + u).numpy()
    moving = [map_coordinates(level.pair["moving"][i, 0].numpy(), points[i], order=1, mode="nearest") for i in (0, 1)]
    warped = torch.stack([torch.from_numpy(x) for x in moving])[:, None]
    fixed = level.pair["fixed"]
    assert_close(SSD().value(level, u), (warped - fixed).square().flatten(1).mean(1))
    low, high = (x(level.pair["moving"].flatten(1), 1).view(2, *[1] * (u.ndim - 1)) for x in (torch.amin, torch.amax))
    below, above = (x(fixed.flatten(1), 1).view(2, *[1] * (u.ndim - 1)) for x in (torch.amin, torch.amax))
    expected = -mutual_information((warped - low) / (high - low), (fixed - below) / (above - below), 32)
    assert_close(MutualInformation().value(level, u), expected)
    for images in zip(warped.split(1), fixed.split(1), strict=True):
        own = [(x - x.amin()) / (x.amax() - x.amin()) for x in images]
        assert_close(MutualInformation()(*images), -mutual_information(*own, 32)[0])


@every_size
def test_regularisers_of_polynomials_have_a_closed_form(size) -> None:
    d, level, x = len(size), level_of(size, batch=1), identity(size, torch.zeros(1, dtype=torch.float64))
    matrix = torch.randn(d, d, dtype=torch.float64)
    affine = torch.einsum("ij,bj...->bi...", matrix, x) + 3.0
    square = torch.zeros_like(affine)
    square[:, 0] = x[:, 0] ** 2 / 2 + x[:, 0] * x[:, 1]
    inside, edges = [(n - 2) / n for n in size], [(n - 1) / n for n in size]
    assert_close(Bending().value(level, affine), torch.zeros(1, dtype=torch.float64), atol=1e-16, rtol=0)
    expected = inside[0] + 2 * edges[0] * edges[1]
    assert_close(Bending().value(level, square), torch.full((1,), expected, dtype=torch.float64))
    slopes = sum(edges[j] * matrix[:, j].square().sum() for j in range(d))
    assert_close(Diffusion().value(level, affine)[0], slopes)
    assert_close(Diffusion("mean").value(level, affine)[0], slopes / d**2)
    ramp = torch.zeros_like(affine)
    ramp[:, 1] = 0.3 * x[:, 0]
    variation = edges[0] * ((0.09 + 1e-4) ** 0.5 - 0.01)
    assert_close(TotalVariation().value(level, ramp), torch.full((1,), variation, dtype=torch.float64))
    for stretch in (-2.5, 0.4):
        det = (1 + stretch) * torch.ones(1, dtype=torch.float64)
        u = torch.zeros_like(affine)
        u[:, 0] = stretch * x[:, 0]
        assert_close(Folding().value(level, u), torch.relu(-det))
        assert_close(JacobianPenalty(0.0, 1.0).value(level, u), det.clamp(min=0.01).log().square())


@every_size
def test_terms_are_the_losses_that_they_were(size) -> None:
    """Whatever a slot of the objective calls, against the formula that published configs were trained with."""
    u = smooth(2, len(size), *size)
    assert_close(Folding()(u), torch.relu(-jacobian_determinant(u)).mean(), rtol=0, atol=0)
    steps = [u.diff(dim=axis).square().mean() for axis in range(2, u.ndim)]
    assert_close(Diffusion("mean")(u), torch.stack(steps).sum() / len(size), rtol=0, atol=0)
    assert_close(Diffusion()(u), torch.stack(steps).sum() * len(size), rtol=0, atol=0)
    pair = pair_of(size)
    terms = Objective(MutualInformation(), 1.0, LabelPrompt(), 2.0, Bending(), 0.5, LandmarkPrompt(), 3.0)(pair, u)
    level = Level(pair["fixed"], pair["moving"], pair=pair)
    assert_close(terms["label"], LabelPrompt().value(level, u).mean())
    assert_close(terms["regularity"], Bending().value(level, u).mean())
    assert_close(terms["landmarks"], LandmarkPrompt().value(level, u).mean())
    expected = terms["image"] + 2 * terms["label"] + 0.5 * terms["regularity"] + 3 * terms["landmarks"]
    assert_close(terms["loss"], expected)


@every_factor
@every_size
def test_the_label_prompt_is_the_squared_distance_of_warped_masks(size, factor) -> None:
    """By one-hot masks, each averaged over blocks and warped on its own."""
    level, pool = level_of(size, factor), {2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}
    pair, u = level.pair, between(level)
    assert pair is not None and "fixed_label" in pair and "moving_label" in pair
    total = torch.zeros(2, dtype=torch.float64)
    for i in range(2):
        labels = [set(pair[k][i].unique().tolist()) for k in ("fixed_label", "moving_label")]
        both = (labels[0] & labels[1]) - {0}
        for k in both:
            masks = [(pair[name][i : i + 1] == k).double() for name in ("fixed_label", "moving_label")]
            f, m = (pool[len(size)](x, factor, ceil_mode=True, count_include_pad=False) for x in masks)
            total[i] += (warp(m, u[i : i + 1]) - f).square().mean() / f.std()
    assert_close(LabelPrompt().value(level, u), total)


def test_a_prompt_of_many_labels_holds_few_masks(monkeypatch) -> None:
    channels, match = [], prompts.match
    monkeypatch.setattr(prompts, "match", lambda f, m, u: channels.append(f.shape[1]) or match(f, m, u))
    label = torch.arange(36).view(1, 1, 6, 6).repeat_interleave(3, 2).short()
    image = torch.rand(1, 1, 18, 6)
    level = Level(image, image, pair=Pair(fixed=image, moving=image, fixed_label=label, moving_label=label))
    assert LabelPrompt().slope(level, torch.zeros(1, 2, 18, 6))[0].item() == 0
    assert max(channels) <= prompts.AT_ONCE and sum(channels) == 35


@every_size
def test_landmarks_are_those_of_the_image_at_every_level(size) -> None:
    """A translation of the image by the landmarks' distance costs nothing, and one voxel more its square."""
    shift = torch.arange(1.0, len(size) + 1, dtype=torch.float64)
    pair = pair_of(size, 1)
    assert "fixed_points" in pair
    pair["moving_points"] = pair["fixed_points"] + shift[:, None]
    for factor in (1, 2):
        grid = blocks(size, factor)
        level = Level(smooth(1, 1, *grid.size), smooth(1, 1, *grid.size), grid, pair)
        u = (shift / factor).view(1, -1, *[1] * len(size)).expand(1, -1, *grid.size)
        assert_close(LandmarkPrompt().value(level, u)[0].item(), 0.0, atol=1e-20, rtol=0)
        off, voxels, count = u + 1 / factor, u[0, 0].numel(), 6
        expected = count * len(size) / factor**2 / voxels**0.5
        assert_close(LandmarkPrompt().value(level, off)[0].item(), expected)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (LabelPrompt(), "LabelPrompt needs the labels of both images, which the pair does not have"),
        (LandmarkPrompt(), "LandmarkPrompt needs the landmarks of both images, which the pair does not have"),
    ],
)
def test_a_prompt_that_the_pair_cannot_answer_gets_one_sentence(term: Term, message: str) -> None:
    image = torch.rand(1, 1, 8, 9)
    for pair in (None, Pair(fixed=image, moving=image)):
        with pytest.raises(ValueError, match=message) as error:
            Descent(terms=[term]).on(Level(image, image, pair=pair), FreeForm())
        assert "\n" not in str(error.value)


def test_wrong_settings_and_labels_get_one_sentence() -> None:
    level = level_of(SIZES["2d"])
    calls: dict[str, Callable[[], object]] = {
        r"one of the labels \[99\] that both": lambda: LabelPrompt([99]).on(level),
        r"labels is \[0\]": lambda: LabelPrompt([0]),
        "weight of SSD is -1.0": lambda: SSD(-1.0),
        "epsilon is 0": lambda: TotalVariation(0.0),
        "folds is -1": lambda: JacobianPenalty(-1.0),
        "bins is 1": lambda: MutualInformation(1),
        "blocks from FeatureDistance, not SSD": lambda: GaussNewton(distance=SSD()),
        "normalise must be true": lambda: GaussNewton(distance=FeatureDistance(normalise=False)),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_terms_of_a_layer_have_no_weights_to_save() -> None:
    rules = [Descent(terms=list(TERMS.values())), ImageDescent(SSD(), terms=[LabelPrompt()])]
    for rule in rules:
        layer = OptimizerLayer([1], rule)
        assert not layer.state_dict() and len(list(layer.inner.children())) > 0
