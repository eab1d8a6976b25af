"""Cubic B-splines on a control grid: the interpolation, its gradient, the way from grid to grid, registration."""

import pytest
import torch
from scipy.interpolate import BSpline as Reference
from torch import Tensor
from torch.testing import assert_close

from dio_lightning.features import Intensity
from dio_lightning.fields import blocks, gaussian_smooth, identity, regrid, spanning, warp
from dio_lightning.implicit import Adam, GradientDescent, ImplicitAdjoint, Never, PhantomAdjoint, Picard
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.modules import DIO
from dio_lightning.networks import CNN
from dio_lightning.ops import match
from dio_lightning.transformations import BSpline
from dio_lightning.updates import Descent, LearnedStep

SIZES = {"2d": (17, 14), "3d": (9, 12, 10), "thin": (12, 1, 3), "small": (5, 5)}
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
every_spacing = pytest.mark.parametrize("spacing", [1, 3, 4])


def affine(size: tuple[int, ...], batch: int = 2) -> Tensor:
    """A displacement that is linear in the coordinates."""
    x, d = identity(size, torch.zeros(1, dtype=torch.float64)), len(size)
    return torch.einsum("bij,aj...->bi...", 0.3 * torch.randn(batch, d, d, dtype=torch.float64), x) + 1.5


def control(model: BSpline, size: tuple[int, ...], batch: int = 2) -> Tensor:
    return torch.randn_like(model.initial(torch.zeros(batch, 1, *size, dtype=torch.float64)))


@every_spacing
@every_size
def test_splines_are_those_of_scipy(size, spacing) -> None:
    model = BSpline(spacing)
    z = control(model, size, 1)
    expected = z[0].numpy()
    for axis, extent in enumerate(size, start=1):
        count = z.shape[axis + 1]
        # four more knots than splines; the middle of spline i is knot i + 2, one spacing before the grid for the first
        spline = Reference(spacing * (torch.arange(count + 4).double().numpy() - 3), expected, 3, axis=axis)
        expected = spline(torch.arange(extent).double().numpy())
    u = model.displacement(z, size)
    assert u.shape == (1, len(size), *size)
    assert_close(u[0], torch.from_numpy(expected))


@every_spacing
@every_size
def test_affine_displacements_are_reproduced_and_kept_from_grid_to_grid(size, spacing) -> None:
    """Beyond the voxels of the old grid too."""
    model, u = BSpline(spacing), affine(size)
    assert_close(model.displacement(model.parameters(u), size), u)
    larger = tuple(2 * n - 1 if n > 1 else 1 for n in size)
    for old, new in ((blocks(larger, 2), blocks(larger, 1)), (spanning(larger, size), spanning(larger, larger))):
        z = model.parameters(u)
        found = model.displacement(model.regrid(z, old, new), larger)
        assert_close(found, regrid(u, old, new))


@every_size
def test_parameters_are_found_again_where_voxels_outnumber_them(size) -> None:
    model = BSpline(3)
    z = gaussian_smooth(3 * control(model, size), 1.5)
    fitted = model.parameters(model.displacement(z, size))
    assert fitted.shape == z.shape
    # all but the ends, which are fitted a little straight
    error = model.displacement(fitted, size) - model.displacement(z, size)
    assert error.abs().max() < 0.02 * model.displacement(z, size).abs().max()


def test_rounding_is_not_blown_up_where_a_control_point_hardly_reaches_the_voxels() -> None:
    model, u = BSpline(3), affine((11, 11))
    noise = 1e-6 * torch.randn_like(u)
    assert (model.parameters(u + noise) - model.parameters(u)).abs().max() < 1e-3


def test_a_displacement_is_brought_to_its_closest_splines() -> None:
    """As close as the least squares of all axes at once."""
    model, size = BSpline(4), (11, 10)
    u = gaussian_smooth(torch.randn(1, 2, *size, dtype=torch.float64), 1.5)
    basis = torch.eye(model.initial(u)[0, 0].numel(), dtype=torch.float64)
    shape = model.initial(u).shape[2:]
    columns = model.displacement(basis.view(-1, 1, *shape).expand(-1, 2, *shape), size)[:, 0].flatten(1)
    expected = torch.linalg.lstsq(columns.T, u[0].flatten(1).T).solution.T
    error, least = (model.displacement(z.view(1, 2, *shape), size) - u for z in (model.parameters(u), expected))
    assert error.norm() < least.norm() + 0.1 * u.norm()  # the ends are kept a little straight
    assert error[..., 3:-3, 3:-3].norm() < 1.5 * least.norm()


@every_size
def test_the_gradient_is_that_of_the_energy_over_the_weight_of_each_control_point(size) -> None:
    model = BSpline(3)
    z = control(model, size).requires_grad_()
    target = torch.randn(2, len(size), *size, dtype=torch.float64)
    energy = (model.displacement(z, size) - target).square().sum()
    (plain,) = torch.autograd.grad(energy, z)
    ones = torch.ones_like(target)
    (weight,) = torch.autograd.grad((model.displacement(z, size) * ones).sum(), z)
    found = model.gradient(z.detach(), size, lambda u: 2 * (u - target))
    assert_close(found * weight, plain, atol=1e-9, rtol=1e-6)
    # a slope of one everywhere is a gradient of one wherever a spline has weight
    flat = model.gradient(z.detach(), size, lambda u: torch.ones_like(u))
    assert_close(flat[weight > 1e-3], torch.ones_like(flat[weight > 1e-3]))
    assert torch.autograd.gradcheck(lambda z: model.gradient(z, size, lambda u: u.square()), (z,))


@pytest.mark.parametrize("adjoint", [PhantomAdjoint(2), ImplicitAdjoint()], ids=lambda a: type(a).__name__)
def test_adjoints_pass_gradients_after_a_test_in_inference_mode(adjoint) -> None:
    """What is kept from a test under inference mode serves a training after it."""
    model, moving = BSpline(3), gaussian_smooth(torch.randn(1, 2, 19, 16), 2.0)
    fixed = warp(moving, torch.full((1, 2, 19, 16), 0.4))
    layer = OptimizerLayer([6, 3], Descent(regularity=0.1), Adam(0.2), model, adjoint, stop=Never())
    pyramids = [[torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True), x] for x in (fixed, moving)]
    with torch.inference_mode():
        before = layer(*[[x.clone() for x in p] for p in pyramids])[-1].value
    leaves = [[x.clone().requires_grad_() for x in p] for p in pyramids]
    after = layer(*leaves)[-1]
    after.value.square().sum().backward()
    assert all(p[-1].grad is not None and p[-1].grad.abs().sum() > 0 for p in leaves)
    assert before.shape == after.value.shape


def test_one_step_of_descent_is_the_mean_slope_of_each_spline() -> None:
    model, size = BSpline(4), (13, 12)
    fixed, moving = torch.randn(2, 1, 2, *size, dtype=torch.float64)
    z = control(model, size, 1)
    u = model.displacement(z, size)
    slope = match(fixed, moving, u)[1] / fixed.flatten(2).var(dim=2).mean(1)
    expected = model.gradient(z, size, lambda u: slope)
    with torch.no_grad():
        assert_close(Descent(0.0).on(Level(fixed, moving), model)(z), z - expected)
        assert_close(Descent(2.0).on(Level(fixed, moving), model)(z), z - gaussian_smooth(expected, 2.0))


@pytest.mark.parametrize("solver", [Adam(0.2), GradientDescent(0.5)], ids=lambda s: type(s).__name__)
def test_a_pyramid_finds_a_shift_and_a_bump(solver) -> None:
    size = (48, 40)
    moving = gaussian_smooth(torch.randn(1, 1, *size), 2.5, truncate=3.0)
    x = identity(size, moving)
    bump = 1.5 * torch.exp(-((x[:, :1] - 24) ** 2 + (x[:, 1:] - 20) ** 2) / 128)
    truth = torch.cat([bump, torch.full_like(bump, -2.0)], 1)
    fixed = warp(moving, truth)
    layer = OptimizerLayer([80, 60, 40], Descent(1.0), solver, BSpline(), stop=Never())
    with torch.no_grad():
        u = DIO(Intensity((4, 2, 1)), layer).register({"fixed": fixed, "moving": moving})
    error = (u - truth)[..., 8:-8, 8:-8].abs()
    assert error.mean() < 0.25 and (warp(moving, u) - fixed).square().mean() < 0.05 * (moving - fixed).square().mean()


def test_what_does_not_fit_gets_one_sentence() -> None:
    with pytest.raises(ValueError, match="spacing is 0, expected at least 1 voxel"):
        BSpline(0)
    # here as many control points as voxels, and no field all the same
    image = torch.rand(1, 1, 5, 5)
    assert BSpline(2).initial(image).shape[2:] == (5, 5)
    layer = OptimizerLayer([1], LearnedStep(CNN(4, 2, width=4)), Picard(), BSpline(2))
    with pytest.raises(ValueError, match="BSpline has no field to step on"):
        layer([image], [image])
