"""Registration of images by any similarity: the right gradient, per sample, whatever the transformation."""

import pytest
import torch
from torch.testing import assert_close

from dio_lightning.fields import downsample, gaussian_smooth, warp
from dio_lightning.implicit import Adam, Never, Stagnation
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses import LNCC, SSD, Diffusion
from dio_lightning.transformations import Diffeomorphism, FreeForm, StationaryVelocity, Transformation
from dio_lightning.updates import ImageDescent

SIZES = {"2d": (24, 20), "3d": (14, 12, 13)}


def images(size: tuple[int, ...], shifts: list[float], dtype: torch.dtype = torch.float32) -> tuple:
    """Smooth images, a sample for each shift along the first axis, and what they look like unmoved."""
    moving = gaussian_smooth(torch.randn(len(shifts), 1, *size, dtype=dtype), 1.5, truncate=3.0)
    moving = moving / moving.std()
    u = torch.zeros(len(shifts), len(size), *size, dtype=dtype)
    u[:, 0] = torch.tensor(shifts, dtype=dtype).view(-1, *[1] * len(size))
    return warp(moving, u), moving


@pytest.mark.parametrize("similarity", [LNCC(3), SSD()], ids=["lncc", "ssd"])
@pytest.mark.parametrize("transformation", [FreeForm(), StationaryVelocity(3)], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_step_is_down_the_energy_that_is_reported(size, transformation: Transformation, similarity) -> None:
    """Against autograd of voxels × (mean similarity + λ Diffusion), each sample on its own."""
    fixed, moving = images(size, [1.0, 2.0], torch.float64)
    z = 0.6 * gaussian_smooth(torch.randn(2, len(size), *size, dtype=torch.float64), 1.0)
    f = ImageDescent(similarity, sigma=0.0, regularity=0.3).on(Level(fixed, moving), transformation)
    with torch.no_grad():
        step = f(z) - z
    at, energies = z.clone().requires_grad_(), []
    u = transformation.displacement(at, size)
    for i in range(2):
        u_i = u[i : i + 1]
        # differences, of which an axis has one fewer than voxels
        rough = sum(u_i.diff(dim=axis).square().sum() for axis in range(2, u_i.ndim))
        energies.append(similarity(warp(moving[i : i + 1], u_i), fixed[i : i + 1]) * fixed[i].numel() + 0.3 * rough)
    assert_close(f.energy, torch.stack(energies).detach())
    (expected,) = torch.autograd.grad(torch.stack(energies).sum(), at)
    assert_close(step, -expected, atol=1e-9, rtol=1e-6)


def test_the_weight_is_that_of_a_training_objective() -> None:
    fixed, moving = images((200, 190), [1.0])
    u = gaussian_smooth(torch.randn(1, 2, 200, 190), 2.0)
    f = ImageDescent(SSD(), regularity=0.25).on(Level(fixed, moving), FreeForm())
    f(u)
    assert f.energy is not None
    objective = SSD()(warp(moving, u), fixed) + 0.25 * Diffusion()(u)
    assert_close(f.energy / fixed.numel(), objective[None], rtol=2e-3, atol=0)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_batch_is_its_samples_one_by_one(size) -> None:
    fixed, moving = images(size, [0.5, 2.0])
    layer = OptimizerLayer([30], ImageDescent(LNCC(5)), Adam(0.2), stop=Stagnation(1e-3, 3))
    with torch.no_grad():
        both = layer([fixed], [moving])[0]
        alone = [layer([fixed[i : i + 1]], [moving[i : i + 1]])[0] for i in range(2)]
    assert_close(both.value, torch.cat([s.value for s in alone]), atol=1e-4, rtol=1e-3)
    assert both.steps.tolist() == [int(s.steps) for s in alone]


@pytest.mark.parametrize("transformation", [FreeForm(), Diffeomorphism(), StationaryVelocity(4)], ids=str)
def test_local_correlation_finds_a_shift_between_two_contrasts(transformation) -> None:
    """A gain, an offset and an inversion, which squared differences do not survive."""
    fixed, moving = images((32, 28), [1.5])
    found = {}
    for name, similarity in (("lncc", LNCC(7)), ("ssd", SSD())):
        layer = OptimizerLayer([80], ImageDescent(similarity), Adam(0.2), transformation, stop=Never())
        with torch.no_grad():
            u = layer([3 - 0.5 * fixed], [moving])[0].value
        found[name] = float(u[0, 0, 6:-6, 6:-6].mean())
    assert abs(found["lncc"] - 1.5) < 0.2
    assert abs(found["ssd"] - 1.5) > 0.5


def test_a_solution_passes_gradients_to_the_images() -> None:
    fixed, moving = images((20, 18), [1.0])
    moving.requires_grad_()
    u = OptimizerLayer([5], ImageDescent(SSD()), Adam(0.2))([fixed], [moving])[0].value
    u.square().sum().backward()
    assert moving.grad is not None and float(moving.grad.abs().sum()) > 0


@pytest.mark.parametrize("settings", [{"sigma": -1.0}, {"regularity": -0.1}])
def test_negative_settings_are_refused(settings) -> None:
    with pytest.raises(ValueError, match="expected numbers of at least 0"):
        ImageDescent(SSD(), **settings)


def test_a_slope_as_small_as_that_of_images_that_agree_is_still_followed() -> None:
    """Windows of little contrast push images that agree, by more than a coarse level pushes these, which do not."""
    size = (40, 48, 44)
    torch.manual_seed(0)
    axes = torch.meshgrid(*[torch.linspace(-1.25, 1.25, n) for n in size], indexing="ij")
    inside = torch.sigmoid(30 * (0.9 - (axes[0] ** 2 + (1.25 * axes[1]) ** 2 + (1.5 * axes[2]) ** 2)))
    texture = gaussian_smooth(torch.randn(1, 1, *size), 1.5)
    moving = inside * (0.6 + 0.12 * texture / texture.std()).clamp(0.1, 1)
    u = gaussian_smooth(torch.randn(1, 3, *size), 4.0)
    fixed = warp(moving, u * (3 / u.abs().max()))
    fixed, moving = (downsample(x, (10, 12, 11)) for x in (fixed, moving))
    update = ImageDescent(LNCC(5)).on(Level(fixed, moving), FreeForm())
    zero = torch.zeros(1, 3, 10, 12, 11)
    with torch.no_grad():
        step = update(zero)
        agreeing = ImageDescent(LNCC(5)).on(Level(fixed, fixed), FreeForm())(zero)
    assert float(step.norm()) > 0 and float(agreeing.norm()) == 0
