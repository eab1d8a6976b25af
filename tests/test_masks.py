"""Masks: what is left out of a comparison has no say in it, and what is left in says what it said before."""

from itertools import product

import numpy as np
import pytest
import torch
from levels import between, every_size, level_of, smooth
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from dio_lightning.fields import warp
from dio_lightning.level import Level
from dio_lightning.losses import LNCC, SSD, FeatureDistance, FeatureSimilarity, MutualInformation, Term
from dio_lightning.losses.similarity import Similarity
from dio_lightning.ops import local_correlation, weighted_correlation
from dio_lightning.pair import Pair
from dio_lightning.transformations import FreeForm
from dio_lightning.updates import Descent, GaussNewton, ImageDescent

TERMS: dict[str, Term] = {
    "ssd": SSD(),
    "lncc": LNCC(5),
    "signed lncc": LNCC(3, signed=True),
    "information": MutualInformation(9),
    "features": FeatureDistance(),
    "features (lncc)": FeatureSimilarity(LNCC(3)),
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
every_factor = pytest.mark.parametrize("factor", [1, 2], ids=["whole", "blocks"])


def masked(level: Level, sides: str) -> Level:
    """The level with a box left out of the masks of these images."""
    assert level.pair is not None
    pair, size = level.pair.copy(), level.pair["fixed"].shape[2:]
    for side, start in (("fixed", 2), ("moving", 3)):
        if side in sides:
            mask = torch.ones(2, 1, *size, dtype=torch.uint8)
            mask[(..., *[slice(start, start + 4)] * len(size))] = 0
            pair[f"{side}_mask"] = mask
    return Level(level.fixed, level.moving, level.grid, pair, masked=True)


class Absolute(Similarity):
    """A similarity that takes no weights."""

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Mean absolute difference."""
        return (warped - fixed).abs().mean()


def by_hand(a: np.ndarray, b: np.ndarray, w: np.ndarray, window: int, signed: bool) -> float:
    """1 - weighted correlation, window by window; the outside of the image counts, as zeros."""
    radius, d, values = window // 2, a.ndim, []
    a, b = np.pad(a, radius), np.pad(b, radius)
    w = np.pad(w, radius, constant_values=1.0)
    for corner in product(*[range(n - 2 * radius) for n in a.shape]):
        cut = tuple(slice(i, i + window) for i in corner)
        weights, x, y = w[cut].ravel(), a[cut].ravel(), b[cut].ravel()
        share = weights.sum() / window**d
        if share < 0.25:
            values.append(0.0)
            continue
        x, y = (v - np.average(v, weights=weights) for v in (x, y))
        cross, one, two = (weights * x * y).sum(), (weights * x * x).sum(), (weights * y * y).sum()
        product_of = max(one, 1e-5) * max(two, 1e-5) + 1e-5
        values.append(share * (1 - (cross / np.sqrt(product_of) if signed else cross**2 / product_of)))
    return float(np.mean(values))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("size", "window"), [((9, 7), 5), ((4, 5, 4), 3)], ids=["2d", "3d"])
def test_weighted_correlation_is_its_definition(size, window, signed) -> None:
    """Far from zero too, where sums of squares lose their digits; and both derivatives."""
    a, b = (100 + torch.rand(1, 1, *size, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(1, 1, *size, dtype=torch.float64) * (torch.rand(1, 1, *size) > 0.5)
    expected = by_hand(*(x[0, 0].numpy() for x in (a, b, weights)), window, signed)
    assert float(LNCC(window, signed)(a, b, weights)) == pytest.approx(expected, rel=1e-9)

    def correlation(a: Tensor, b: Tensor) -> Tensor:
        return weighted_correlation(a, b, weights, window, signed).correlation

    images = [x.clone().sub(100).requires_grad_() for x in (a, b)]
    assert gradcheck(correlation, images) and gradgradcheck(correlation, images, atol=1e-4)


@every_size
def test_weights_of_one_change_nothing(size) -> None:
    a, b = smooth(2, 1, *size), smooth(2, 1, *size)
    weighted = weighted_correlation(a, b, torch.ones_like(a), 5)
    assert_close(weighted.correlation, local_correlation(a, b, 5))
    assert weighted.share == 1


@every_factor
@every_size
@every_term
def test_a_mask_that_holds_all_changes_nothing(term: Term, size, factor) -> None:
    level = level_of(size, factor)
    ones: Pair = {**level.pair, "fixed_mask": torch.ones(2, 1, *size, dtype=torch.uint8)}  # type: ignore[typeddict-item]
    u = between(level)
    assert_close(term.slope(Level(level.fixed, level.moving, level.grid, ones, masked=True), u), term.slope(level, u))


@every_factor
@every_size
@every_term
def test_the_slope_is_the_gradient_of_voxels_times_the_value(term: Term, size, factor) -> None:
    level = masked(level_of(size, factor), "fixed")
    u, energy, h = between(level), term.on(level), 1e-6
    towards, voxels = torch.randn_like(u), level.fixed[0, 0].numel()
    with torch.no_grad():
        value, slope = energy.slope(u)
        ahead, behind = (energy.value(u + sign * h * towards) for sign in (1, -1))
    assert_close(value, energy.value(u))
    assert_close((slope * towards).flatten(1).sum(1), voxels * (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)
    assert slope.abs().amax() > 0


@every_size
def test_the_moving_mask_goes_along_and_has_no_slope_of_its_own(size) -> None:
    """Squared differences over the voxels that count, by hand; the derivative with those voxels held."""
    level = masked(level_of(size), "fixed and moving")
    u = between(level).requires_grad_()
    assert level.pair is not None
    fixed, moving, inner, theirs = (
        level.pair[key].double() for key in ("fixed", "moving", "fixed_mask", "moving_mask")
    )
    counts = (inner > 0) & (warp(theirs, u.detach()) > 0.999)
    value = ((warp(moving, u) - fixed).square() * counts).flatten(1).mean(1)
    (expected,) = torch.autograd.grad(value.sum() * fixed[0].numel(), u)
    assert_close(SSD().slope(level, u.detach()), (value.detach(), expected))
    outside = ~counts.expand_as(expected)
    assert outside.any() and not expected[outside].any()


@every_factor
@every_size
@pytest.mark.parametrize("term", [SSD(), LNCC(5), LNCC(3, signed=True), MutualInformation(9)], ids=repr)
def test_what_is_left_out_has_no_say(term: Term, size, factor) -> None:
    """Other intensities in there, of either image, leave energy and slope as they are: blocks and cells too."""
    level = masked(level_of(size, factor), "fixed and moving")
    assert level.pair is not None
    other = level.pair.copy()
    for side in ("fixed", "moving"):
        other[side] = torch.where(level.pair[f"{side}_mask"] > 0, level.pair[side], 7.0)  # type: ignore[literal-required]
    lesions = Level(level.fixed, level.moving, level.grid, other, masked=True)
    u = between(level)
    # at whole voxels too, where interpolation looks at one side and its slope at the other
    for displacement in (u, torch.zeros_like(u), u.round()):
        assert_close(term.slope(lesions, displacement), term.slope(level, displacement))
    unmasked = (Level(x.fixed, x.moving, x.grid, x.pair) for x in (level, lesions))
    slopes = [term.slope(x, u)[1] for x in unmasked]
    assert (slopes[0] - slopes[1]).norm() > 0.1 * slopes[0].norm()


@every_size
def test_features_that_are_left_out_have_no_say(size) -> None:
    level = masked(level_of(size), "fixed and moving")
    assert level.pair is not None
    u = between(level)
    fixed, moving = (
        torch.where(level.pair[f"{side}_mask"] > 0, x, 5.0)  # type: ignore[literal-required]
        for side, x in (("fixed", level.fixed), ("moving", level.moving))
    )
    lesions = Level(fixed, moving, level.grid, level.pair, masked=True)
    for term, displacement in product((FeatureDistance(), FeatureSimilarity(LNCC(3))), (u, torch.zeros_like(u))):
        assert_close(term.slope(lesions, displacement), term.slope(level, displacement))


@every_size
@pytest.mark.parametrize("update", [ImageDescent(LNCC(3), masked=True), Descent(masked=True)], ids=["lncc", "features"])
def test_an_update_leaves_out_what_the_masks_of_its_pair_do_not_hold(update, size) -> None:
    level = level_of(size)
    u = between(level)
    assert level.pair is not None
    with pytest.raises(ValueError, match="needs a fixed_mask or a moving_mask"):
        update.on(level, FreeForm())
    given = masked(level, "fixed and moving")
    plain = Level(given.fixed, given.moving, given.grid, given.pair)
    term = FeatureSimilarity(LNCC(3)) if isinstance(update, ImageDescent) else FeatureDistance()
    with torch.no_grad():
        assert_close(update.on(plain, FreeForm()).slope(u), term.slope(given, u)[1])


def test_what_cannot_leave_voxels_out_says_so() -> None:
    level = masked(level_of((9, 8)), "fixed")
    for update in (ImageDescent(Absolute(), masked=True), Descent(masked=True, terms=[Absolute()])):
        with pytest.raises(ValueError, match="Absolute cannot leave out"):
            update.on(level, FreeForm())
    with pytest.raises(ValueError, match="GaussNewton leaves no voxels out"):
        GaussNewton(masked=True)


@every_size
@every_term
def test_where_nothing_counts_nothing_pulls(term: Term, size) -> None:
    """In one sample of a batch alone: the other has its own energy and slope."""
    level = masked(level_of(size), "fixed")
    assert level.pair is not None
    u = between(level)
    pair = {**level.pair, "fixed_mask": level.pair["fixed_mask"].clone()}
    pair["fixed_mask"][0] = 0
    value, slope = term.slope(Level(level.fixed, level.moving, level.grid, pair, masked=True), u)
    assert value.isfinite().all() and not slope[0].any()
    whole = term.slope(level, u)
    assert_close((value[1], slope[1]), (whole[0][1], whole[1][1]))
