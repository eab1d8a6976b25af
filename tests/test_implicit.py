"""Solvers x adjoints against closed forms, in float64; a new solver is one entry in CASES, an adjoint in ADJOINTS."""

import gc
from importlib import import_module
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dio_lightning.implicit import (
    Adam,
    Adjoint,
    Anderson,
    Broyden,
    GradientDescent,
    ImplicitAdjoint,
    Never,
    PhantomAdjoint,
    Picard,
    Residual,
    Solution,
    Solver,
    Stagnation,
    UnrolledAdjoint,
    fixed_point,
    gmres,
    iterate,
)

TIGHT = Residual(1e-12)


class Case(NamedTuple):
    """A solver, how near it comes on a contraction, and whether derivatives of its steps converge too."""

    solver: Solver
    accuracy: float = 1e-9
    differentiable: bool = True


CASES = [
    Case(Picard()),
    Case(Picard(damping=0.3)),
    Case(Anderson()),
    Case(Anderson(window=3, damping=0.2)),
    Case(Broyden()),
    Case(Broyden(window=2, damping=0.1)),
    Case(GradientDescent(rate=0.7)),
    Case(Adam(rate=0.02), accuracy=0.05, differentiable=False),  # a step of fixed length does not settle
]
ADJOINTS = [UnrolledAdjoint(), PhantomAdjoint(60), PhantomAdjoint(100, damping=0.4), ImplicitAdjoint(rtol=1e-12)]
SOLVERS = [case.solver for case in CASES]


def contraction(size: int = 6, norm: float = 0.5, seed: int = 0) -> Tensor:
    matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return norm * matrix / torch.linalg.matrix_norm(matrix, 2)


def fields(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((value * fields(*value.shape, seed=9)).sum(), inputs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.solver))
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_affine_contraction(case: Case, adjoint: Adjoint) -> None:
    matrix, b = contraction().requires_grad_(), fields(2, 3, 6).requires_grad_()
    solution = fixed_point(
        lambda z: z @ matrix + b, torch.zeros_like(b), case.solver, adjoint, max_steps=200, stop=TIGHT
    )
    exact = b @ torch.linalg.inv(torch.eye(6, dtype=b.dtype) - matrix)
    if case.differentiable or not isinstance(adjoint, PhantomAdjoint):
        assert_close(solution.value, exact, atol=case.accuracy, rtol=case.accuracy)
    if case.differentiable:
        assert solution.converged.all()
        assert (solution.residual <= 1e-12).all()
    if case.differentiable or isinstance(adjoint, ImplicitAdjoint):
        tolerance = max(case.accuracy, 1e-7)
        found, expected = gradient(solution.value, matrix, b), gradient(exact, matrix, b)
        assert_close(found, expected, atol=10 * tolerance, rtol=tolerance)
    assert solution.value.shape == b.shape
    assert not solution.failed.any()


def test_implicit_gradient_is_better_than_phantom_and_phantom_improves_with_steps() -> None:
    b = fields(2, 6).requires_grad_()
    matrix = contraction(norm=0.8)
    exact = gradient(b @ torch.linalg.inv(torch.eye(6, dtype=b.dtype) - matrix), b)[0]

    def error(adjoint: Adjoint) -> float:
        value = fixed_point(
            lambda z: z @ matrix + b, torch.zeros_like(b), Picard(), adjoint, max_steps=300, stop=TIGHT
        ).value
        return float((gradient(value, b)[0] - exact).norm())

    errors = [error(PhantomAdjoint(steps)) for steps in (1, 2, 4, 8, 16, 32)]
    errors.append(error(ImplicitAdjoint(rtol=1e-12)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


def test_jfb_is_one_update_at_the_solution() -> None:
    weight, b = contraction().requires_grad_(), fields(2, 6).requires_grad_()

    def update(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight + b)

    with torch.no_grad():
        end = fixed_point(update, torch.zeros_like(b), stop=TIGHT).value
    found = fixed_point(update, torch.zeros_like(b), stop=TIGHT).value
    assert torch.equal(found, update(end))
    assert all(map(torch.equal, gradient(found, weight, b), gradient(update(end), weight, b)))


def test_phantom_runs_the_solvers_frozen_step_and_its_advance() -> None:
    b = fields(2, 6).requires_grad_()
    matrix = contraction()

    def update(z: Tensor) -> Tensor:
        return z @ matrix + b

    def advance(z: Tensor, delta: Tensor) -> Tensor:
        return z + 0.5 * delta

    with torch.no_grad():
        solution = iterate(update, torch.zeros_like(b), Adam(), max_steps=5, stop=Never(), advance=advance)
    found = fixed_point(update, torch.zeros_like(b), Adam(), max_steps=5, stop=Never(), advance=advance).value
    z = torch.zeros_like(b).detach()
    s, m, scale = torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(z)
    with torch.no_grad():
        for t in range(1, 6):
            r = update(z) - z
            m, s = 0.5 * m + 0.5 * r, 0.99 * s + 0.01 * r**2
            scale = 0.3 / ((1 - 0.5**t) * (s / (1 - 0.99**t)).sqrt())
            z = z + 0.5 * scale * m
    assert_close(solution.value, z)
    assert_close(found, z + 0.5 * scale * (update(z) - z))
    assert_close(gradient(found, b)[0], 0.5 * scale * fields(2, 6, seed=9))


def test_implicit_gradient_of_a_nonlinear_contraction_against_finite_differences() -> None:
    weight, b = contraction(5, 0.9), fields(3, 5)

    def solve(w: Tensor, adjoint: Adjoint) -> Tensor:
        def update(z: Tensor) -> Tensor:
            return torch.tanh(z @ w + b)

        value = fixed_point(update, torch.zeros_like(b), Anderson(), adjoint, max_steps=200, stop=TIGHT).value
        return value.square().sum()

    found = torch.autograd.grad(solve(weight.requires_grad_(), ImplicitAdjoint(rtol=1e-12)), weight)[0]
    expected = torch.zeros_like(found)
    with torch.no_grad():
        for i in range(5):
            for j in range(5):
                h = torch.zeros_like(weight)
                h[i, j] = 1e-6
                expected[i, j] = (solve(weight + h, UnrolledAdjoint()) - solve(weight - h, UnrolledAdjoint())) / 2e-6
    assert_close(found, expected, atol=1e-7, rtol=1e-7)


def test_gmres_against_a_dense_solve() -> None:
    matrix = torch.eye(12, dtype=torch.float64) + torch.stack([contraction(12, 0.9, seed=s) for s in (1, 2, 3)])
    v = fields(3, 3, 4)
    v[1] = 0

    def product(w: Tensor) -> Tensor:
        return (matrix @ w.reshape(3, 12, 1)).reshape(w.shape)

    exact = torch.linalg.solve(matrix, v.reshape(3, 12)).reshape(v.shape)
    for restart in (30, 4):
        w, residual, steps = gmres(product, v, rtol=1e-10, max_steps=100, restart=restart)
        assert (residual <= 1e-10).all()
        assert_close(w, exact, atol=1e-8, rtol=1e-8)
        assert steps <= (13 if restart == 30 else 100)


def test_adjoint_report_warning_and_fallback() -> None:
    b = fields(2, 6).requires_grad_()
    matrix = contraction(norm=0.95)
    matrices = torch.stack([matrix, torch.zeros_like(matrix)])

    def update(z: Tensor) -> Tensor:
        return (z[:, None] @ matrices)[:, 0] + b

    solution = fixed_point(update, torch.zeros_like(b), Anderson(), ImplicitAdjoint(max_steps=3))
    assert solution.backward.residual is None
    with pytest.warns(UserWarning, match="ImplicitAdjoint reached relative residuals"):
        gradient(solution.value, b)
    assert solution.backward.steps <= 3
    assert solution.backward.converged is not None
    assert solution.backward.converged.tolist() == [False, True]

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return v * torch.tensor([[torch.nan], [1.0]], dtype=v.dtype)

    solution = fixed_point(lambda z: 0.5 * Spoilt.apply(z) + b, torch.zeros_like(b), Picard(), ImplicitAdjoint())
    with pytest.warns(UserWarning, match="inf"):
        found = gradient(solution.value, b)[0]
    assert_close(found, fields(2, 6, seed=9) * torch.tensor([[1.0], [2.0]], dtype=b.dtype))
    assert solution.backward.converged is not None
    assert solution.backward.converged.tolist() == [False, True]


class Unruly:
    """Sample 0 contracts; sample 1 gives NaN after 3 calls; the residual of sample 2 grows without bound."""

    def __init__(self, b: Tensor) -> None:
        self.b, self.calls, self.matrix = b, 0, contraction()

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        rows = [z[:1] @ self.matrix + self.b[:1]]
        if len(z) > 1:
            weight = 1.0 if self.calls <= 3 else torch.nan
            rows += [weight * (z[1:2] @ self.matrix.T + self.b[1:2]), z[2:] + 500.0**self.calls]
        return torch.cat(rows)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_samples_do_not_touch_each_other(solver: Solver) -> None:
    z0, b = fields(3, 6), fields(3, 6, seed=2).requires_grad_()
    adjoint = PhantomAdjoint()
    options = {"max_steps": 30, "stop": Residual(1e-2)}
    together = fixed_point(Unruly(b), z0, solver, adjoint, **options)
    alone = fixed_point(Unruly(b), z0[:1], solver, adjoint, **options)
    assert_close(together.value[:1], alone.value, atol=0, rtol=1e-14)
    assert torch.equal(together.steps[:1], alone.steps)
    assert torch.equal(together.converged[:1], alone.converged)
    assert_close(together.residual[:1], alone.residual, atol=0, rtol=1e-12)
    assert together.failed.tolist() == [False, True, True]
    assert together.converged.tolist() == [bool(alone.converged), False, False]
    # 500⁵ is the first residual above a million times the second, 500²
    assert together.steps[1:].tolist() == [3, 4]
    assert together.value.isfinite().all()
    assert together.residual[1].isinf()
    found, expected = gradient(together.value[:1], b)[0], gradient(alone.value, b)[0]
    assert_close(found[:1], expected[:1], atol=0, rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_looking_seldom_changes_nothing(solver: Solver, monkeypatch) -> None:
    """As a solve on a GPU does, which the host must not wait for: samples stop, fail and end at the same state."""
    z0, b = fields(3, 6), fields(3, 6, seed=2)

    def solve(every: int) -> tuple[Solution, Unruly]:
        monkeypatch.setattr(import_module("dio_lightning.implicit.iterate"), "_looks", lambda z: every)
        update = Unruly(b)
        with torch.no_grad():
            return iterate(update, z0, solver, max_steps=30, stop=Residual(1e-2)), update

    (expected, calls), (seldom, more) = solve(1), solve(4)
    assert_close(seldom.value, expected.value, atol=1e-14, rtol=1e-14)
    assert_close(seldom.residual, expected.residual, atol=0, rtol=1e-10)
    for name in ("steps", "converged", "failed"):
        assert torch.equal(getattr(seldom, name), getattr(expected, name))
    assert calls.calls <= more.calls < calls.calls + 4
    if seldom.step is not None and expected.step is not None:
        steps = seldom.step(expected.value)[:1], expected.step(expected.value)[:1]
        assert_close(*steps, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("adjoint", [PhantomAdjoint(), PhantomAdjoint(3), ImplicitAdjoint()], ids=repr)
def test_a_failed_sample_does_not_spoil_shared_weights(adjoint: Adjoint) -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    gain, edge = torch.tensor([[0.5], [3.0]]).double(), torch.tensor([[100.0], [0.5]]).double()

    def solve(rows: slice) -> Tensor:  # sample 1 leaves the domain of the root after its first step
        z0 = -torch.ones_like(gain[rows])
        return fixed_point(lambda z: weight * gain[rows] * (z + (edge[rows] - z).sqrt()), z0, Picard(), adjoint).value

    both, first = solve(slice(0, 2)), solve(slice(0, 1))
    assert_close(both[:1], first)
    assert_close(torch.autograd.grad(both.sum(), weight), torch.autograd.grad(first.sum(), weight))


def test_a_stopped_sample_keeps_its_solver_state() -> None:
    rates = torch.tensor([[0.1], [0.95]], dtype=torch.float64)
    b = fields(2, 6).requires_grad_()

    def solve(rows: slice) -> Tensor:
        return fixed_point(
            lambda z: rates[rows] * z + b[rows], 0 * b[rows], Adam(rate=0.2), max_steps=40, stop=Residual(0.2)
        ).value

    both, first = solve(slice(0, 2)), solve(slice(0, 1))
    assert_close(both[:1], first, atol=0, rtol=1e-14)
    assert_close(gradient(both[:1], b)[0], gradient(first, b)[0], atol=0, rtol=1e-14)


def test_a_step_that_is_not_finite_fails_where_it_stands() -> None:
    def advance(z: Tensor, delta: Tensor) -> Tensor:
        return z + delta * torch.tensor([[1.0], [torch.inf]], dtype=z.dtype)

    b = fields(2, 6)
    solution = iterate(lambda z: 0.5 * z + b, torch.zeros_like(b), Picard(), advance=advance)
    assert solution.failed.tolist() == [False, True]
    assert solution.converged.tolist() == [True, False]
    assert torch.equal(solution.value[1], torch.zeros_like(b[1]))


class Scripted:
    """An update with given energies (steps, b)."""

    def __init__(self, energies: list[list[float]]) -> None:
        self.energies, self.calls = torch.tensor(energies, dtype=torch.float64), 0

    def __call__(self, z: Tensor) -> Tensor:
        self.energy = self.energies[self.calls]
        self.calls += 1
        return z + 1


def test_stagnation_counts_idle_steps_for_each_sample() -> None:
    first = [10, 9, 9, 8.9999, 9, 8, 8, 8, 8, 8, 8, 8]  # idle: 0 0 1 2 3 0 1 2 3 4
    second = [1.0] * 12  # idle: 0 1 2 3 4
    third = [-1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11, -12]  # a falling negative energy improves
    update = Scripted([list(row) for row in zip(first, second, third, strict=True)])
    solution = iterate(update, torch.zeros(3, 1, dtype=torch.float64), Picard(), max_steps=12, stop=Stagnation(1e-3, 4))
    assert solution.steps.tolist() == [9, 4, 12]
    assert solution.value[:, 0].tolist() == [9, 4, 12]
    assert solution.converged.tolist() == [True, True, False]
    with pytest.raises(ValueError, match="energy"):
        iterate(lambda z: z, torch.zeros(1, 1), Picard(), stop=Stagnation())


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("recorded", [False, True])
def test_adam_is_torch_adam_on_a_quadratic(recorded: bool, decay: float) -> None:
    target, curvature = fields(1, 4, 5), fields(1, 4, 5, seed=3).abs() + 0.1
    solver = Adam(rate=0.1, beta1=0.5, beta2=0.99, decay=decay)
    with torch.set_grad_enabled(recorded):
        found = iterate(
            lambda z: z - curvature * (z - target), torch.zeros_like(target), solver, max_steps=40, stop=Never()
        ).value
    z = nn.Parameter(torch.zeros_like(target))
    optimizer = torch.optim.Adam([z], lr=0.1, betas=(0.5, 0.99), eps=1e-30)
    for step in range(1, 41):
        optimizer.param_groups[0]["lr"] = 0.1 / step**decay
        optimizer.zero_grad()
        (0.5 * curvature * (z - target) ** 2).sum().backward()
        optimizer.step()
    assert_close(found, z.detach(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_falling_rate_ends_in_a_kink_and_a_constant_one_beside_it(decay: float) -> None:
    """Of |z - target|, whose slope is as long everywhere; a change in the last digits of z then stays one."""
    target = fields(1, 50)

    def solved(start: Tensor) -> Tensor:
        solver = Adam(rate=0.3, decay=decay)
        return iterate(lambda z: z - (z - target).sign(), start, solver, max_steps=400, stop=Never()).value

    ends = solved(torch.zeros_like(target)), solved(torch.full_like(target, 1e-3))
    far, apart = (ends[0] - target).abs().mean(), (ends[0] - ends[1]).abs().mean()
    assert (far < 0.005 and apart < 0.005) if decay else far > 0.03


def test_a_rate_that_falls_too_fast_is_refused() -> None:
    with pytest.raises(ValueError, match="0 <= decay < 1"):
        Adam(decay=1.0)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_adam_does_not_see_the_scale_of_the_energy(scale: float) -> None:
    residuals, solver = [fields(2, 4, 5, seed=seed) for seed in range(20)], Adam(eps=1e-2)

    def total(factor: float) -> Tensor:
        z = torch.zeros(2, 4, 5, dtype=torch.float64)
        state = solver.init(z)
        with torch.no_grad():
            for r in residuals:
                delta, state = solver.step(z, factor * r, state)
                z = z + delta
        return torch.cat([z, solver.frozen(state)(factor * residuals[0])])

    assert_close(total(scale), total(1.0), atol=0, rtol=1e-10)


def test_adam_leaves_quiet_elements_and_quiet_samples_alone() -> None:
    push = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    solution = fixed_point(lambda z: z + push, torch.zeros_like(push), Adam(), max_steps=3, stop=Never())
    assert solution.value.isfinite().all()
    assert solution.value[1].tolist() == [0, 0]
    found = torch.autograd.grad(solution.value.sum(), push)[0]
    assert found[0, 1] == 0
    assert_close(found[1], torch.full_like(found[1], 0.3))


@pytest.mark.parametrize("solver", [Anderson(), Broyden()], ids=repr)
def test_acceleration_on_a_stiff_contraction(solver: Solver) -> None:
    rates = torch.tensor([0.99, 0.9, 0.5, 0.1, -0.3], dtype=torch.float64)
    b = fields(2, 5)

    def solve(method: Solver) -> Tensor:
        solution = iterate(lambda z: rates * z + b, torch.zeros_like(b), method, max_steps=2000, stop=Residual(1e-8))
        assert solution.converged.all()
        assert_close(solution.value, b / (1 - rates), atol=1e-5, rtol=1e-5)
        return solution.steps

    assert (solve(solver) * 5 < solve(Picard())).all()


def tensors(state: object) -> list[Tensor]:
    if isinstance(state, tuple):
        return [tensor for part in state for tensor in tensors(part)]
    return [state] if isinstance(state, Tensor) else []


@pytest.mark.parametrize(("solver", "most"), [(Anderson(window=3), 6), (Broyden(window=3), 8), (Adam(), 2)])
def test_the_number_of_fields_kept_is_bounded(solver: Solver, most: int) -> None:
    z = fields(2, 7, 7)
    state = solver.init(z)
    for _ in range(10):
        delta, state = solver.step(z, 0.9 * torch.tanh(z) - z, state)
        z = z + delta
        assert sum(tensor.shape == z.shape for tensor in tensors(state)) <= most


def test_the_loop_holds_no_old_iterates() -> None:
    shape, alive = (2, 13, 17), []

    def count() -> int:
        return sum(type(x) is Tensor and x.shape == shape for x in gc.get_objects())

    def update(z: Tensor) -> Tensor:
        alive.append(count())
        return 0.9 * z + 1

    before = count()
    with torch.no_grad():
        iterate(update, torch.zeros(shape), Picard(), max_steps=8, stop=Never())
    assert max(alive) <= before + 2  # z0, which the caller holds, and z


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_no_step_at_all_leaves_the_start(solver: Solver) -> None:
    b = fields(2, 6).requires_grad_()
    solution = fixed_point(lambda z: 0.5 * z + b, 0 * b.detach(), solver, max_steps=0)
    assert solution.steps.tolist() == [0, 0]
    assert not solution.converged.any()
    assert torch.autograd.grad(solution.value.sum(), b)[0].min() > 0


def test_memory_of_the_graph_does_not_grow_with_the_steps() -> None:
    network, b = nn.Linear(6, 6), torch.randn(2, 6)

    def saved(adjoint: Adjoint, max_steps: int) -> int:
        count = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            fixed_point(lambda z: torch.tanh(network(z) + b), 0 * b, Adam(), adjoint, max_steps=max_steps, stop=Never())
        return count

    for adjoint in (PhantomAdjoint(), PhantomAdjoint(3, damping=0.5), ImplicitAdjoint()):
        counts = {saved(adjoint, max_steps) for max_steps in (10, 50, 200)}
        assert len(counts) == 1
        assert counts.pop() > 0
    assert saved(UnrolledAdjoint(), 50) > saved(UnrolledAdjoint(), 10)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_gradients_reach_weights_and_evaluation_records_nothing(solver: Solver, adjoint: Adjoint) -> None:
    torch.manual_seed(0)
    network, b = nn.Conv2d(2, 2, 3, padding=1), torch.randn(2, 2, 5, 5)
    nn.init.normal_(network.weight, std=0.05)

    def update(z: Tensor) -> Tensor:
        return torch.tanh(network(z) + b)

    fixed_point(update, 0 * b, solver, adjoint, max_steps=8).value.sum().backward()
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not fixed_point(update, 0 * b, solver, adjoint).value.requires_grad


def test_an_update_may_differentiate_inside() -> None:
    target = fields(2, 6).requires_grad_()

    def update(z: Tensor) -> Tensor:
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            energy = (z - target).square().sum()
            (slope,) = torch.autograd.grad(energy, z, create_graph=recorded)
        return z - 0.2 * slope

    solution = fixed_point(update, torch.zeros(2, 6, dtype=torch.float64), Picard(), ImplicitAdjoint(), stop=TIGHT)
    assert_close(solution.value, target)
    assert_close(gradient(solution.value, target)[0], fields(2, 6, seed=9))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Picard(damping=1.0),
        lambda: Anderson(window=0),
        lambda: Anderson(ridge=0),
        lambda: Broyden(window=0),
        lambda: GradientDescent(rate=0),
        lambda: Adam(rate=-1),
        lambda: Adam(beta2=1.0),
        lambda: Residual(-1),
        lambda: Stagnation(patience=0),
        lambda: PhantomAdjoint(steps=0),
        lambda: ImplicitAdjoint(rtol=0),
        lambda: fixed_point(lambda z: z, torch.zeros(3)),
        lambda: fixed_point(lambda z: z, torch.zeros(3, 1), max_steps=-1),
        lambda: fixed_point(lambda z: z[:1], torch.zeros(3, 1)),
        lambda: iterate(lambda z: z, torch.zeros(3, 1), Picard(), divergence=0.5),
    ],
)
def test_bad_settings_are_refused(build) -> None:
    with pytest.raises(ValueError, match=r"expects|expected|must be"):
        build()


def test_a_solve_that_starts_at_its_solution_does_not_diverge_by_leaving_it() -> None:
    """Adam's first step has the length of its rate, whatever the residual: rounding is nothing to measure it by."""
    target = torch.tensor([[1.0, 2.0]])
    solution = iterate(lambda z: target, target + 1e-7, Adam(rate=0.1), max_steps=60, stop=Never())
    assert not bool(solution.failed) and int(solution.steps) == 60
    assert_close(solution.value, target, atol=0.05, rtol=0)
