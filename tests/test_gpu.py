"""Every public function on a device against itself on the CPU in double precision, in 2-D and 3-D.

With `cpu` as the device the comparison is one of precisions alone; it runs everywhere, and so exercises this file. With
`cuda` (marked gpu) it says that the library computes the same on a GPU.
"""

import importlib
from collections.abc import Callable

import pytest
import torch
from gpu_cases import Case, cases, evaluate
from torch import Tensor
from torch.testing import assert_close

Runs = tuple[list[Tensor], list[Tensor]]
"""Results and gradients, as `evaluate` returns them."""
ALL = list(cases())
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAMED = {
    "implicit": {"Adjoint", "AdjointReport", "Advance", "Evaluation", "Observe", "Solution", "Solver", "StopRule"},
    "features": {"FeaturePyramid", "FeatureNetwork"},
    "losses": {"Energy", "Regulariser", "Similarity", "Term"},
    "updates": {"UpdateRule"},
    "layers": {"Observer", "Problem", "Record", "Run"},
    "ops": {"Blocks", "WeightedCorrelation"},
    "fields": {"Grid"},
    "metrics": {"Regularity"},
}
"""What is a type or a base, and no computation of its own."""
ELSEWHERE = {
    "implicit": {"Update", "iterate"},
    "metrics": {"element_areas"},
    "fields": {"blocks", "spanning"},
    "ops": {"chosen"},
    "updates": {"PerLevel"},
}
"""What other cases run (`fixed_point` is `iterate`), and what never sees a tensor."""


@pytest.fixture(autouse=True)
def full_float32():
    """TensorFloat-32 off: it keeps ten bits of a factor, and would hide what is compared."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def compare(found: Runs, expected: Runs, tolerance: float) -> None:
    """Integers are equal; numbers to `tolerance` of the largest of their tensor, NaN where NaN is expected.

    A gradient that is much smaller than the others may be zero but for rounding (of a bias before a normalisation).
    """
    for ours, theirs in zip(found[0], expected[0], strict=True):
        _close(ours, theirs, tolerance, 1e-3)
    largest = max([float(x.abs().max()) for x in expected[1]], default=0.0)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        _close(ours, theirs, tolerance, max(1e-3, 1e-2 * largest))


def _close(ours: Tensor, theirs: Tensor, tolerance: float, least: float) -> None:
    assert ours.is_floating_point() == theirs.is_floating_point()
    if not theirs.is_floating_point():
        assert torch.equal(ours, theirs)
        return
    finite = theirs[theirs.isfinite()]
    scale = max(float(finite.abs().max()) if finite.numel() else 0.0, least)
    assert_close(ours, theirs, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def rounded(found: Runs, expected: Runs, results: float, gradients: float) -> None:
    """Every result, and all gradients together, to these shares of their norm."""
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert float((ours - theirs).norm()) <= results * float(theirs.norm())
    ours, theirs = (torch.cat([x.flatten() for x in run[1]]) for run in (found, expected))
    assert float((ours - theirs).norm()) <= gradients * float(theirs.norm())


def every(which: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Every case of a kind."""
    chosen = [case for case in ALL if which(case)]
    return pytest.mark.parametrize("case", chosen, ids=[case.name.replace(" ", "_") for case in chosen])


@pytest.mark.parametrize("d", [2, 3], ids=["2d", "3d"])
@pytest.mark.parametrize("device", DEVICES)
@every()
def test_a_device_computes_what_the_cpu_does_in_double_precision(case: Case, device: str, d: int) -> None:
    compare(evaluate(case, d, device, torch.float32), evaluate(case, d, "cpu", torch.float64), case.tolerance)


@pytest.mark.parametrize("d", [2, 3], ids=["2d", "3d"])
@pytest.mark.parametrize("device", DEVICES)
@every(lambda case: not case.network)
def test_autocast_rounds_nothing_but_networks(case: Case, device: str, d: int) -> None:
    """`trainer.precision: bf16-mixed`: coordinates, inner products of solvers, losses and scores stay in float32."""
    found = evaluate(case, d, device, torch.float32, torch.bfloat16)
    compare(found, evaluate(case, d, "cpu", torch.float64), case.tolerance)


@pytest.mark.parametrize("d", [2, 3], ids=["2d", "3d"])
@pytest.mark.parametrize("device", DEVICES)
@every(lambda case: case.network)
def test_networks_run_in_bfloat16(case: Case, device: str, d: int) -> None:
    """A convolution keeps eight bits: gradients of normalised features are the worst."""
    found = evaluate(case, d, device, torch.float32, torch.bfloat16)
    rounded(found, evaluate(case, d, "cpu", torch.float64), 0.1, 0.5)


@pytest.mark.parametrize("d", [2, 3], ids=["2d", "3d"])
@every(lambda case: case.network)
@pytest.mark.gpu
def test_networks_run_in_half_precision(case: Case, d: int) -> None:
    """`trainer.precision: 16-mixed`; the gradient of a network that normalises is off by 0.106 on a CPU, too."""
    found = evaluate(case, d, "cuda", torch.float32, torch.float16)
    rounded(found, evaluate(case, d, "cpu", torch.float64), 0.02, 0.15)


def test_no_public_function_is_left_out() -> None:
    covered = {case.covers for case in ALL}
    assert len({case.name for case in ALL}) == len(ALL)
    packages = ("ops", "fields", "losses", "features", "networks", "updates", "layers", "implicit", "metrics")
    for package in packages:
        public = set(importlib.import_module(f"dio_lightning.{package}").__all__)
        public -= NAMED.get(package, set()) | ELSEWHERE.get(package, set())
        assert {f"{package}.{name}" for name in public} <= covered
