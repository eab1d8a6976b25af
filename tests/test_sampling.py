"""Compiled interpolation, its inverse, and stencils against plain PyTorch and closed forms."""

import os
import sys
from pathlib import Path
from subprocess import run

import pytest
import torch
from torch.testing import assert_close

from dio_lightning.fields import gaussian_smooth, identity, sample
from dio_lightning.ops import (
    correlate,
    determinants,
    preimages,
    sampling_numba,
    sampling_reference,
    shortfall,
    squared_differences,
    stencils,
)
from dio_lightning.ops.preimage import FLAT, STEPS, TOLERANCE, newton

ROOT = Path(__file__).parents[1]
SIZES = [(9, 12), (7, 9, 8), (1, 9, 8), (1, 6)]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_compiled_loops_agree_with_grid_sample(size, padding, relative) -> None:
    """Points inside, across every border and far outside; every point's cell is its own, so slopes have no kink."""
    torch.manual_seed(0)
    d = len(size)
    image = torch.rand(2, 3, *(max(extent, 2) for extent in size), dtype=torch.float64)
    points = torch.randn(2, d, *size, dtype=torch.float64) * 6
    where = sampling_reference.absolute(points) if relative else points
    gradient = torch.randn(2, 3, *size, dtype=torch.float64)
    value = sampling_numba.interpolate(image, points, padding, relative)
    assert_close(value, sampling_reference.native(image, where, "bilinear", padding))
    parts = sampling_numba.backward(gradient, image, points, padding, relative, [True, True])
    assert_close(parts, sampling_reference.interpolate_backward(gradient, image, where, padding))
    of_image, none = sampling_numba.backward(gradient, image, points, padding, relative, [True, False])
    assert torch.equal(of_image, parts[0]) and none.numel() == 0


@pytest.mark.parametrize("size", [(37, 41), (11, 13, 29)], ids=str)
def test_slopes_at_whole_voxels_are_those_of_the_cells_above_by_either_choice(size) -> None:
    """Where every solve starts. `grid_sample` itself takes the cell below in some planes of these sizes."""
    torch.manual_seed(0)
    d, image = len(size), torch.rand(1, 1, *size)
    points, gradient = torch.zeros(1, d, *size), torch.ones(1, 1, *size)
    above = torch.stack(
        [torch.diff(image[0, 0], dim=i, append=image[0, 0].select(i, -1).unsqueeze(i)) for i in range(d)]
    )
    for i in range(d):
        above[i].select(i, 0).zero_()  # a point on the border is held there
    where = sampling_reference.absolute(points)
    plain = sampling_reference.interpolate_backward(gradient, image, where, "border")[1]
    compiled = sampling_numba.backward(gradient, image, points, "border", True, [False, True])[1]
    assert_close(
        plain[0], above, rtol=0, atol=1e-4
    )  # moved by some roundings of a coordinate; another cell is off by 0.3
    assert_close(compiled[0], above)
    native = where.clone().requires_grad_()
    sampling_reference.native(image, native, "bilinear", "border").sum().backward()
    assert native.grad is not None and not torch.allclose(native.grad[0], above), "nothing to mend here any longer"


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_whatever_the_memory_of_images_and_points(padding) -> None:
    """Channels last, slices, one image for many rows of points, as expanded and as it is."""
    torch.manual_seed(0)
    image, points = torch.rand(1, 4, 7, 9, 8), torch.rand(3, 3, 5, 4, 6) * 9 - 1
    expected = sample(image.expand(3, -1, -1, -1, -1).contiguous(), points, padding=padding)
    odd = torch.rand(3, 3, 5, 4, 12)[..., ::2].copy_(points)
    for one in (image, image.contiguous(memory_format=torch.channels_last_3d), image.expand(3, -1, -1, -1, -1)):
        for where in (points, odd, points.transpose(2, 4).contiguous().transpose(2, 4)):
            assert_close(sample(one, where, padding=padding), expected)
    leaf = image.clone().requires_grad_()
    sample(leaf, points, padding=padding).sum().backward()
    whole = image.expand(3, -1, -1, -1, -1).contiguous().requires_grad_()
    sample(whole, points, padding=padding).sum().backward()
    assert leaf.grad is not None and whole.grad is not None
    assert_close(leaf.grad, whole.grad.sum(0, keepdim=True))


def test_many_threads_scatter_what_one_does() -> None:
    """More points than a chunk, so that every thread has its share."""
    torch.manual_seed(0)
    points, gradient = torch.rand(1, 2, 90, 110) * 20, torch.rand(1, 1, 90, 110)
    image = torch.rand(1, 1, 20, 20)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(sampling_numba.backward(gradient, image, points, "border", False, [True, True]))
    finally:
        torch.set_num_threads(threads)
    assert_close(results[0], results[1])


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_point_that_is_not_finite_gives_nan_and_no_gradient(bad, padding) -> None:
    image, points = torch.rand(1, 2, 5, 6), torch.rand(1, 2, 3, 4) * 4
    points[0, 1, 2, 3] = bad
    value = sampling_numba.interpolate(image, points, padding, False)
    assert bool(value[0, :, 2, 3].isnan().all()) and int(value.isnan().sum()) == 2
    ones = torch.ones_like(value)
    of_image, of_points = sampling_numba.backward(ones, image, points, padding, False, [True, True])
    assert bool(of_image.isfinite().all()) and bool(of_points.isfinite().all())
    assert bool((of_points[0, :, 2, 3] == 0).all())


def test_the_operators_are_traceable() -> None:
    image, points = torch.randn(1, 2, 4, 4), torch.rand(1, 2, 3, 3) * 3
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.dio.interpolate, (image, points, "border", False), test_utils=utils)
    backward = (torch.randn(1, 2, 3, 3), image, points, "zeros", True, [False, True])
    torch.library.opcheck(torch.ops.dio.interpolate_backward, backward, test_utils=utils)


@pytest.mark.parametrize("d", [2, 3])
def test_preimages_of_an_affine_map_are_those_of_its_inverse(d) -> None:
    torch.manual_seed(0)
    size = (14, 15, 16)[:d]
    grid = identity(size, torch.empty(0, dtype=torch.float64))[0]
    matrix = torch.eye(d, dtype=torch.float64) + 0.3 * torch.rand(d, d, dtype=torch.float64)
    centre = grid.flatten(1).mean(1, keepdim=True)
    u = ((matrix - torch.eye(d)) @ (grid.flatten(1) - centre)).view_as(grid)
    y = centre + torch.rand(d, 200, dtype=torch.float64) * 4 - 2
    expected = torch.linalg.inv(matrix) @ (y - centre) + centre - y
    assert_close(preimages(u, y), expected, atol=1e-6, rtol=0)
    assert_close(newton(u, y, TOLERANCE, STEPS, FLAT), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("d", [2, 3])
def test_preimages_of_a_field_that_is_no_contraction(d) -> None:
    """Slopes up to 2 without a fold: a plain iteration z = -u(y + z) runs away."""
    torch.manual_seed(0)
    size = (30, 24, 20)[:d]
    grid = identity(size, torch.empty(0, dtype=torch.float64))
    u = gaussian_smooth(torch.randn(1, d, *size, dtype=torch.float64), 3.0)[0] * (6 if d == 3 else 3)
    u[0] += 2.0 * (grid[0, 0] - grid[0, 0].mean())
    y = grid[0].flatten(1) + u.flatten(1)
    for z in (preimages(u, y), newton(u, y, TOLERANCE, STEPS, FLAT)):
        at = (y + z).view(1, d, *size)
        missed = (z.view_as(u) + sample(u[None], at)[0]).norm(dim=0)
        assert float(missed.max()) < 1e-5


def test_a_point_that_is_not_a_number_has_no_preimage_and_its_neighbours_have() -> None:
    u, y = torch.rand(2, 6, 7) * 0.4, torch.rand(2, 5) * 5
    y[0, 2] = torch.nan
    z = preimages(u, y)
    assert z.isnan().any(0).tolist() == [False, False, True, False, False]
    assert_close(z[:, 3:], preimages(u, y[:, 3:]))


@pytest.mark.parametrize("size", [(9, 12), (1, 6), (7, 9, 8), (1, 9, 2)], ids=str)
def test_determinants_are_those_of_the_matrices(size) -> None:
    torch.manual_seed(0)
    u = torch.randn(2, len(size), *size, dtype=torch.float64)
    u[1, 0, 0, 1] = torch.nan
    expected = stencils.determinant(stencils.jacobian(u))
    assert_close(determinants(u), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(9, 12), (1, 6), (7, 9, 8), (1, 9, 2), (2, 2, 2)], ids=str)
def test_what_determinants_lack_and_its_slope_are_those_of_autograd(size, dtype) -> None:
    """Folds at every border, a sample without one, memory of other strides, and a total that says NaN."""
    torch.manual_seed(0)
    u = 2 * torch.randn(3, len(size), *size, dtype=dtype).transpose(0, 1).contiguous().transpose(0, 1)
    u[1] = 0
    leaf = u.clone().requires_grad_()
    expected = torch.relu(0.3 - stencils.determinant(stencils.jacobian(leaf))).flatten(1).sum(1)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    total, ours = shortfall(u, 0.3)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-11}[dtype]
    assert_close(total, expected.detach(), rtol=tolerance, atol=tolerance)
    assert_close(ours, slope, rtol=tolerance, atol=tolerance)
    assert expected.max() > 0.1
    assert expected[1] == 0 and not ours[1].any()
    u[0, -1, 0, 1] = torch.nan
    total, ours = shortfall(u, 0.3)
    assert total[0].isnan()
    assert_close((total[1:], ours[1:]), (expected[1:].detach(), slope[1:]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [(9, 12), (1, 6), (7, 9, 8), (2, 1, 5)], ids=str)
def test_stencils_agree_with_plain_pytorch(size) -> None:
    """Taps longer than the axis too; a sample of a batch on its own."""
    torch.manual_seed(0)
    u = torch.randn(2, len(size), *size, dtype=torch.float64)
    taps = [(0.5, 0.2, 0.05), (1.0,), (0.4, 0.3, 0.2, 0.1)][: len(size)]
    assert_close(correlate(u, taps), stencils.reference(u, taps))
    with torch.no_grad():
        energy, slope = squared_differences(u)
    leaf = u.clone().requires_grad_()
    (of_u,) = torch.autograd.grad(squared_differences(leaf)[0].sum(), leaf)
    assert_close(slope, of_u)
    assert_close(energy, squared_differences(leaf)[0])
    assert torch.autograd.gradgradcheck(lambda x: correlate(x, taps), (leaf,))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_process_forked_after_compiled_loops_ran_computes_on() -> None:
    """GNU's OpenMP would end it: plain PyTorch goes on."""
    code = """
import os, torch
from torch.testing import assert_close
from dio_lightning import fields, ops
a, b, u = torch.rand(1, 2, 6, 7), torch.rand(1, 2, 6, 7), torch.rand(1, 2, 6, 7)
def compute():
    field = ops.preimages(u[0] * 0.3, torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) * 4)
    with torch.no_grad():
        return [fields.warp(a, u), *ops.match(a, b, u), ops.local_correlation(a, b, 3), fields.gaussian_smooth(u, 1.0),
                ops.mutual_information(a[:, :1], b[:, :1], 6), ops.determinants(u), field.float()]
before = compute()
if (child := os.fork()) == 0:
    assert_close(compute(), before, rtol=1e-4, atol=1e-5)
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def test_a_volume_of_more_voxels_than_32_bits_count_is_not_taken(monkeypatch) -> None:
    from dio_lightning.ops import sampling

    image, points = torch.rand(1, 1, 4, 4, requires_grad=True), torch.rand(1, 2, 3, 3)
    monkeypatch.setattr(sampling, "LARGEST", 15)
    monkeypatch.setattr(sampling_numba, "interpolate", lambda *_: pytest.fail("compiled loops took it"))
    monkeypatch.setattr(sampling_numba, "backward", lambda *_: pytest.fail("compiled loops took it"))
    sample(image, points).sum().backward()
