"""Phantom gradients: checkpointed ones are the plain ones in the memory of one step; many are the implicit one."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dio_lightning.footprint import LiveTensors, SavedTensors
from dio_lightning.implicit import (
    Adam,
    Anderson,
    ImplicitAdjoint,
    Never,
    PhantomAdjoint,
    Picard,
    Residual,
    fixed_point,
    iterate,
    spectral_radius,
)
from dio_lightning.level import Level
from dio_lightning.losses import LNCC, Diffusion, Objective
from dio_lightning.modules import DEQReg
from dio_lightning.networks import VxmUNet
from dio_lightning.pair import Pair
from dio_lightning.transformations import FreeForm
from dio_lightning.updates import LearnedStep

STEPS = (1, 2, 4, 8, 16, 32)

pytestmark = pytest.mark.filterwarnings("ignore:.*self.log.*")


def deqreg(adjoint: PhantomAdjoint, **settings) -> DEQReg:
    torch.manual_seed(0)
    network = VxmUNet(4, 2, encoder=(4, 8), decoder=(8, 8), final=(8,))
    nn.init.normal_(network.head.weight, std=0.05)
    return DEQReg(LearnedStep(network), Objective(LNCC(5), regularity=Diffusion()), adjoint=adjoint, **settings)


def pair(size=(24, 20), batch: int = 2) -> Pair:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(batch, 1, *size, generator=generator) for name in ("fixed", "moving")}


def gradients(model: DEQReg, data: Pair) -> list[Tensor]:
    model.zero_grad()
    model.training_step(data, 0).backward()
    return [p.grad.clone() for p in model.parameters()]


def flat(tensors) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / a.double().norm() / b.double().norm())


@pytest.mark.parametrize("settings", [{}, {"solver": Anderson(3), "states": 2}, {"jacobian_weight": 0.1}], ids=str)
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_checkpointed_steps_have_the_same_gradient(settings, damping) -> None:
    found = [
        gradients(deqreg(PhantomAdjoint(3, damping, checkpointed), max_steps=6, **settings), pair())
        for checkpointed in (False, True)
    ]
    assert flat(found[0]).abs().max() > 0
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


@pytest.mark.memory
def test_checkpointed_steps_take_the_memory_of_one() -> None:
    def peak(steps: int, checkpointed: bool) -> int:
        model, data = deqreg(PhantomAdjoint(steps, 0.0, checkpointed), max_steps=2, states=2), pair((48, 40))
        with LiveTensors([*model.parameters(), *data.values()]) as live:
            gradients(model, data)
        return live.peak

    plain, checkpointed = ([peak(steps, kind) for steps in (1, 3, 6)] for kind in (False, True))
    assert plain[2] - plain[1] > 0.6 * plain[0] and plain[2] > 3.5 * plain[0]
    assert max(checkpointed) < 1.2 * plain[0]


def test_a_sample_that_failed_has_no_gradient_and_spoils_none_of_the_others() -> None:
    weight = torch.tensor([0.5, 1e8]).requires_grad_()

    def value(checkpointed: bool) -> Tensor:
        adjoint = PhantomAdjoint(4, 0.3, checkpointed)
        return fixed_point(lambda z: weight[:, None] * z + 1, torch.ones(2, 3), adjoint=adjoint, max_steps=60).value

    found = [torch.autograd.grad(value(kind)[0].sum(), weight)[0] for kind in (False, True)]
    assert found[0][0] > 0 and found[0][1] == 0
    assert torch.equal(*found)


def test_the_solvers_frozen_step_is_recomputed_with_its_state() -> None:
    b = torch.randn(2, 6, dtype=torch.float64).requires_grad_()

    def slope(checkpointed: bool) -> Tensor:
        adjoint = PhantomAdjoint(3, checkpointed=checkpointed)
        solution = fixed_point(lambda z: torch.tanh(0.5 * z + b), torch.zeros_like(b), Adam(0.1), adjoint, max_steps=7)
        return torch.autograd.grad(solution.value.square().sum(), b)[0]

    assert torch.equal(slope(True), slope(False))


def test_on_a_linear_map_phantom_gradients_approach_the_exact_one_by_the_norm_of_the_map() -> None:
    matrix = torch.randn(8, 8, dtype=torch.float64)
    matrix = 0.7 * matrix / torch.linalg.matrix_norm(matrix, 2)
    b, v = torch.randn(1, 8, dtype=torch.float64).requires_grad_(), torch.randn(1, 8, dtype=torch.float64)
    exact = v @ torch.linalg.inv(torch.eye(8, dtype=torch.float64) - matrix).T

    def error(steps: int, damping: float) -> float:
        adjoint = PhantomAdjoint(steps, damping, checkpointed=True)
        value = fixed_point(lambda z: z @ matrix + b, torch.zeros_like(b), adjoint=adjoint, max_steps=300).value
        return float((torch.autograd.grad(value, b, v)[0] - exact).norm() / exact.norm())

    for damping in (0.0, 0.5):
        errors = [error(steps, damping) for steps in STEPS]
        assert errors == sorted(errors, reverse=True)
        bound = (1 - damping) * 0.7 + damping
        assert all(e <= bound**steps + 1e-9 for e, steps in zip(errors, STEPS, strict=True))


class Contraction(nn.Module):
    """A step of a network that pulls back: f(u) = u + r (g(u, ...) - u), r from 0.1 to 0.9: ρ(df/du) is near 0.9."""

    def __init__(self, network: nn.Module, scale: float = 5.0) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        rate = torch.linspace(0.1, 0.9, x.shape[-1], dtype=x.dtype)
        return rate * (self.network(x) - self.scale * x[:, :2])


def test_on_a_contractive_network_the_cosine_to_the_implicit_gradient_rises_to_one() -> None:
    network = VxmUNet(4, 2, encoder=(4, 8), decoder=(8, 8), final=(8,))
    nn.init.normal_(network.head.weight, std=0.2)
    data, objective = pair((16, 12), batch=1), Objective(LNCC(5), regularity=Diffusion(), regularity_weight=0.1)
    step = LearnedStep(Contraction(network)).double()
    data = {name: image.double() for name, image in data.items()}
    update = step.on(Level(data["fixed"], data["moving"]), FreeForm())
    with torch.no_grad():
        start = torch.zeros(1, 2, 16, 12, dtype=torch.float64)
        solution = iterate(update, start, Picard(), max_steps=400, stop=Residual(1e-11))
    assert bool(solution.converged.all())
    assert 0.8 < float(spectral_radius(update, solution.value).max()) < 0.95

    def gradient(adjoint) -> Tensor:
        found = adjoint(lambda _: solution, update, start)
        loss = objective(data, found.value)["loss"]
        return flat(torch.autograd.grad(loss, list(step.parameters())))

    exact = gradient(ImplicitAdjoint(1e-12, max_steps=200, restart=100))
    found = [gradient(PhantomAdjoint(steps, checkpointed=steps > 8)) for steps in (*STEPS, 64, 128)]
    errors = [float((g - exact).norm() / exact.norm()) for g in found]
    cosines = [cosine(g, exact) for g in found]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4
    assert cosines[:-1] == sorted(cosines[:-1]) and cosines[0] < 0.99 and cosines[-1] > 1 - 1e-6


def test_saved_tensors_are_counted_once_and_forgotten_with_their_graph() -> None:
    x, w = torch.randn(100), torch.randn(100, requires_grad=True)
    with SavedTensors([x, w]) as saved:
        for _ in range(3):
            y = (x * w).exp()  # x and w are known, exp keeps its result, square the same storage
            loss = y.square().sum()
            assert saved.now == 400
            loss.backward()
            assert saved.now == 0
        kept = [(x * w).exp() for _ in range(5)]
        assert saved.now == saved.peak == 2000
        del kept
        assert saved.now == 0


def test_live_tensors_are_those_that_can_still_be_reached() -> None:
    x = torch.randn(1000)
    with LiveTensors([x]) as live:
        y = x + 1
        view = y[:10]
        assert live.now == live.peak == 4000
        y = x + 2
        assert live.now == 8000  # the view keeps the first
        del view, y
        assert live.now == 0 and live.peak == 8000
        torch.randn(10, requires_grad=True).mul(2).sum().backward()
        assert live.now == 0


def test_never_and_no_grad_need_no_graph() -> None:
    with torch.no_grad():
        solution = fixed_point(
            lambda z: 0.5 * z, torch.ones(1, 3), adjoint=PhantomAdjoint(2, checkpointed=True), max_steps=3, stop=Never()
        )
    assert_close(solution.value, torch.full((1, 3), 0.125))
