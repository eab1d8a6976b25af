"""elastix as a module: its own resampled image, known maps recovered, one seed one result, quiet, and optional."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from data_modules import SyntheticPairs
from dio_lightning.fields import gaussian_smooth, identity, warp
from dio_lightning.metrics import dice_per_label
from dio_lightning.modules import Elastix

EXPERIMENT = Path(__file__).parents[1] / "experiments/classical/elastix.yaml"
SENTENCE = 'elastix needs the package itk-elastix: pip install "dio-lightning[elastix]"'
SIZES = [(30, 44), (18, 22, 28)]
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")
installed = pytest.mark.skipif(find_spec("itk") is None, reason="needs itk-elastix, the extra `elastix`")


def texture(*size: int) -> Tensor:
    """A smooth random image in [0, 1]."""
    image = gaussian_smooth(torch.rand(1, 1, *size), 1.5)
    return (image - image.min()) / (image.max() - image.min())


def smooth_warp(*size: int, amplitude: float = 1.0) -> Tensor:
    """A smooth random displacement, rms `amplitude` voxels."""
    u = gaussian_smooth(torch.randn(1, len(size), *size), 6.0)
    return amplitude * u / u.square().sum(1).mean().sqrt()


def interior(x: Tensor, margin: int = 4) -> Tensor:
    return x[(..., *[slice(margin, -margin)] * (x.ndim - 2))]


def error(u: Tensor, true: Tensor) -> float:
    return interior((u - true).norm(dim=1, keepdim=True)).mean().item()


def quick(**settings) -> Elastix:
    return Elastix(**{"levels": 2, "iterations": 60, "samples": 500, "bending": 0.0, **settings})


@installed
@pytest.mark.slow
@pytest.mark.parametrize("transform", ["bspline", "affine"])
@pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
def test_the_displacement_gives_the_image_that_elastix_gives(size, transform, tmp_path, monkeypatch) -> None:
    """transformix, interpolating linearly, is the reference: axes, components, signs and units are all right."""
    itk = pytest.importorskip("itk")

    monkeypatch.chdir(tmp_path)
    moving = texture(*size)
    fixed = warp(moving, smooth_warp(*size))
    model = quick(transform=transform, iterations=20)
    u = model(fixed, moving)[-1].value
    target, source = (itk.image_view_from_array(image[0, 0].numpy()) for image in (fixed, moving))
    _, found = itk.elastix_registration_method(
        target, source, parameter_object=model._settings(itk, len(size)), number_of_threads=1, log_to_console=False
    )
    found.SetParameter("ResampleInterpolator", "FinalLinearInterpolator")
    expected = torch.from_numpy(np.array(itk.transformix_filter(source, found, log_to_console=False)))[None, None]
    assert u.abs().mean() > 0.1
    inside = interior(expected)
    assert_close(interior(warp(moving, u)), inside, atol=2e-4, rtol=0)
    assert (interior(moving) - inside).abs().max() > 0.05


@installed
@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
def test_a_smooth_warp_is_recovered_at_every_sample_of_a_batch(size, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    moving = torch.cat([texture(*size), texture(*size)])
    true = torch.cat([smooth_warp(*size), smooth_warp(*size)])
    fixed = warp(moving, true)
    capfd.readouterr()
    (solution,) = quick(grid_spacing=5.0)(fixed, moving)
    u = solution.value
    assert u.shape == true.shape and u.dtype == torch.float32
    for i in (0, 1):
        one = slice(i, i + 1)
        assert error(u[one], true[one]) < 0.5 * error(torch.zeros_like(u[one]), true[one])
        assert (warp(moving, u) - fixed)[one].square().mean() < 0.2 * (moving - fixed)[one].square().mean()
    assert solution.steps.tolist() == [120, 120] and solution.residual.isnan().all()
    assert not solution.converged.any() and not solution.failed.any()
    assert capfd.readouterr() == ("", "") and not os.listdir()


@installed
@pytest.mark.parametrize("metric", ["ncc", "mi"])
@pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
def test_an_affine_map_is_recovered(size, metric) -> None:
    d, moving = len(size), texture(*size)
    grid = identity(size, moving)
    centre = torch.tensor([(s - 1) / 2 for s in size]).view(1, d, *[1] * d)
    matrix = torch.tensor([[0.05, -0.06, 0.03], [0.04, -0.03, 0.02], [0.0, 0.05, 0.04]])[:d, :d]
    shift = torch.tensor([1.0, -1.5, 0.5])[:d].view(1, d, *[1] * d)
    true = torch.einsum("ij,bj...->bi...", matrix, grid - centre) + shift
    fixed = warp(moving, true) * (1 if metric == "ncc" else -1)
    u = quick(transform="affine", metric=metric, iterations=150)(fixed, moving)[-1].value
    assert error(torch.zeros_like(u), true) > 1
    assert error(u, true) < 0.2


@installed
def test_the_seed_decides_and_fewer_steps_are_fewer() -> None:
    moving = texture(24, 30)
    fixed = warp(moving, smooth_warp(24, 30))

    def solve(model: Elastix) -> Tensor:
        return model(fixed, moving)[-1].value

    model = quick(iterations=20, seed=3)
    first = solve(model)
    assert torch.equal(first, solve(model)) and torch.equal(first, solve(quick(iterations=20, seed=3)))
    assert not torch.equal(first, solve(quick(iterations=20, seed=4)))
    assert model.steps == 20
    model.steps = 5
    (solution,) = model(fixed, moving)
    assert solution.steps.tolist() == [25] and not torch.equal(first, solution.value)


@installed
def test_the_bending_penalty_makes_the_map_smoother() -> None:
    moving = texture(24, 30)
    fixed = warp(moving, smooth_warp(24, 30))
    energies = []
    for weight in (0.0, 10.0):
        u = quick(bending=weight)(fixed, moving)[-1].value
        energies.append(sum(u.diff(n=2, dim=axis).square().mean().item() for axis in (2, 3)))
    assert 0 < energies[1] < 0.2 * energies[0]


@installed
def test_the_grid_spacing_is_in_voxels_and_doubles_with_each_level() -> None:
    itk = pytest.importorskip("itk")

    parameters = quick(levels=3, grid_spacing=6.0)._settings(itk, 2)
    assert parameters.GetParameter(0, "FinalGridSpacingInPhysicalUnits") == ("6.0",)
    assert parameters.GetParameter(0, "GridSpacingSchedule") == ("4", "2", "1")
    moving = texture(36, 36)
    u = quick(levels=1, grid_spacing=6.0, iterations=30)(warp(moving, smooth_warp(36, 36)), moving)[-1].value
    # a cubic spline has a constant third derivative between two of its knots, six voxels apart, and none across them
    third = u[0, 0, 18, :].diff(n=3)
    breaks = (third.diff().abs() > 1e-2 * third.abs().max()).nonzero().flatten()
    assert len(breaks) and len({int(b) % 6 for b in breaks}) <= 4


@installed
def test_labels_overlap_more_after_it() -> None:
    data = SyntheticPairs(size=(40, 36), num_labels=3, test_pairs=2, batch_size=2, contrast="shared")
    data.setup("test")
    pair = next(iter(data.test_dataloader()))
    u = quick(levels=3, resolution=1.0, grid_spacing=5.0).register(pair)
    moving, fixed = pair["moving_label"], pair["fixed_label"]
    before = dice_per_label(fixed, moving, moving, 3).nanmean()
    assert dice_per_label(fixed, warp(moving, u, "nearest"), moving, 3).nanmean() > before + 0.1


@installed
def test_a_pair_that_elastix_gives_up_on_stays_where_it_is() -> None:
    moving = texture(24, 30)
    fixed = warp(moving, smooth_warp(24, 30))
    model = quick(iterations=10)
    with pytest.warns(UserWarning, match="no registration of a pair"):
        (solution,) = model(torch.cat([fixed, fixed * torch.nan]), torch.cat([moving, moving]))
    assert solution.failed.tolist() == [False, True]
    assert not solution.value[1].any()
    assert torch.equal(solution.value[:1], model(fixed, moving)[-1].value)


@installed
@pytest.mark.parametrize(
    "bad",
    [{"levels": 0}, {"samples": 0}, {"threads": 0}, {"grid_spacing": 0.0}, {"metric": "mse"}, {"transform": "tps"}],
)
def test_nonsense_is_refused(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Elastix(**bad)


@installed
def test_there_is_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no weights to train"):
        Elastix().check_trainable()
    assert (Elastix().title, Elastix("affine").title) == ("elastix (B-spline)", "elastix (affine)")


@pytest.mark.parametrize("half", [False, True], ids=["no ITK", "ITK without elastix"])
def test_without_the_package_one_sentence_says_so(half, command, capsys, monkeypatch) -> None:
    """And says so before any data are looked for."""
    hollow = ModuleType("itk")
    hollow.__path__ = []
    monkeypatch.setitem(sys.modules, "itk", hollow if half else None)
    monkeypatch.delitem(sys.modules, "itk.ElastixPython", raising=False)
    with pytest.raises(ValueError) as found:
        Elastix()
    assert str(found.value) == SENTENCE
    with pytest.raises(SystemExit):
        command("test", "--config", EXPERIMENT, "--data.root", "no/such/folder", "--trainer.accelerator", "cpu")
    assert [line for line in capsys.readouterr().err.splitlines() if "error" in line] == [
        f"dio-lightning: error: {SENTENCE}"
    ]


@installed
@pytest.mark.real
@pytest.mark.slow
def test_its_experiment_runs_on_real_anatomy(command, data_root, tmp_path, rows) -> None:
    few = ["--model.resolution", 4, "--model.iterations", 5, "--trainer.limit_test_batches", 1]
    here = ["--data.root", data_root / "brains_2mm", "--trainer.accelerator", "cpu"]
    command("test", "--config", EXPERIMENT, *few, *here, "--trainer.default_root_dir", tmp_path / "run")
    (row,) = rows(tmp_path / "run")
    assert float(row["steps"]) == 15 and 0.2 < float(row["dice"]) < 0.9
