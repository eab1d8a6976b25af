"""The optimizer layer on problems whose answer is known: shifts, folds, scales, and gradients through the solution."""

import pytest
import torch
from torch.testing import assert_close

from dio_lightning.fields import gaussian_smooth, jacobian_determinant, warp
from dio_lightning.implicit import (
    Adam,
    Anderson,
    GradientDescent,
    ImplicitAdjoint,
    Never,
    PhantomAdjoint,
    Picard,
    Residual,
    UnrolledAdjoint,
    fixed_point,
)
from dio_lightning.layers import OptimizerLayer
from dio_lightning.layers.optimizer import clamp_to_quantile
from dio_lightning.level import Level
from dio_lightning.transformations import BSpline, Diffeomorphism, FreeForm, StationaryVelocity
from dio_lightning.updates import Descent, GaussNewton
from dio_lightning.updates.gauss_newton import solve_blocks

SIZES = [(28, 24), (20, 18, 22)]
METHODS = {
    "adam": (Descent(), Adam(0.3)),
    "gradient descent": (Descent(), GradientDescent(0.5)),
    "gauss-newton": (GaussNewton(), Picard()),
}
MODELS = [FreeForm(), Diffeomorphism(), StationaryVelocity(4), BSpline()]


def shifted(size: tuple[int, ...], shift: float, channels: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random features and the same, moved by a shift along the first axis, with unit variance."""
    noise = torch.randn(1, channels, *size)
    moving = gaussian_smooth(noise, 2.0, truncate=3.0)
    moving = moving / moving.std()
    u = torch.zeros(1, len(size), *size)
    u[:, 0] = shift
    return warp(moving, u), moving


@pytest.fixture(params=SIZES, ids=["2d", "3d"])
def size(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.mark.parametrize("transformation", MODELS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_recovers_a_shift_of_two_voxels(size, method, transformation) -> None:
    update, solver = METHODS[method]
    if isinstance(update, GaussNewton) and not transformation.direct:
        pytest.skip("Gauss-Newton blocks belong to the displacement")
    fixed, moving = shifted(size, 2.0)
    layer = OptimizerLayer([80], update, solver, transformation, stop=Never())
    with torch.no_grad():
        u = layer([fixed], [moving])[0].value
    inner = (slice(None), 0, *[slice(6, -6)] * len(size))
    assert abs(u[inner].mean() - 2) < 0.15


@pytest.mark.parametrize("method", METHODS)
def test_the_result_does_not_depend_on_the_scale_of_the_features(size, method) -> None:
    fixed, moving = shifted(size, 1.0)
    layer = OptimizerLayer([10], *METHODS[method], stop=Never())
    with torch.no_grad():
        plain = layer([fixed], [moving])[0].value
        scaled = layer([100 * fixed], [100 * moving])[0].value
    assert_close(plain, scaled, atol=1e-3, rtol=1e-2)


def test_the_official_settings_do_depend_on_it() -> None:
    fixed, moving = shifted((28, 24), 2.0)
    layer = OptimizerLayer([50], Descent(normalise=False), GradientDescent(3e-3), stop=Never())
    with torch.no_grad():
        assert layer([fixed], [moving])[0].value.abs().max() < 0.1
        assert layer([300 * fixed], [300 * moving])[0].value.abs().max() > 0.5


def test_a_diffeomorphism_does_not_fold_where_a_free_form_field_does() -> None:
    fixed, moving = gaussian_smooth(torch.randn(2, 4, 32, 32), 2.0).chunk(2)
    folds = {}
    for transformation in (FreeForm(), Diffeomorphism()):
        layer = OptimizerLayer([100], Descent(1.0), Adam(0.3), transformation, stop=Never(), field_sigma=0.5)
        with torch.no_grad():
            u = layer([fixed], [moving])[0].value
        folds[type(transformation)] = int((jacobian_determinant(u) <= 0).sum())
    assert folds[FreeForm] > 100
    assert folds[Diffeomorphism] == 0


def test_a_pyramid_goes_further_than_its_finest_level() -> None:
    fixed, moving = shifted((64, 64), 6.0)
    coarse = [torch.nn.functional.avg_pool2d(x, 4) for x in (fixed, moving)]
    with torch.no_grad():
        u = OptimizerLayer([40, 20])([coarse[0], fixed], [coarse[1], moving])[-1].value
    assert abs(u[:, 0, 12:-12, 12:-12].mean() - 6) < 0.3


def test_samples_of_a_batch_are_independent() -> None:
    fixed, moving = (torch.cat(x) for x in zip(shifted((20, 20), 1.0), shifted((20, 20), 3.0), strict=True))
    layer = OptimizerLayer([40])
    with torch.no_grad():
        both = layer([fixed], [moving])[0]
        alone = layer([fixed[1:]], [moving[1:]])[0]
        moving[0, 0, 0, 0] = torch.nan
        broken = layer([fixed], [moving])[0]
    assert_close(both.value[1:], alone.value)
    assert broken.failed.tolist() == [True, False]
    assert_close(broken.value[1:], alone.value)


def smooth_problem() -> tuple[torch.Tensor, torch.Tensor, Descent]:
    """Features whose solution stays inside one cell of the moving grid, so that the energy is smooth around it."""
    moving = gaussian_smooth(torch.randn(1, 3, 9, 8, dtype=torch.float64), 1.0)
    u = 0.45 + 0.2 * gaussian_smooth(torch.randn(1, 2, 9, 8, dtype=torch.float64), 1.5)
    return warp(moving, u) + 0.01 * torch.randn_like(moving), moving, Descent(sigma=0.6, regularity=0.3)


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_implicit_gradient_of_a_converged_registration_agrees_with_finite_differences(which: str) -> None:
    fixed, moving, settings = smooth_problem()
    features = {"fixed": fixed.clone().requires_grad_(), "moving": moving.clone().requires_grad_()}
    scale = settings.on(Level(fixed, moving), FreeForm()).scale
    target = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    start = torch.full((1, 2, 9, 8), 0.5, dtype=torch.float64)

    def solve(f: torch.Tensor, m: torch.Tensor, adjoint: ImplicitAdjoint | PhantomAdjoint) -> torch.Tensor:
        update = settings.on(Level(f, m), FreeForm())
        update.scale = scale  # the scale is held constant, by the adjoint too
        damped = lambda z: z + 0.2 * (update(z) - z)  # noqa: E731
        solution = fixed_point(damped, start, Anderson(8), adjoint, max_steps=3000, stop=Residual(1e-13))
        assert bool(solution.converged.all())
        return (solution.value * target).sum()

    loss = solve(features["fixed"], features["moving"], ImplicitAdjoint(rtol=1e-11, max_steps=300, restart=60))
    (exact,) = torch.autograd.grad(loss, features[which])
    direction = gaussian_smooth(torch.randn_like(fixed), 1.0)
    step = 1e-5
    values = []
    for sign in (1, -1):
        moved = {name: x.detach() + sign * step * direction * (name == which) for name, x in features.items()}
        values.append(solve(moved["fixed"], moved["moving"], PhantomAdjoint()).detach())
    assert_close((exact * direction).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-8)


def test_jfb_is_the_contraction_of_the_gradients_derivative() -> None:
    """One phantom step from u*: ∂⟨v, u₁⟩/∂F = -η ∂⟨v, ρ⟩/∂F, by hand from double backward."""
    fixed, moving, _ = smooth_problem()
    fixed.requires_grad_()
    layer = OptimizerLayer([5], Descent(0.0), GradientDescent(0.3), stop=Never(), field_sigma=0.0, clamp_quantile=1.0)
    solution = layer([fixed], [moving])[0].value
    v = torch.randn_like(solution)
    (found,) = torch.autograd.grad((solution * v).sum(), fixed)
    # u1 = u* - 0.3 ρ(u*): recover u* by solving again without the phantom step
    with torch.no_grad():
        star = layer([fixed], [moving])[0].value
    star = star.requires_grad_()
    scale = fixed.flatten(2).var(dim=2).mean()
    energy = (warp(moving, star) - fixed).square().mean(1).sum() / scale
    (rho,) = torch.autograd.grad(energy, star, create_graph=True)
    (expected,) = torch.autograd.grad(-0.3 * (rho * v).sum(), fixed)
    assert_close(found, expected)


def test_the_gradient_has_no_part_along_the_scale_of_the_features() -> None:
    """The result does not depend on that scale, so neither may training try to change it."""
    fixed, moving, _ = smooth_problem()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    layer = OptimizerLayer([5], Descent(0.6), Adam(0.1), stop=Never())
    value = layer([scale * fixed], [scale * moving])[0].value
    (along,) = torch.autograd.grad((value * torch.randn_like(value)).sum(), scale)
    assert abs(along) < 1e-9


def test_phantom_steps_equal_unrolled_steps() -> None:
    fixed, moving, settings = smooth_problem()
    fixed.requires_grad_()
    gradients = []
    for steps, adjoint in ((3, UnrolledAdjoint()), (0, PhantomAdjoint(3))):
        layer = OptimizerLayer([steps], settings, Picard(), adjoint=adjoint, stop=Never(), clamp_quantile=1.0)
        value = layer([fixed], [moving])[0].value
        gradients.append(torch.autograd.grad(value.square().sum(), fixed)[0])
    assert_close(gradients[0], gradients[1])


def test_gradients_of_a_level_reach_only_its_own_features() -> None:
    pyramids = [[torch.randn(1, 2, n, n).requires_grad_() for n in (8, 16)] for _ in range(2)]
    OptimizerLayer([3, 3])(*pyramids)[-1].value.sum().backward()
    assert pyramids[0][0].grad is None
    assert pyramids[0][1].grad is not None


@pytest.mark.parametrize("d", [2, 3])
def test_blocks_are_solved_like_matrices(d: int) -> None:
    half = torch.randn(1, d, d, 5, *[1] * (d - 1), dtype=torch.float64)
    matrix = torch.einsum("bik...,bjk...->bij...", half, half)
    packed = torch.stack([matrix[:, i, j] for i in range(d) for j in range(i, d)], 1)
    right, damping = torch.randn_like(half[:, 0]), torch.rand_like(packed[:, :1]) + 0.1
    full = matrix.movedim((1, 2), (-2, -1)) + damping.movedim(1, -1)[..., None] * torch.eye(d, dtype=half.dtype)
    expected = torch.linalg.solve(full, right.movedim(1, -1)[..., None])[..., 0].movedim(-1, 1)
    assert_close(solve_blocks(packed, damping, right), expected)


def test_single_channel_gradients_point_along_the_moving_image() -> None:
    """The implicit bias of image space (methods of DIO): ρ = C' ∇M, whatever the fixed image."""
    fixed, moving = torch.randn(2, 1, 1, 12, 12, dtype=torch.float64)
    u = torch.rand(1, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    (along,) = torch.autograd.grad(warp(moving, u).sum(), u)
    rho = -Descent().on(Level(fixed, moving), FreeForm()).direction(u.detach())
    cosine = (along * rho).sum(1).abs() / (along.norm(dim=1) * rho.norm(dim=1)).clamp(min=1e-12)
    assert cosine[rho.norm(dim=1) > 1e-9].min() > 1 - 1e-9


def test_the_clamp_keeps_most_values_and_bounds_the_rest() -> None:
    gradient = torch.arange(1.0, 101.0).view(1, 1, 100)
    clamped = clamp_to_quantile(gradient, 0.98)
    assert clamped.max() == 98
    assert torch.equal(clamped[..., :98], gradient[..., :98])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": []}, "iterations are"),
        ({"field_sigma": -1.0}, "field_sigma is -1.0"),
        ({"clamp_quantile": 0.0}, "clamp_quantile 0.0"),
    ],
)
def test_wrong_settings_get_one_sentence(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerLayer(**arguments)


def test_gauss_newton_refuses_the_official_scale() -> None:
    with pytest.raises(ValueError, match="normalise must be true"):
        GaussNewton(normalise=False)
