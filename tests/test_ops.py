"""The fused operator against autograd through plain sampling, in value, gradient and adjoint."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from dio_lightning import ops
from dio_lightning.fields import warp
from dio_lightning.ops import match, match_blocks, match_numba, match_reference

SIZES = [(6, 5), (4, 5, 3)]
BACKENDS = [match_reference, match_numba]


@pytest.fixture(params=SIZES, ids=["2d", "3d"])
def problem(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fixed and moving features of two samples, and displacements that leave the grid here and there."""
    size = request.param
    generator = torch.Generator().manual_seed(0)
    fixed, moving = torch.randn(2, 2, 3, *size, generator=generator, dtype=torch.float64)
    u = 1.5 * torch.randn(2, len(size), *size, generator=generator, dtype=torch.float64)
    return fixed, moving, u


def energy(fixed: torch.Tensor, moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return (warp(moving, u) - fixed).square().mean(1).flatten(1).sum(1)


@pytest.mark.parametrize("backend", BACKENDS, ids=["torch", "numba"])
def test_value_and_gradient_are_those_of_the_energy(problem, backend) -> None:
    fixed, moving, u = problem
    u.requires_grad_()
    expected = energy(fixed, moving, u)
    (slope,) = torch.autograd.grad(expected.sum(), u)
    value, gradient = backend.match(fixed, moving, u.detach())
    assert_close(value, expected.detach())
    assert_close(gradient, slope)


@pytest.mark.parametrize("backend", BACKENDS, ids=["torch", "numba"])
def test_adjoint_is_that_of_double_backward(problem, backend) -> None:
    inputs = [x.requires_grad_() for x in problem]
    value = energy(*inputs)
    (slope,) = torch.autograd.grad(value.sum(), inputs[2], create_graph=True)
    weights = torch.randn_like(value), torch.randn_like(slope)
    total = (value * weights[0]).sum() + (slope * weights[1]).sum()
    expected = torch.autograd.grad(total, inputs)
    found = backend.match_adjoint(*(x.detach() for x in inputs), *weights)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs)


def test_the_operator_passes_gradcheck(problem) -> None:
    inputs = [x[:1].clone().requires_grad_() for x in problem]
    assert torch.autograd.gradcheck(match, inputs)


@pytest.mark.parametrize("backend", BACKENDS, ids=["torch", "numba"])
def test_blocks_are_the_gauss_newton_matrix(problem, backend) -> None:
    fixed, moving, u = problem
    d = u.shape[1]
    slopes = []
    for channel in range(3):
        v = u.clone().requires_grad_()
        slopes.append(torch.autograd.grad(warp(moving[:, [channel]], v).sum(), v)[0])
    stack = torch.stack(slopes)
    expected = [2 / 3 * (stack[:, :, i] * stack[:, :, j]).sum(0) for i in range(d) for j in range(i, d)]
    value, gradient, block, residual = backend.match_blocks(fixed, moving, u)
    assert_close(block, torch.stack(expected, 1))
    assert_close(residual[:, 0], 2 / 3 * (warp(moving, u) - fixed).square().sum(1))
    assert_close((value, gradient), tuple(backend.match(fixed, moving, u)))


def test_memory_format_and_threads_do_not_change_the_result(problem) -> None:
    fixed, moving, u = problem
    layout = torch.channels_last if u.ndim == 4 else torch.channels_last_3d
    plain = match_numba.match_adjoint(fixed, moving, u, torch.ones(2, dtype=u.dtype), u)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        other = match_numba.match_adjoint(
            fixed.contiguous(memory_format=layout),
            moving.contiguous(memory_format=layout),
            u,
            torch.ones(2, dtype=u.dtype),
            u,
        )
    finally:
        torch.set_num_threads(threads)
    assert_close(plain, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_whole_voxel_has_the_slope_of_the_cell_above_whichever_backend_computes_it(dtype) -> None:
    """A solve starts at u = 0: `grid_sample`'s rounding must not choose the side of each voxel."""
    for extent in [*range(2, 66), 80, 112, 127, 160, 192, 224, 255, 321]:
        fixed, moving = torch.randn(2, 1, 1, extent, 3, dtype=dtype)
        for shift in (0.0, 1.0, -2.0):
            u = torch.full((1, 2, extent, 3), shift, dtype=dtype)
            value, gradient = match_reference.match(fixed, moving, u)
            expected = match_numba.match(fixed, moving, u)
            assert_close((value, gradient), expected, rtol=1e-3, atol=1e-3)
            weights = torch.ones(1, dtype=dtype), torch.randn(u.shape, dtype=dtype)
            ours = match_reference.match_adjoint(fixed, moving, u, *weights)
            theirs = match_numba.match_adjoint(fixed, moving, u, *weights)
            assert_close(ours, theirs, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("backend", BACKENDS, ids=["torch", "numba"])
def test_nan_stays_in_its_sample(problem, backend) -> None:
    fixed, moving, u = problem
    u[0] = torch.nan
    value, gradient = backend.match(fixed, moving, u)
    assert bool(value[0].isnan()) and bool(value[1].isfinite())
    assert bool(gradient[1].isfinite().all())


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "reversed"])
@pytest.mark.parametrize("choice", ["numba", "reference"])
@pytest.mark.parametrize("s", [(4, 5), (3, 4, 5)])
def test_the_operators_are_traceable(monkeypatch, s, choice, layout) -> None:
    """The layout of what they return is the one they promise, whatever that of the input."""
    monkeypatch.setenv("DIO_OPS", choice)
    fixed, moving, u = torch.randn(2, 3, *s), torch.randn(2, 3, *s), torch.randn(2, len(s), *s)
    if layout == "channels last":
        fixed, moving, u = (x.movedim(1, -1).contiguous().movedim(-1, 1) for x in (fixed, moving, u))
    elif layout == "reversed":
        fixed, moving, u = (
            x.permute(*range(x.ndim)[::-1]).contiguous().permute(*range(x.ndim)[::-1]) for x in (fixed, moving, u)
        )
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(torch.ops.dio.match, (fixed, moving, u), **checks)
    torch.library.opcheck(torch.ops.dio.match_adjoint, (fixed, moving, u, torch.randn(2), u), **checks)
    torch.library.opcheck(torch.ops.dio.match_blocks, (fixed, moving, u), **checks)


def test_wrong_shapes_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="expected equal shapes"):
        match(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="does not lie on the features' grid"):
        match_blocks(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))


@pytest.mark.parametrize(("variable", "wanted"), [("OMP_NUM_THREADS", 1), (None, 1), (None, 2)])
def test_the_kernel_takes_torchs_threads_and_leaves_them(variable, wanted) -> None:
    """D10: numba's pool, when it started, set torch's threads to all cores, whatever OMP_NUM_THREADS said."""
    code = f"""
import numba, torch
from dio_lightning.ops import match
{"" if variable else f"torch.set_num_threads({wanted})"}
a, u = torch.rand(2, 1, 3, 6, 5, 4), torch.rand(1, 3, 6, 5, 4, requires_grad=True)
match(*a, u)[0].sum().backward()
assert torch.get_num_threads() == {wanted}, torch.get_num_threads()
assert numba.get_num_threads() == min({wanted}, numba.config.NUMBA_NUM_THREADS), numba.get_num_threads()
"""
    environment = {key: value for key, value in os.environ.items() if "NUM_THREADS" not in key}
    environment |= {variable: str(wanted)} if variable else {}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-800:]


def test_compiled_loops_close_over_numbers_alone() -> None:
    """Numba's cache names a loop by what it closes over too: another function is another one in every process."""
    pytest.importorskip("numba")
    seen = 0
    for file in sorted(Path(ops.__file__).parent.glob("*_kernels.py")):
        for loop in vars(import_module(f"dio_lightning.ops.{file.stem}")).values():
            for cell in getattr(getattr(loop, "py_func", None), "__closure__", None) or ():
                assert isinstance(cell.cell_contents, bool | int | float | str), f"{file.name}: {loop}"
                seen += 1
    assert seen >= 4
