"""A recorded step: replays give what the loop gives, and what cannot be recorded is not.

CUDA graphs need a GPU. `Tape` stands in for them: it keeps the operations of one call with their tensors and numbers,
as a graph keeps kernels with pointers and arguments, and does them again on the same memory. What Python changes from
step to step is lost on it, as it would be on a GPU; plain PyTorch computes the operators, as a tape sees no loops.
"""

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dio_lightning.fields import gaussian_smooth
from dio_lightning.implicit import (
    Adam,
    Anderson,
    Broyden,
    GradientDescent,
    Picard,
    Residual,
    Solution,
    Solver,
    Stagnation,
    StopRule,
    fixed_point,
    iterate,
)
from dio_lightning.implicit.graphs import Recorder, repeats
from dio_lightning.implicit.solvers import State
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses import LNCC, SSD, Diffusion, FeatureDistance
from dio_lightning.networks import VxmUNet
from dio_lightning.transformations import Affine, Diffeomorphism, FreeForm, StationaryVelocity, Transformation
from dio_lightning.updates import Descent, GaussNewton, ImageDescent, LearnedStep, UpdateRule

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Operations(TorchDispatchMode):
    """Keeps what is called, and a copy of what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any, list[int]]] = []
        self.made: dict[int, Tensor] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for x in tensors((args, kwargs)):
            if memory(x) not in self.made and memory(x) not in self.before:
                whole = x.as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
                self.before[memory(x)] = whole, whole.clone()
        out = func(*args, **kwargs)
        owned = {memory(x) for x in tensors((args, kwargs))}
        fresh = [i for i, x in enumerate(tree_leaves(out)) if isinstance(x, Tensor) and memory(x) not in owned]
        self.made |= {memory(tree_leaves(out)[i]): tree_leaves(out)[i] for i in fresh}
        self.calls.append((func, args, kwargs, out, fresh))
        return out


def tensors(tree: object) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Tape(Recorder):
    """Records on the CPU, and counts records and replays."""

    def __init__(self) -> None:
        self.records, self.replays, self.recording = 0, 0, False

    def record(self, call: Callable[[], object]) -> Callable[[], object] | None:
        """The operations of a call, after which memory is as if none had run: nothing computed, nothing written."""
        self.records, self.recording = self.records + 1, True
        operations, broke_off = Operations(), False
        try:
            with operations:
                call()
        except RuntimeError:
            broke_off = True
        self.recording = False
        for x, old in operations.before.values():
            x.copy_(old)
        for x in operations.made.values():
            x.fill_(torch.nan if x.is_floating_point() else 1)

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, out, fresh in operations.calls:
                again = tree_leaves(func(*args, **kwargs))
                for i in fresh:
                    tree_leaves(out)[i].copy_(again[i])

        return None if broke_off else replay


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    tape = Tape()
    monkeypatch.setattr(import_module("dio_lightning.implicit.iterate"), "recorder_of", lambda z: tape)
    monkeypatch.setenv("DIO_OPS", "reference")
    return tape


def same(found: Solution, expected: Solution) -> None:
    for name in ("value", "residual", "steps", "converged", "failed"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.step is None) == (expected.step is None)
    if found.step is not None and expected.step is not None:
        with torch.inference_mode():
            start = 0.5 * expected.value
            assert torch.equal(found.step(start), expected.step(start))


class Linear:
    """f(z) = A z + b with energies; the last sample diverges."""

    def __init__(self, gain: Tensor, b: Tensor) -> None:
        self.gain, self.b, self.energy = gain, b, torch.zeros(len(b), device=b.device)

    def __call__(self, z: Tensor) -> Tensor:
        fz = self.gain * z + self.b
        self.energy = (fz - z).square().sum(1)
        return fz


SOLVERS: list[Solver] = [Picard(), Picard(0.3), GradientDescent(0.7), Adam(0.2)]


def solved(solver: Solver, device: str, graphs: bool, stop: StopRule, steps: int = 40) -> Solution:
    gain = torch.tensor([0.2, 0.6, 0.95, 3.0], device=device)[:, None]
    b = torch.linspace(-1, 1, 20, device=device).reshape(4, 5)
    with torch.no_grad():
        return iterate(Linear(gain, b), 0.1 * b, solver, max_steps=steps, stop=stop, divergence=1e3, graphs=graphs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stop", [Residual(1e-3), Stagnation(1e-2, 3)], ids=repr)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_replays_end_where_the_loop_ends(solver: Solver, stop: StopRule, device: str, request) -> None:
    """Every sample at its own step, converged, failed, or out of steps."""
    tape = request.getfixturevalue("tape") if device == "cpu" else None
    expected = solved(solver, device, False, stop)
    same(solved(solver, device, True, stop), expected)
    assert len(set(expected.steps.tolist())) > 1
    if tape is not None:
        assert tape.records == 1
        assert tape.replays > 5


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 9])
def test_any_number_of_steps(steps: int, tape: Tape) -> None:
    """Also fewer than are taken before one is recorded."""
    same(solved(Adam(), "cpu", True, Residual(0), steps), solved(Adam(), "cpu", False, Residual(0), steps))
    assert tape.replays == (steps - 2 if steps > 3 else 0)


@pytest.mark.parametrize("solver", [Anderson(window=3), Broyden()], ids=repr)
def test_a_state_that_grows_is_not_recorded(solver: Solver, tape: Tape) -> None:
    same(solved(solver, "cpu", True, Residual(1e-3)), solved(solver, "cpu", False, Residual(1e-3)))
    assert tape.records == 0


@pytest.mark.parametrize("where", ["update", "solver", "advance", "shape"])
@pytest.mark.parametrize("stop", [Residual(1e-3), Stagnation(1e-2, 3)], ids=repr)
@pytest.mark.parametrize("base", [Picard, Adam])
def test_what_cannot_be_recorded_is_computed_all_the_same(base: type, stop: StopRule, where: str, tape: Tape) -> None:
    """The loop goes on from where it was, whatever Python saw of a record that broke off."""

    def breaks(at: str) -> None:
        if tape.recording and at == where:
            raise RuntimeError("operation not permitted when stream is capturing")

    class Breaks(base):
        def step(self, z: Tensor, r: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
            delta, state = super().step(z, r, state, active)
            breaks("solver")
            return delta, ((*state, z) if tape.recording and where == "shape" else state)

    class Unsteady(Linear):
        def __call__(self, z: Tensor) -> Tensor:
            fz = super().__call__(z)
            breaks("update")
            return fz

    def advance(z: Tensor, delta: Tensor) -> Tensor:
        moved = z + delta
        breaks("advance")
        return moved

    gain, b = torch.tensor([0.2, 0.6, 0.95])[:, None], torch.linspace(-1, 1, 15).reshape(3, 5)
    with torch.no_grad():
        found, expected = (
            iterate(Unsteady(gain, b), 0.1 * b, Breaks(), max_steps=40, stop=stop, advance=advance, graphs=graphs)
            for graphs in (True, False)
        )
    same(found, expected)
    assert (tape.records, tape.replays) == (1, 0)


def test_the_stand_in_bakes_in_what_python_counts(tape: Tape) -> None:
    """So the tests above would see a step number that is not on the device."""

    class Counts(Linear):
        calls = 0

        def __call__(self, z: Tensor) -> Tensor:
            self.calls += 1
            return super().__call__(z) + self.calls

    def run(graphs: bool) -> Tensor:
        b = torch.ones(1, 3)
        with torch.no_grad():
            counts = Counts(0.5 * b[:, :1], b)
            return iterate(counts, b, Picard(), max_steps=8, stop=Residual(0), graphs=graphs).value

    assert not torch.equal(run(True), run(False))


FEATURES = {
    "descent": Descent(regularity=0.1),
    "not normalised": Descent(regularity=0.1, normalise=False),
    "terms": Descent(regularity=0.1, terms=(Diffusion(weight=0.2), SSD())),
    "local correlation": ImageDescent(LNCC(5), regularity=0.1),
    "gauss-newton": GaussNewton(regularity=0.1),
}


def level(device: str, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = gaussian_smooth(torch.randn(4, 3, *size, generator=generator), 1.5)
    maps = maps / maps.std()
    return maps[:2].to(device), (maps[:2] + 0.3 * maps[2:]).to(device)


def register(update: UpdateRule, transformation: Transformation, device: str, graphs: bool) -> list[Solution]:
    solver = Adam(0.3) if not isinstance(update, LearnedStep) else Picard()
    stop = Stagnation(1e-2, 2) if not isinstance(update, LearnedStep) else Residual(1e-3)
    layer = OptimizerLayer([9, 7], update, solver, transformation, stop=stop, graphs=graphs)
    pyramids = [level(device, (4, 5, 6)), level(device, (8, 9, 11))]
    with torch.inference_mode():
        return layer([f for f, _ in pyramids], [m for _, m in pyramids])


CASES = [
    *((name, Diffeomorphism()) for name in FEATURES if name != "gauss-newton"),
    ("terms", StationaryVelocity(3)),
    ("descent", FreeForm()),
    ("gauss-newton", FreeForm()),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "transformation"), CASES, ids=repr)
def test_registrations_are_the_same(name: str, transformation: Transformation, device: str, request) -> None:
    tape = request.getfixturevalue("tape") if device == "cpu" else None
    found = register(FEATURES[name], transformation, device, True)
    for one, expected in zip(found, register(FEATURES[name], transformation, device, False), strict=True):
        same(one, expected)
    if tape is not None:
        assert tape.records == 2


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_is_the_same(device: str, request) -> None:
    tape = request.getfixturevalue("tape") if device == "cpu" else None
    torch.manual_seed(0)
    network = VxmUNet(9, encoder=(4, 4), decoder=(4, 4), final=(4,))
    torch.nn.init.normal_(network.get_parameter("head.weight"), std=0.05)
    rule = LearnedStep(network, leak=0.1).to(device)
    found = register(rule, FreeForm(), device, True)
    for one, expected in zip(found, register(rule, FreeForm(), device, False), strict=True):
        same(one, expected)
    if tape is not None:
        assert tape.records == 2


def test_only_what_says_so_itself_is_recorded() -> None:
    class Own(FeatureDistance):
        pass

    class Moving(Diffeomorphism):
        pass

    maps = level("cpu", (6, 7, 8))

    def asked(update: UpdateRule, transformation: Transformation = FreeForm()) -> bool:
        return OptimizerLayer([1], update, transformation=transformation).problem(Level(*maps)).repeats

    assert asked(Descent())
    assert asked(ImageDescent(LNCC()))
    assert not asked(Descent(distance=Own()))
    assert not asked(Descent(), Moving())
    assert not asked(Descent(), Affine())
    assert not asked(LearnedStep(torch.nn.Conv3d(9, 3, 1)))
    network = VxmUNet(9, encoder=(4,), decoder=(4,), final=(4,))
    assert repeats(LearnedStep(network))
    network.head.register_forward_hook(lambda *_: None)
    assert not repeats(LearnedStep(network))


def test_the_reason_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "dio_lightning.implicit.graphs"), torch.no_grad():
        fixed_point(lambda z: 0.5 * z, torch.ones(1, 2), graphs=True)
    assert "cpu" in caplog.text
