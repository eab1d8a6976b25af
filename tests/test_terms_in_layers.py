"""A layer descends on several terms: their weighted sum, and exact gradients through its solution."""

import pytest
import torch
from levels import SIZES, between, every_size, level_of, smooth
from torch import Tensor
from torch.testing import assert_close

from dio_lightning.fields import warp
from dio_lightning.implicit import Adam, Anderson, ImplicitAdjoint, Never, PhantomAdjoint, Picard, Residual, fixed_point
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses import (
    LNCC,
    SSD,
    Bending,
    Diffusion,
    FeatureDistance,
    LabelPrompt,
    LandmarkPrompt,
    MutualInformation,
    TotalVariation,
)
from dio_lightning.pair import Pair
from dio_lightning.transformations import FreeForm
from dio_lightning.updates import Descent, GaussNewton, descent


def test_a_layer_descends_on_the_weighted_sum(monkeypatch) -> None:
    """Step, and the energy of the stop rule, by autograd of all terms together, none of them quiet."""
    monkeypatch.setattr(descent, "AGREED", 0.0)
    level = level_of(SIZES["2d"])
    terms = [SSD(2.0), Bending(0.3), LabelPrompt(weight=0.5), LandmarkPrompt(0.1), MutualInformation(9, 0.7)]
    u, voxels = between(level), level.fixed[0, 0].numel()
    for distance in (FeatureDistance(weight=0.4), LNCC(3)):
        f = Descent(0.0, 0.2, terms=terms, distance=distance).on(level, FreeForm())
        with torch.no_grad():
            step = f(u) - u
        at = u.clone().requires_grad_()
        total = sum(t.weight * t.value(level, at) for t in [distance, *terms, Diffusion(weight=0.2)])
        assert isinstance(total, Tensor)
        assert_close(f.energy, voxels * total.detach())
        assert_close(step, -torch.autograd.grad(voxels * total.sum(), at)[0])


@every_size
def test_gauss_newton_solves_the_blocks_of_the_features_for_the_slope_of_every_term(size) -> None:
    level, terms = level_of(size, batch=1), [Bending(0.3), LandmarkPrompt(0.1)]
    rule = GaussNewton(0.0, max_step=1e9, terms=terms, distance=FeatureDistance(weight=0.7))
    u, d = between(level), len(size)
    with torch.no_grad():
        step = rule.on(level, FreeForm()).direction(u)
        slope = 0.7 * FeatureDistance().slope(level, u)[1]
        for term in terms:
            slope = slope + term.weight * term.slope(level, u)[1]
    scale = level.fixed.flatten(2).var(dim=2).mean()
    at = u.clone().requires_grad_()
    warped = warp(level.moving, at)
    rows = [torch.autograd.grad(warped[:, c].sum(), at, retain_graph=True)[0] for c in range(warped.shape[1])]
    gradients = torch.stack(rows, 1)
    block = 0.7 * 2 / len(rows) * torch.einsum("bci...,bcj...->bij...", gradients, gradients) / scale
    residual = 2 / len(rows) * (warped - level.fixed).square().sum(1) / scale
    unit = torch.eye(d, dtype=u.dtype).view(1, d, d, *[1] * d)
    left = block + unit * (2 * rule.damping + rule.residual_damping * residual)[:, None]
    assert_close(torch.einsum("bij...,bj...->bi...", left, step), -slope)


def test_an_image_stays_where_it_is_unless_a_prompt_asks() -> None:
    """A12: terms that compare have nothing to say of images that agree; landmarks that do not agree move them."""
    image, label = smooth(1, 1, 24, 20).float(), torch.ones(1, 1, 24, 20, dtype=torch.int16)
    points = torch.tensor([[[8.0, 15.0], [9.0, 12.0]]])
    pair = Pair(fixed=image, moving=image.clone(), fixed_label=label, moving_label=label)
    still = Descent(terms=[SSD(), LNCC(5), MutualInformation(), Bending(0.1)])
    asked = Descent(terms=[LandmarkPrompt()])
    lengths = []
    for update, more in ((still, Pair(fixed=image, moving=image)), (asked, pair)):
        if update is asked:
            more = Pair(**{**more, "fixed_points": points, "moving_points": points + 2.0})
        layer = OptimizerLayer([20], update, Adam(0.2), stop=Never())
        with torch.no_grad():
            lengths.append(float(layer([image], [image.clone()], pair=more)[0].value.abs().amax()))
    assert lengths[0] < 1e-3 and lengths[1] > 1


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_implicit_gradient_with_terms_agrees_with_finite_differences(which: str) -> None:
    """λ > 0 by three regularisers: through the converged solve, against solving again beside it."""
    size = (7, 6)
    moving = smooth(1, 3, *size, sigma=1.0)
    u = 0.45 + 0.1 * smooth(1, 2, *size, sigma=1.5)
    fixed = warp(moving, u) + 0.01 * torch.randn_like(moving)
    settings = Descent(0.6, 0.3, terms=[Bending(0.1), TotalVariation(0.2, 0.1)])
    features = {"fixed": fixed.clone().requires_grad_(), "moving": moving.clone().requires_grad_()}
    target, start = torch.randn_like(u), torch.full_like(u, 0.5)

    def solve(f: Tensor, m: Tensor, adjoint: ImplicitAdjoint | PhantomAdjoint) -> Tensor:
        update = settings.on(Level(f, m), FreeForm())
        solution = fixed_point(
            lambda z: z + 0.1 * (update(z) - z), start, Anderson(8), adjoint, max_steps=2000, stop=Residual(1e-13)
        )
        assert bool(solution.converged.all())
        return (solution.value * target).sum()

    loss = solve(features["fixed"], features["moving"], ImplicitAdjoint(rtol=1e-11, max_steps=300, restart=60))
    (exact,) = torch.autograd.grad(loss, features[which])
    direction, step, values = smooth(1, 3, *size), 1e-5, []
    for sign in (1, -1):
        beside = {name: x.detach() + sign * step * direction * (name == which) for name, x in features.items()}
        values.append(solve(beside["fixed"], beside["moving"], PhantomAdjoint()).detach())
    assert_close((exact * direction).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-8)


def test_gauss_newton_with_terms_finds_a_shift() -> None:
    moving = smooth(1, 6, 28, 24, sigma=2.0).float()
    fixed = warp(moving, torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 28, 24))
    layer = OptimizerLayer([60], GaussNewton(terms=[Bending(0.05)]), Picard(), stop=Never())
    with torch.no_grad():
        u = layer([fixed], [moving])[0].value
    assert abs(u[0, 0, 6:-6, 6:-6].mean() - 2) < 0.15
