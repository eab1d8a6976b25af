"""What computes the operators: DIO_OPS, and what is installed."""

import sys
from importlib.machinery import ModuleSpec
from subprocess import run
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dio_lightning import fields, ops
from dio_lightning.ops import choice, correlation_numba, information_numba, match_numba, sampling_numba, stencil_numba


def _compute() -> list[torch.Tensor]:
    """A value of every operator."""
    torch.manual_seed(0)
    a, b, u = torch.rand(1, 2, 6, 7), torch.rand(1, 2, 6, 7), torch.rand(1, 2, 6, 7)
    points = torch.rand(2, 3) * 4
    with torch.no_grad():
        values = [fields.warp(a, u), *ops.match(a, b, u), *ops.match_blocks(a, b, u), ops.local_correlation(a, b, 3)]
        values += [
            fields.gaussian_smooth(u, 1.0),
            *ops.squared_differences(u),
            ops.determinants(u),
            *ops.shortfall(u, 0.9),
        ]
        return [*values, ops.mutual_information(a[:, :1], b[:, :1], 6), ops.preimages(u[0] * 0.3, points).float()]


def _forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a compiled loop ran")

    for module in (correlation_numba, information_numba, match_numba, sampling_numba, stencil_numba):
        monkeypatch.setattr(module, "_threads", refuse)


def test_reference_computes_the_same_by_plain_pytorch(monkeypatch) -> None:
    monkeypatch.delenv("DIO_OPS", raising=False)
    assert ops.chosen() == "numba"
    compiled = _compute()
    monkeypatch.setenv("DIO_OPS", "reference")
    _forbid(monkeypatch)
    assert ops.chosen() == "reference"
    assert_close(_compute(), compiled, rtol=1e-4, atol=1e-5)


def test_without_numba_it_is_plain_pytorch_unless_numba_is_asked_for(monkeypatch) -> None:
    def none(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(choice, "find_spec", none)
    choice._resolved.cache_clear()
    try:
        monkeypatch.delenv("DIO_OPS", raising=False)
        assert ops.chosen() == "reference"
        monkeypatch.setenv("DIO_OPS", "numba")
        with pytest.raises(ValueError, match=r"DIO_OPS is 'numba', which is not installed"):
            ops.chosen()
    finally:
        choice._resolved.cache_clear()


def test_each_device_has_its_own_best(monkeypatch) -> None:
    installed = {"numba", "triton"}
    monkeypatch.setattr(choice, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(choice, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    monkeypatch.setattr(choice.torch.cuda, "is_available", lambda: True)
    for name in ("CC", "DIO_OPS", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)

    def here(name: str = "") -> list[str]:
        monkeypatch.setenv("DIO_OPS", name)
        choice._resolved.cache_clear()
        return [ops.chosen(device) for device in ("cpu", "cuda", "mps")]

    try:
        assert here() == ["numba", "triton", "reference"]
        assert here("numba") == ["numba", "reference", "reference"]
        assert here("triton") == ["numba", "triton", "reference"], "what lies on the CPU beside a GPU is not refused"
        assert here("reference") == ["reference"] * 3
        monkeypatch.setattr(choice, "which", lambda name: None)
        assert here() == ["numba", "reference", "reference"], "no compiler builds what launches kernels"
        installed.clear()
        assert here() == ["reference"] * 3
        with pytest.raises(ValueError, match=r"DIO_OPS is 'triton', which is not installed"):
            here("triton")
    finally:
        choice._resolved.cache_clear()


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: name)
    monkeypatch.setattr(choice.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DIO_OPS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    choice._resolved.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"DIO_OPS is 'triton', but there is no CUDA device: expected numba or"):
            ops.chosen()
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert ops.chosen() == "triton"
    finally:
        choice._resolved.cache_clear()


def test_importing_the_operators_imports_neither_numba_nor_triton() -> None:
    code = "import sys, dio_lightning.ops; print(*{'numba', 'triton'} & set(sys.modules))"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_another_name_is_refused_before_any_work(monkeypatch) -> None:
    from dio_lightning import register

    monkeypatch.setenv("DIO_OPS", "cuda")
    image = torch.rand(6, 6, 6)
    with pytest.raises(ValueError, match=r"DIO_OPS is 'cuda', expected numba, triton or reference"):
        register(image, image)


def test_inference_spares_the_dispatcher_unless_somebody_watches() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    def both() -> tuple[torch.Tensor, ...]:
        return *ops.match(fixed, moving, u), fields.warp(u, u)

    torch.manual_seed(0)
    (fixed, moving), u, names = torch.randn(2, 1, 4, 5, 6, 7), torch.randn(1, 3, 5, 6, 7), list[str]()
    plain = both()
    with torch.inference_mode():
        assert all(map(torch.equal, both(), plain))
        with Watch():
            watched = both()
    assert all(map(torch.equal, watched, plain))
    assert {"dio.match.default", "dio.interpolate.default"} <= set(names)
