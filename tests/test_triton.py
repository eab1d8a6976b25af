"""Triton's kernels against plain PyTorch, in the interpreter where there is no GPU: blocks are small, so are images."""

import os
import sys
from pathlib import Path
from subprocess import run

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="needs Triton, which is made for Linux")

from dio_lightning import ops
from dio_lightning.ops import (
    box_triton,
    correlation,
    correlation_triton,
    grid_triton,
    information,
    information_triton,
    match_reference,
    match_triton,
    sampling_reference,
    sampling_triton,
    stencil_triton,
    stencils,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [(3, 5), (2, 3, 4), (1, 3, 2), (4, 1)]
PADDINGS = ["border", "zeros"]
PRECISIONS = [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several blocks, chunks and tiles in a few voxels; operators that are called by name are Triton's."""
    monkeypatch.setenv("DIO_OPS", "triton")
    sizes = {
        match_triton: {"ELEMENTS": 32, "CHANNELS": 2, "CHANNELS_OF_ADJOINT": 2, "WIDTH": 4},
        sampling_triton: {"BLOCK": 16},
        stencil_triton: {"BLOCK": 16, "ROWS": 4},
        box_triton: {"BLOCK": 4, "CHUNK": 2, "ELEMENTS": 8},
        correlation_triton: {"BLOCK": 8, "CHUNK": 2},
        information_triton: {"BLOCK": 16, "STEPS": 2, "READ": 16},
    }
    for module, constants in sizes.items():
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)


def rand(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*size, dtype=dtype).to(DEVICE)


def randn(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*size, dtype=dtype).to(DEVICE)


def scattered(x: Tensor) -> Tensor:
    """The same values, every second in memory."""
    return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]


def features(size: tuple[int, ...], channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Two samples, fixed ones with channels last, and a displacement that leaves the grid on all sides."""
    fixed, moving = randn(2, 2, channels, *size)
    fixed = fixed.movedim(1, -1).contiguous().movedim(-1, 1)
    return fixed, scattered(moving), scattered(2 * randn(2, len(size), *size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matching_is_that_of_the_reference(size) -> None:
    fixed, moving, u = features(size)
    assert_close(match_triton.match(fixed, moving, u), match_reference.match(fixed, moving, u), rtol=1e-10, atol=1e-12)
    blocks = match_reference.match_blocks(fixed, moving, u)
    assert_close(match_triton.match_blocks(fixed, moving, u), blocks, rtol=1e-10, atol=1e-12)
    weights = rand(2), randn(2, len(size), *size)
    expected = match_reference.match_adjoint(fixed, moving, u, *weights)
    assert_close(match_triton.match_adjoint(fixed, moving, u, *weights), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=str)
def test_matching_in_other_precisions(dtype, tolerance) -> None:
    rounded = [x.to(dtype) for x in features((2, 3, 4))]
    exact = [x.double() for x in rounded]
    for ours, theirs in zip(
        match_triton.match_blocks(*rounded)[:2]
        + match_triton.match_adjoint(*rounded, rounded[2][:, 0, 0, 0, 0], rounded[2]),
        match_reference.match(*exact) + match_reference.match_adjoint(*exact, exact[2][:, 0, 0, 0, 0], exact[2]),
        strict=True,
    ):
        assert ours.dtype == dtype
        assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("shift", [0.0, 1.0, -2.0])
def test_a_whole_voxel_has_the_slope_of_the_cell_above(shift) -> None:
    fixed, moving, u = features((4, 5))
    u = torch.full_like(u, shift)
    weights = rand(2), randn(*u.shape)
    assert_close(match_triton.match(fixed, moving, u), match_reference.match(fixed, moving, u))
    expected = match_reference.match_adjoint(fixed, moving, u, *weights)
    assert_close(match_triton.match_adjoint(fixed, moving, u, *weights), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_sample(bad) -> None:
    fixed, moving, u = features((3, 5))
    u[0, 0, 1, 2] = bad
    value, gradient = match_triton.match(fixed, moving, u)
    assert value.isnan().tolist() == [True, False] and bool(gradient[1].isfinite().all())
    assert bool(gradient[0, :, 1, 2].isnan().all()) and int(gradient.isnan().sum()) == 2


def test_the_operator_is_matching_by_triton_with_its_derivative() -> None:
    inputs = [
        x[:1, : x.shape[1] if i == 2 else 1, :2, :2].clone().requires_grad_() for i, x in enumerate(features((2, 2)))
    ]
    assert torch.autograd.gradcheck(ops.match, inputs)
    plain = [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.dio.match, tuple(plain), test_utils=("test_schema", "test_faketensor"))
    assert ops.chosen(DEVICE.type) == "triton"


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_interpolation_is_that_of_grid_sample(size, padding, relative) -> None:
    d = len(size)
    image = scattered(rand(2, 2, *(max(extent, 2) for extent in size)))
    points, gradient = scattered(4 * randn(2, d, *size)), randn(2, 2, *size)
    where = sampling_reference.absolute(points) if relative else points
    value = sampling_triton.interpolate(image, points, padding, relative)
    assert_close(value, sampling_reference.native(image, where, "bilinear", padding), rtol=1e-10, atol=1e-12)
    of_image, of_points = sampling_triton.backward(gradient, image, points, padding, relative, [True, True])
    expected = sampling_reference.interpolate_backward(gradient, image, where, padding)
    assert_close((of_image, of_points), expected, rtol=1e-10, atol=1e-12)


def test_one_image_serves_many_rows_of_points() -> None:
    image, points = rand(1, 2, 3, 4), 3 * rand(2, 2, 1, 5)
    whole = image.expand(2, -1, -1, -1)
    expected = sampling_reference.native(whole, points, "bilinear", "border")
    for one in (image, whole, image.to(memory_format=torch.channels_last)):
        assert_close(sampling_triton.interpolate(one, points, "border", False), expected)
    gradient = randn(2, 2, 1, 5)
    of_each, none = sampling_triton.backward(gradient, whole, points, "border", False, [True, False])
    of_one, _ = sampling_triton.backward(gradient, image, points, "border", False, [True, False])
    assert none.numel() == 0 and of_each.shape == whole.shape
    assert_close(of_one, of_each.sum(0, keepdim=True))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_point_that_is_not_finite_gives_nan_and_no_gradient(bad, padding) -> None:
    image, points = rand(1, 2, 3, 4), rand(1, 2, 2, 3)
    points[0, 1, 1, 2] = bad
    value = sampling_triton.interpolate(image, points, padding, False)
    assert bool(value[0, :, 1, 2].isnan().all()) and int(value.isnan().sum()) == 2
    of_image, of_points = sampling_triton.backward(torch.ones_like(value), image, points, padding, False, [True, True])
    assert bool(of_image.isfinite().all()) and bool(of_points.isfinite().all())
    assert bool((of_points[0, :, 1, 2] == 0).all())


def test_interpolation_by_name_is_differentiable() -> None:
    image, points = rand(1, 1, 2, 3).requires_grad_(), (rand(1, 2, 1, 2) * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(ops.interpolate, (image, points))
    utils = ("test_schema", "test_faketensor")
    settings = image.detach(), points.detach(), "border", True
    torch.library.opcheck(torch.ops.dio.interpolate, settings, test_utils=utils)
    backward = (randn(1, 1, 1, 2), *settings, [True, False])
    torch.library.opcheck(torch.ops.dio.interpolate_backward, backward, test_utils=utils)


@pytest.mark.parametrize("size", [*SIZES, (6, 9), (2, 5, 6)], ids=str)
def test_stencils_are_those_of_the_reference(size, monkeypatch) -> None:
    d, taps = len(size), [[0.4, 0.2, 0.1], [0.5], [1.0], [0.3, 0.2, 0.1, 0.05]]
    u = scattered(randn(2, d, *size))
    for some in (taps[:d], taps[-d:], [[1.0]] * d):
        assert_close(stencil_triton.correlate(u, some), stencils.reference(u, some), rtol=1e-10, atol=1e-12)
    ours = stencil_triton.squared_differences(u), stencil_triton.determinants(u), stencil_triton.shortfall(u, 0.3)
    monkeypatch.setenv("DIO_OPS", "reference")
    theirs = ops.squared_differences(u), ops.determinants(u), ops.shortfall(u, 0.3)
    assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=str)
def test_stencils_in_other_precisions(dtype, tolerance, monkeypatch) -> None:
    u = randn(1, 2, 4, 5).to(dtype)
    ours = ops.correlate(u, [[0.4, 0.3], [0.4, 0.3]]), *ops.squared_differences(u), ops.determinants(u)
    assert all(x.dtype == dtype for x in ours)
    monkeypatch.setenv("DIO_OPS", "reference")
    u = u.double()
    theirs = ops.correlate(u, [[0.4, 0.3], [0.4, 0.3]]), *ops.squared_differences(u), ops.determinants(u)
    assert_close(tuple(x.double() for x in ours), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("size", "window"), [((3, 5), 3), ((3, 2, 4), 3), ((3, 3), 7), ((1, 3, 2), 5)], ids=str)
@pytest.mark.parametrize("signed", [False, True])
def test_local_correlation_and_its_slopes(size, window, signed, monkeypatch) -> None:
    a, b = (scattered(rand(2, 1, *size)).requires_grad_() for _ in range(2))
    value = ops.local_correlation(a, b, window, signed)
    of_both = torch.autograd.grad(value * 3, (a, b))
    of_b = torch.autograd.grad(ops.local_correlation(a.detach(), b, window, signed) * 3, b)
    monkeypatch.setenv("DIO_OPS", "reference")
    expected = ops.local_correlation(a, b, window, signed)
    slopes = torch.autograd.grad(expected * 3, (a, b))
    assert_close(value, expected, rtol=1e-10, atol=0)
    assert_close((*of_both, *of_b), (*slopes, slopes[1]), rtol=1e-9, atol=1e-11)


def test_local_correlation_of_hounsfield_units(monkeypatch) -> None:
    """In float32, far from zero beside their contrast."""
    a, b = (rand(1, 1, 4, 6, dtype=torch.float32) * 0.1 + 1000 for _ in range(2))
    value, _ = correlation_triton.mean(a, b, 3, correlation.FLOOR, False)
    expected = correlation._mean(correlation._moments(a.double(), b.double(), 3), False)
    assert_close(value, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("bins", [3, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_histograms_and_the_slope_of_their_information(bins, weighted) -> None:
    a, b = rand(2, 2, 70) * 1.2 - 0.1
    weights = rand(2, 70) if weighted else None
    counts = information._counts(a, b, bins, weights)
    assert_close(information_triton.joint_counts(a, b, bins, weights), counts, rtol=1e-10, atol=1e-12)
    single = information_triton.joint_counts(a.float(), b.float(), bins, weights)
    assert single.dtype == torch.float64
    assert_close(single, counts, rtol=1e-4, atol=1e-4)
    steps = randn(2, bins - 1, bins)
    expected = information._read(a, b, steps, weights)
    assert_close(information_triton.slope(a, b, steps, weights), expected, rtol=1e-10, atol=1e-12)


def test_an_intensity_that_is_no_number_is_seen_and_many_bins_are_counted_elsewhere() -> None:
    a, b = rand(2, 1, 1, 9)
    assert bool(ops.joint_histogram(a, b, information_triton.LARGEST + 1).sum().isfinite())
    a[0, 0, 2] = torch.nan
    assert bool(ops.mutual_information(a, b, 4).isnan().all())


def test_offsets_of_64_bits_change_nothing(monkeypatch) -> None:
    """As they are taken where a sample has more than 2³¹ - 1 values."""
    fixed, moving, u = features((2, 3, 4), 2)
    weights = rand(2), randn(*u.shape)

    def everything() -> list[Tensor]:
        values = [*match_triton.match_blocks(fixed, moving, u), *match_triton.match_adjoint(fixed, moving, u, *weights)]
        values.append(sampling_triton.interpolate(moving, u, "zeros", True))
        values += sampling_triton.backward(moving, moving, u, "border", True, [True, True])
        values += [stencil_triton.determinants(u), *stencil_triton.squared_differences(u)]
        return [*values, stencil_triton.correlate(u, [[0.5, 0.2]] * 3)]

    assert not grid_triton.wide(moving, u)
    expected = everything()
    monkeypatch.setattr(grid_triton, "LARGEST", 0)
    assert grid_triton.wide(moving, u)
    assert_close(everything(), expected)


def test_offsets_need_64_bits_where_a_sample_is_large() -> None:
    shape = torch.empty(1, 16, 512, 512, 511, device="meta"), torch.empty(1, 16, 512, 512, 513, device="meta")
    assert [grid_triton.wide(x) for x in shape] == [False, True]
    assert grid_triton.wide(torch.empty(1, 3, 700, 700, 700, device="meta")), "of the seven values of a block"


def test_an_empty_batch_gives_empty_results() -> None:
    none = rand(0, 2, 3, 4)
    assert [x.shape[0] for x in match_triton.match_blocks(none, none, none)] == [0] * 4
    assert sampling_triton.interpolate(none, none, "border", True).shape == none.shape
    assert stencil_triton.correlate(none, [[0.5, 0.2]] * 2).shape == none.shape
    assert [len(x) for x in (*stencil_triton.squared_differences(none), stencil_triton.determinants(none))] == [0] * 3


def test_double_precision_of_one_is_that_of_all() -> None:
    fixed, moving, u = features((2, 3), 2)
    single = u.float()
    expected = match_reference.match(fixed, moving, single.double())
    value, gradient = match_triton.match(fixed, moving, single)
    assert_close((value, gradient), tuple(x.float() for x in expected), rtol=1e-6, atol=1e-6)
    value = sampling_triton.interpolate(moving, single, "border", True)
    exact = sampling_triton.interpolate(moving, single.double(), "border", True)
    assert_close(value, exact, rtol=1e-12, atol=1e-12)


def test_additions_without_order_are_refused_where_order_is_asked_for(monkeypatch) -> None:
    class OnCuda:
        is_cuda = True

    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with pytest.raises(RuntimeError, match="the adjoint adds in no fixed order on CUDA"):
        grid_triton.unordered("the adjoint", OnCuda())  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(torch, "is_deterministic_algorithms_warn_only_enabled", lambda: True)
    with pytest.warns(UserWarning, match="adds in no fixed order"):
        grid_triton.unordered("the adjoint", OnCuda())  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_and_reads_features_sixteen_bytes_at_once(tmp_path) -> None:
    """Without one: what the interpreter runs the compiler may refuse."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compiled_triton.py"))]
    done = run(command, env={**variables, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len({name for name, _, _ in lines}) == 26
    assert all(int(spilt) <= 16 for _, spilt, _ in lines), "registers that lie in memory"
    # four corners of a plane, or eight of a volume, and the fixed features
    reads = [int(each) for name, _, each in lines if name.startswith("match")]
    assert reads == [9, 9, 5]
