"""The affine model against least squares and known maps, its gradients, and the dense models beside it."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from data_modules import SyntheticPairs
from dio_lightning.features import MIND, Intensity, UNet
from dio_lightning.fields import exponential, gaussian_smooth, identity, resize, warp
from dio_lightning.implicit import (
    Adam,
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
from dio_lightning.level import Level
from dio_lightning.losses import Dice, Objective
from dio_lightning.modules import DIO
from dio_lightning.ops import match, variances
from dio_lightning.transformations import Affine, Diffeomorphism, FreeForm, StationaryVelocity
from dio_lightning.updates import Descent, GaussNewton

ROOT = Path(__file__).parents[1]
SIZES = [(26, 33), (14, 19, 23)]
SOLVERS = {"adam": Adam(0.2), "gradient descent": GradientDescent(2.0), "picard": Picard()}


@pytest.fixture(params=SIZES, ids=["2d", "3d"])
def size(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


def image(size: tuple[int, ...], channels: int = 4, sigma: float = 2.5) -> torch.Tensor:
    """Smooth random features of unit variance."""
    smooth = gaussian_smooth(torch.randn(1, channels, *size, dtype=torch.float64), sigma, truncate=3.0)
    return smooth / smooth.std()


def parameters(d: int, scale: float, batch: int = 1) -> torch.Tensor:
    return scale * (2 * torch.rand(batch, d, d + 1, dtype=torch.float64) - 1)


def fitted(field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least-squares fit of voxel coordinates and a constant to a field: coefficients and what is left of the field."""
    points = identity(field.shape[2:], field)[0].flatten(1).T
    design = torch.cat([points, torch.ones_like(points[:, :1])], 1)
    flat = field[0].flatten(1).T
    coefficients = torch.linalg.lstsq(design, flat).solution
    return coefficients, (flat - design @ coefficients).T.reshape(field.shape)


def test_the_displacement_is_affine_and_a_unit_moves_the_border_by_one_voxel(size) -> None:
    d = len(size)
    z = parameters(d, 3.0, batch=2)
    u = Affine().displacement(z, size)
    assert u.shape == (2, d, *size)
    for sample in u.split(1):
        assert fitted(sample)[1].abs().max() < 1e-10
    first, last, middle = (u[(..., *[k] * d)] for k in (0, -1, slice(None)))
    assert_close(last, z.sum(2))
    assert_close(first, z[..., -1] - z[..., :-1].sum(2))
    assert_close(middle.flatten(2).mean(2), z[..., -1])


def test_no_parameters_are_the_identity(size) -> None:
    features = image(size).float().expand(3, -1, *size)
    z = Affine().initial(features)
    assert z.shape == (3, len(size), len(size) + 1) and z.dtype == torch.float32
    assert bool((Affine().displacement(z, size) == 0).all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_known_affine_is_recovered(size, solver) -> None:
    d, moving = len(size), image(size)
    truth = Affine().displacement(parameters(d, 1.0), size)
    layer = OptimizerLayer([100], Descent(), SOLVERS[solver], Affine(), stop=Never())
    with torch.no_grad():
        found = layer([warp(moving, truth).float()], [moving.float()])[0].value
    assert truth.norm(dim=1).mean() > 0.5
    assert (found - truth).norm(dim=1).mean() < 0.1
    assert fitted(found.double())[1].abs().max() < 1e-5


def test_a_pyramid_recovers_a_large_affine(size) -> None:
    moving, d = image(size, sigma=3.0), len(size)
    z = torch.zeros(1, d, d + 1, dtype=torch.float64)
    z[0, 0, -1], z[0, 0, 1], z[0, 1, 0] = 2.5, 1.5, -1.5
    truth = Affine().displacement(z, size)
    fine = (warp(moving, truth), moving)
    pool = torch.nn.functional.avg_pool2d if d == 2 else torch.nn.functional.avg_pool3d
    coarse = [pool(x, 2, ceil_mode=True, count_include_pad=False) for x in fine]
    fixed_levels, moving_levels = ([low, high] for low, high in zip(coarse, fine, strict=True))
    layer = OptimizerLayer([80, 60], Descent(), Adam(0.2), Affine(), stop=Never())
    with torch.no_grad():
        found = [s.value for s in layer(fixed_levels, moving_levels)]
    assert found[0].shape[2:] == coarse[0].shape[2:]
    assert (found[1] - truth).norm(dim=1).mean() < 0.1


def test_parameters_on_another_grid_are_the_same_map(size) -> None:
    model, z = Affine(), parameters(len(size), 2.0)
    for other in (tuple(-(-n // 2) for n in size), tuple(2 * n - 1 for n in size)):
        there = model.resize(z, size, other)
        assert_close(model.displacement(there, other), resize(model.displacement(z, size), other))
        assert_close(model.resize(there, other, size), z)


def test_the_gradient_is_the_affine_field_closest_to_that_of_the_displacement(size) -> None:
    slope = torch.randn(1, len(size), *size, dtype=torch.float64)
    z = parameters(len(size), 1.0)
    found = Affine().displacement(Affine().gradient(z, size, lambda u: slope), size)
    assert_close(found, slope - fitted(slope)[1])


def test_the_gradient_is_that_of_the_energy_times_one_positive_constant_per_parameter(size) -> None:
    d, settings = len(size), Descent(regularity=0.2)
    fixed, moving = image(size), image(size)
    z = parameters(d, 0.7).requires_grad_()
    u = Affine().displacement(z, size)
    variance = fixed.flatten(2).var(dim=2).mean()
    rough = sum(u.diff(dim=axis).square().sum() for axis in range(2, u.ndim))
    energy = (warp(moving, u) - fixed).square().mean(1).sum() / variance + 0.2 * rough
    (plain,) = torch.autograd.grad(energy, z)
    metric = torch.tensor([*[3 * (n - 1) / (n + 1) for n in size], 1.0], dtype=z.dtype) / u[0, 0].numel()
    update = settings.on(Level(fixed, moving), Affine())
    assert_close(-update.direction(z.detach()), plain * metric)
    assert update.energy is not None
    assert_close(update.energy, energy.detach()[None])


def test_an_axis_of_one_voxel_has_no_slope() -> None:
    z = parameters(3, 1.0)
    u = Affine().displacement(z, (5, 6, 1))
    assert_close(u.mean((2, 3, 4)), z[..., -1])
    gradient = Affine().gradient(z, (5, 6, 1), torch.ones_like)
    assert bool((gradient[..., 2] == 0).all()) and bool(gradient.isfinite().all())
    assert bool(Affine().resize(z, (5, 6, 1), (9, 11, 1)).isfinite().all())


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed and moving features whose solution stays inside one cell of the moving grid."""
    moving = image((9, 8), 3, 1.0)
    z = 0.1 * parameters(2, 1.0)
    z[..., -1] = 0.5
    return warp(moving, Affine().displacement(z, (9, 8))) + 0.01 * torch.randn_like(moving), moving


def test_phantom_steps_equal_unrolled_steps() -> None:
    fixed, moving = problem()
    fixed.requires_grad_()
    gradients = []
    for steps, adjoint in ((3, UnrolledAdjoint()), (0, PhantomAdjoint(3))):
        layer = OptimizerLayer([steps], Descent(), Picard(), Affine(), adjoint, Never(), clamp_quantile=1.0)
        value = layer([fixed], [moving])[0].value
        gradients.append(torch.autograd.grad(value.square().sum(), fixed)[0])
    assert gradients[0].abs().max() > 1e-6
    assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_the_implicit_gradient_agrees_with_finite_differences(which: str) -> None:
    fixed, moving = problem()
    features = {"fixed": fixed.requires_grad_(), "moving": moving.requires_grad_()}
    target, direction = torch.randn(1, 2, 9, 8, dtype=torch.float64), image((9, 8), 3, 1.0)
    start = torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64).expand(1, 2, 3).contiguous()

    def solve(f: torch.Tensor, m: torch.Tensor, adjoint: ImplicitAdjoint | PhantomAdjoint) -> torch.Tensor:
        update = Descent().on(Level(f, m), Affine())
        solution = fixed_point(
            update, start, GradientDescent(0.5), adjoint, max_steps=3000, stop=Residual(0.0, atol=1e-13)
        )
        assert bool(solution.converged.all())
        return (Affine().displacement(solution.value, (9, 8)) * target).sum()

    loss = solve(features["fixed"], features["moving"], ImplicitAdjoint(rtol=1e-11))
    (exact,) = torch.autograd.grad(loss, features[which])
    step, values = 1e-5, []
    for sign in (1, -1):
        moved = {name: x.detach() + sign * step * direction * (name == which) for name, x in features.items()}
        values.append(solve(moved["fixed"], moved["moving"], PhantomAdjoint()).detach())
    assert_close((exact * direction).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-8)


def test_samples_of_a_batch_are_independent() -> None:
    moving = torch.cat([image((20, 17)), image((20, 17))]).float()
    fixed = warp(moving, Affine().displacement(parameters(2, 1.0, batch=2).float(), (20, 17)))
    layer = OptimizerLayer([30], transformation=Affine())
    with torch.no_grad():
        both, alone = layer([fixed], [moving])[0], layer([fixed[1:]], [moving[1:]])[0]
    assert_close(both.value[1:], alone.value)
    assert both.steps.shape == (2,)


@pytest.mark.parametrize("adjoint", [PhantomAdjoint(), ImplicitAdjoint(rtol=1e-3)], ids=["jfb", "implicit"])
@pytest.mark.parametrize("solver", [Adam(0.2), GradientDescent(0.5)], ids=["adam", "descent"])
def test_a_training_step_reaches_all_weights(solver, adjoint) -> None:
    features = UNet(channels=4, levels=(2, 1), spatial_dims=2, widths=(4, 8, 8))
    model = DIO(features, OptimizerLayer((8, 4), solver=solver, transformation=Affine(), adjoint=adjoint))
    model.objective = Objective(label=Dice())
    pair = next(iter(SyntheticPairs(size=(20, 16), num_labels=3, train_pairs=4).train_dataloader()))
    model.training_step(pair, 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_the_title_is_the_model_that_intensities_are_aligned_with() -> None:
    affine, free = (OptimizerLayer((1, 1), transformation=model) for model in (Affine(), FreeForm()))
    assert DIO(Intensity((2, 1)), affine).title == "affine"
    assert DIO(Intensity((2, 1)), free).title == "Intensity"
    assert DIO(MIND((2, 1)), affine).title == "MIND"
    assert DIO(Intensity((2, 1)), OptimizerLayer((0, 0), transformation=Affine())).title == "identity"


def test_gauss_newton_refuses_parameters_that_are_no_displacement() -> None:
    fixed, moving = problem()
    for model in (Affine(), StationaryVelocity()):
        with pytest.raises(ValueError, match=r"GaussNewton needs .* not (Affine|StationaryVelocity)") as error:
            OptimizerLayer([2], GaussNewton(), Picard(), model)([fixed], [moving])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", [FreeForm(), Diffeomorphism(), StationaryVelocity(3)], ids=lambda m: type(m).__name__)
def test_dense_models_are_what_they_were(size, model) -> None:
    """One update by its formula, to the last digit: the pull-back of the slope, smoothed."""
    fixed, moving = image(size), image(size)
    coarse = tuple(-(-n // 2) for n in size)
    z = model.resize(gaussian_smooth(torch.randn(1, len(size), *coarse, dtype=torch.float64), 1.0), coarse, size)
    assert torch.equal(model.initial(fixed), torch.zeros_like(z))
    assert torch.equal(model.smooth(z, 0.7), gaussian_smooth(z, 0.7))
    leaf = z.clone().requires_grad_()
    u = exponential(leaf, 3) if isinstance(model, StationaryVelocity) else leaf
    assert torch.equal(model.displacement(z, size), u.detach())
    slope = match(fixed, moving, u.detach())[1] / variances(fixed).mean(1).view(-1, *[1] * (z.ndim - 1))
    if isinstance(model, StationaryVelocity):
        (slope,) = torch.autograd.grad(u, leaf, slope)
    with torch.no_grad():
        assert torch.equal(Descent(1.0).on(Level(fixed, moving), model)(z), z + gaussian_smooth(-slope, 1.0))


def test_the_command_line_takes_the_affine_model(command, rows) -> None:
    tiny = ROOT / "tests/conf/tiny.yaml"
    options = [
        "--model.layer.transformation",
        "Affine",
        "--trainer.default_root_dir",
        "run",
        "--trainer.callbacks=null",
    ]
    command("test", "--config", tiny, *options)
    table = rows(Path("run"))
    assert len(table) == 3
    assert all(int(float(row["steps"])) > 0 for row in table)
