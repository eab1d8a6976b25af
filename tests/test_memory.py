"""Memory of earlier results for those to come: what somebody holds is never written."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dio_lightning.fields import gaussian_smooth
from dio_lightning.implicit import Adam, Anderson, Evaluation, Never, Picard, Residual, Solution, iterate
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.ops import memory, steps
from dio_lightning.transformations import Diffeomorphism, FreeForm, StationaryVelocity, Transformation
from dio_lightning.updates import Descent

SIZE = (12, 13, 14)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small fields are treated as large ones are."""
    monkeypatch.setattr(memory, "LEAST", 1)
    monkeypatch.setattr(steps, "LEAST", 1)
    yield


def place() -> int:
    return memory.empty((3, 5), torch.float32).data_ptr()


def kept() -> list[Any]:
    arrays = memory._KEPT.arrays
    assert arrays is not None
    return arrays


def test_memory_is_given_again_when_nothing_lies_in_it() -> None:
    with memory.reuse():
        first = place()
        assert place() == first  # nobody has kept it
        x = memory.empty((3, 5), torch.float32)
        assert place() != x.data_ptr() == first
        holders: list[Any] = [x[1:], x.detach().flatten(), x.numpy(), x.untyped_storage(), x.double]
        del x
        while holders:
            assert place() != first, type(holders[-1])
            holders.pop()
        assert place() == first
        assert memory.empty((5, 3), torch.float32).data_ptr() == first
        assert memory.empty((3, 5), torch.float64).data_ptr() != first
        assert len(kept()) == 3


def test_inside_another_it_is_the_same_and_a_thread_has_its_own() -> None:
    others: list[object] = []
    with memory.reuse():
        first = place()
        with memory.reuse():
            assert place() == first
        assert place() == first
        thread = threading.Thread(target=lambda: others.append(memory._KEPT.arrays))
        thread.start()
        thread.join()
        last = memory.empty((3, 5), torch.float32).fill_(7)
    assert others == [None]
    assert memory._KEPT.arrays is None
    with memory.reuse():
        assert place() != last.data_ptr()
    assert (last == 7).all()


def test_an_error_ends_it() -> None:
    with pytest.raises(KeyError), memory.reuse():
        raise KeyError
    assert memory._KEPT.arrays is None


def test_sums_and_opposites() -> None:
    x, y = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    with memory.reuse():
        assert torch.autograd.grad(memory.add(x, y, 3.0).sum(), x)[0].sum() == 6
        with torch.no_grad():
            assert torch.equal(memory.add(x, y, 3.0), torch.add(x, y, alpha=3.0))
            assert torch.equal(memory.negative(x), -x)
            assert memory.add(x, y.double()).dtype == torch.float64
            assert memory.add(x, y[:1]).shape == (2, 3)


def maps(batch: int = 1) -> tuple[Tensor, Tensor]:
    both = gaussian_smooth(torch.randn(2 * batch, 4, *SIZE, generator=torch.Generator().manual_seed(0)), 1.5) * 9
    return both[:batch], both[:batch] + 0.5 * both[batch:]


def solved(transformation: Transformation, observe: Any = None, batch: int = 1, steps: int = 8) -> Solution:
    fixed, moving = maps(batch)
    if batch > 1:
        moving[1] = fixed[1]  # rests
        moving[2, :, 3] = torch.nan  # fails
    layer = OptimizerLayer((steps,), Descent(regularity=0.1), transformation=transformation)
    with torch.no_grad():
        return layer.solve(layer.problem(Level(fixed, moving)), torch.zeros(batch, 3, *SIZE), steps, observe=observe)


MODELS = [Diffeomorphism(), FreeForm(), StationaryVelocity(3)]


@pytest.mark.parametrize("transformation", MODELS, ids=repr)
def test_states_that_an_observer_keeps_do_not_change(transformation) -> None:
    states, copies = list[Tensor](), list[Tensor]()

    def observe(step: int, z: Tensor, evaluation: Evaluation | None) -> None:
        states.append(z)
        copies.append(z.clone())

    solution = solved(transformation, observe)
    assert len(states) == 9
    assert all(torch.equal(*pair) for pair in zip(states, copies, strict=True))
    assert torch.equal(solved(transformation).value, solution.value)
    assert torch.equal(solution.value, copies[-1])  # nor does a later solve write into the solution of an earlier one


@pytest.mark.parametrize("solver", [Picard(), Anderson(3), Adam()], ids=repr)
def test_what_a_solver_keeps_does_not_change(solver) -> None:
    """Beside the same solve in memory that is always fresh."""

    def solve() -> Solution:
        with torch.no_grad():
            target = maps()[0][:, :3]
            return iterate(
                lambda z: memory.add(z, gaussian_smooth(target - z, 1.0)),
                torch.zeros_like(target),
                solver,
                max_steps=7,
                stop=Never(),
                advance=memory.add,
            )

    found = solve()
    memory.LEAST = 2**40
    assert torch.equal(found.value, solve().value)


@pytest.mark.parametrize("transformation", MODELS, ids=repr)
def test_a_solve_asks_for_its_memory_once(transformation) -> None:
    """Every step after the second is computed in what the first ones have left."""
    fields = list[int]()

    def count(step: int, z: Tensor, evaluation: Evaluation | None) -> None:
        fields.append(sum(array.nbytes == z.nbytes for array, _ in kept()))

    solved(transformation, count)
    assert fields[2:] == [fields[2]] * 7
    assert fields[2] <= 5


@pytest.mark.parametrize("transformation", MODELS, ids=repr)
def test_samples_that_rest_and_fail_are_those_of_plain_loops(transformation, monkeypatch) -> None:
    found = solved(transformation, batch=3, steps=12)
    monkeypatch.setattr(steps, "LEAST", 2**40)
    monkeypatch.setattr(memory, "LEAST", 2**40)
    expected = solved(transformation, batch=3, steps=12)
    for name in ("value", "steps", "converged", "failed"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.failed.tolist() == [False, False, True]
    assert found.steps.tolist()[1:] == [4, 0]
    torch.testing.assert_close(found.residual, expected.residual, atol=0, rtol=1e-5, equal_nan=True)


def test_the_step_frozen_at_a_solution_is_computed_when_asked_for() -> None:
    """And is the same whether it is asked once or twice."""
    fixed, _ = maps()
    z0 = torch.zeros(1, 3, *SIZE)
    with torch.no_grad():
        solution = iterate(lambda z: 0.5 * (z + fixed[:, :3]), z0, Adam(), max_steps=5, stop=Residual(0))
    assert solution.step is not None
    first = solution.step(solution.value)
    assert torch.equal(first, solution.step(solution.value))
    assert not torch.equal(first, solution.value)
