"""DEQReg and VoxelMorph as LightningModules: the equations of the paper, and training that pays off."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.testing import assert_close

from data_modules import SyntheticPairs
from dio_lightning.features import LocalContrast, UNet
from dio_lightning.fields import compose, exponential, resize, warp
from dio_lightning.implicit import Anderson, Broyden, ImplicitAdjoint, Never, PhantomAdjoint, Picard, Residual
from dio_lightning.layers import Run
from dio_lightning.losses import LNCC, Diffusion, Objective
from dio_lightning.modules import DEQReg, RegistrationModule, VoxelMorph
from dio_lightning.networks import VxmUNet
from dio_lightning.pair import Pair
from dio_lightning.transformations import Diffeomorphism
from dio_lightning.updates import LearnedStep

SIZE = (20, 16)


class Pull(nn.Module):
    """A step towards a learned field: f(u) = u + rate (target - u), whose fixed point is the target."""

    def __init__(self, rate: float = 0.5, scale: float = 5.0) -> None:
        super().__init__()
        self.rate, self.scale = rate, scale
        self.target = nn.Parameter(torch.randn(1, 2, *SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return self.rate * (self.target - self.scale * x[:, :2])


def objective() -> Objective:
    return Objective(LNCC(5), regularity=Diffusion(), regularity_weight=0.25)


def deqreg(network: nn.Module | None = None, **settings) -> DEQReg:
    return DEQReg(LearnedStep(network or VxmUNet(4, 2)), objective(), **settings)


def pair(size=SIZE, batch: int = 2) -> Pair:
    return {"fixed": torch.rand(batch, 1, *size), "moving": torch.rand(batch, 1, *size)}


@pytest.mark.parametrize("solver", [Picard(), Picard(0.3), Anderson(4), Broyden(4)])
def test_every_solver_finds_the_fixed_point_and_says_when(solver) -> None:
    model = deqreg(Pull(), solver=solver, stop=Residual(1e-4), max_steps=40)
    found = model.validation_step(pair(), 0)
    assert bool(found["converged"].all()) and int(found["steps"].max()) < 40
    assert_close(
        found["displacement"], model.layer.update.network.target.detach().expand(2, -1, -1, -1), rtol=0, atol=1e-2
    )


def test_picard_follows_equation_3() -> None:
    model, data = deqreg(max_steps=4, stop=Never()), pair()
    nn.init.normal_(model.layer.update.network.head.weight, std=0.1)
    u = torch.zeros(2, 2, *SIZE)
    states = []
    run = Run(observe=lambda record: states.append(record.displacement))
    with torch.no_grad():
        for _ in range(4):
            u = u + model.layer.update.network(torch.cat([u / 5, warp(data["moving"], u), data["fixed"]], 1))
        assert_close(model.register(data, run), u)
    assert len(states) == 5 and not bool(states[0].any())
    assert_close(states[-1], u)


def test_a_descriptor_takes_the_place_of_the_images_and_is_warped_in_their_place() -> None:
    features = LocalContrast([1])
    model = DEQReg(LearnedStep(VxmUNet(6, 2)), objective(), features=features, max_steps=3, stop=Never())
    nn.init.normal_(model.layer.update.network.head.weight, std=0.1)
    data, u = pair(), torch.zeros(2, 2, *SIZE)
    fixed, moving = features(data["fixed"])[0], features(data["moving"])[0]
    with torch.no_grad():
        for _ in range(3):
            u = u + model.layer.update.network(torch.cat([u / 5, warp(moving, u), fixed], 1))
        assert_close(model.register(data), u)
    # the loss is that of the images: the terms at the state after a training solve of three steps and a phantom step
    with torch.no_grad():
        u = u + model.layer.update.network(torch.cat([u / 5, warp(moving, u), fixed], 1))
    model.states = 1
    assert_close(model.training_step(data, 0), model.objective(data, u)["loss"])


@pytest.mark.parametrize("wrong", [LocalContrast([2, 1]), UNet(1, 2, [1], 2, [4, 4])])
def test_a_descriptor_with_weights_or_of_other_levels_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected a descriptor without weights"):
        deqreg(features=wrong)


def test_training_may_take_fewer_steps_than_a_test() -> None:
    calls = []
    network = VxmUNet(4, 2)
    network.register_forward_hook(lambda *_: calls.append(1))
    model = deqreg(network, max_steps=9, train_steps=4, states=1, replay=0.9, stop=Never())
    model.training_step(pair(), 0)
    assert len(calls) == 4 + 1  # a phantom step
    calls.clear()
    with torch.no_grad():
        assert int(model.validation_step(pair(), 0)["steps"].min()) == 9 and len(calls) == 9
    with pytest.raises(ValueError, match=r"train_steps 4, .*expected 1 <= states <= train_steps"):
        deqreg(max_steps=9, train_steps=4, states=5)


def test_composition_is_a_switch() -> None:
    model, data = deqreg(max_steps=2, states=1, stop=Never(), transformation=Diffeomorphism(10.0)), pair()
    nn.init.normal_(model.layer.update.network.head.weight, std=0.05)
    u = torch.zeros(2, 2, *SIZE)
    with torch.no_grad():
        for _ in range(2):
            u = compose(u, model.layer.update.step(u, data["fixed"], data["moving"]))
        assert_close(model(data["fixed"], data["moving"])[-1].value, u)


@pytest.mark.parametrize("states", [1, 3])
def test_training_weighs_each_state_and_differentiates_it_on_its_own(states) -> None:
    model, data = deqreg(max_steps=6, states=states, adjoint=PhantomAdjoint(2, 0.5)), pair()
    nn.init.normal_(model.layer.update.network.head.weight, std=0.05)
    f = lambda z: z + model.layer.update.step(z, data["fixed"], data["moving"])  # noqa: E731
    u, total = torch.zeros(2, 2, *SIZE), torch.zeros(())
    for j in range(states):
        with torch.no_grad():
            for _ in range(6 // states):
                u = f(u)
        h = u
        for _ in range(2):
            h = 0.5 * f(h) + 0.5 * h
        total = total + 0.8 ** (states - 1 - j) * model.objective(data, h)["loss"]
        u = h.detach()
    expected = torch.autograd.grad(total, list(model.parameters()))
    loss = model.training_step(data, 0)
    assert_close(loss, total)
    loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_the_steps_may_be_changed_after_training() -> None:
    model = deqreg(max_steps=12)
    assert (model.steps, model.title) == (12, "DEQReg-12")
    model.steps = 48
    assert int(model.validation_step(pair(), 0)["steps"].max()) <= 48 and model.title == "DEQReg"


def test_penalties_have_closed_forms_and_reach_the_weights() -> None:
    network = Pull(rate=0.25)
    with torch.no_grad():
        network.target.fill_(2.0)
    model = DEQReg(LearnedStep(network), objective(), max_steps=1, states=1, residual_weight=2.0, jacobian_weight=3.0)
    data = pair()
    update = model.problem(data)[0].update
    terms = model._penalties(update, torch.ones(2, 2, *SIZE))
    # g = 0.25 (2 - 1) in both components; df/du = 0.75 times the identity
    assert_close(terms["residual_squared"], torch.tensor(2 * 0.25**2))
    assert float(terms["jacobian"].detach()) == pytest.approx(0.75**2, rel=0.1)
    assert_close(terms["penalty"], 2 * terms["residual_squared"] + 3 * terms["jacobian"])
    assert bool((torch.autograd.grad(terms["penalty"], network.target)[0] != 0).any())


def test_the_exact_adjoint_takes_over_after_the_warm_up() -> None:
    model = deqreg(Pull(), max_steps=30, states=1, late_adjoint=ImplicitAdjoint(1e-6), warm_up=0)
    data = pair()
    loss = model.training_step(data, 0)
    loss.backward()
    u = model.layer.update.network.target.detach().expand(2, -1, -1, -1).clone().requires_grad_()
    # the solution is the target itself, so that dL/dtarget is dL/du
    expected = torch.autograd.grad(objective()(data, u)["loss"], u)[0].sum(0, keepdim=True)
    assert_close(model.layer.update.network.target.grad, expected, rtol=1e-2, atol=1e-5)


def test_validation_logs_the_spectral_radius(tmp_path) -> None:
    model = deqreg(Pull(0.25), max_steps=8, spectral_steps=10)
    run = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, inference_mode=False, default_root_dir=tmp_path
    )
    run.validate(model, SyntheticPairs(SIZE, 3, 4, 1, 2), verbose=False)
    # the moving image does not enter this network: df/du = 1 - rate
    assert float(run.callback_metrics["val/spectral_radius"]) == pytest.approx(0.75, rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"states": 0}, {"states": 49}, {"decay": 0.0}, {"residual_weight": -1.0}, {"spectral_steps": 1}, {"warm_up": -1}],
)
def test_a_wrong_setting_is_one_sentence(wrong) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}|{next(iter(wrong))}"):
        deqreg(**wrong)


def test_voxelmorph_is_one_step_and_its_diffeomorphic_variant_the_exponential() -> None:
    network, data = VxmUNet(2, 2), pair()
    nn.init.normal_(network.head.weight, std=0.1)
    field = network(torch.cat([data["moving"], data["fixed"]], 1))
    assert_close(VoxelMorph(network)(data["fixed"], data["moving"])[0].value, field)
    velocity = resize(field, (10, 8))
    expected = resize(exponential(velocity, 7), SIZE)
    assert_close(VoxelMorph(network, variant="diffeomorphic")(data["fixed"], data["moving"])[0].value, expected)
    with pytest.raises(ValueError, match="one step"):
        VoxelMorph(network).steps = 2
    with pytest.raises(ValueError, match="variant"):
        VoxelMorph(network, variant="affine")  # type: ignore[arg-type]


def similarity(model: RegistrationModule, data: list[Pair]) -> float:
    """Mean LNCC loss of registered pairs."""
    with torch.no_grad():
        return float(torch.stack([LNCC(5)(warp(p["moving"], model.register(p)), p["fixed"]) for p in data]).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph_diffeomorphic", "deqreg"])
def test_a_short_training_beats_no_registration(name, tmp_path) -> None:
    data = SyntheticPairs((32, 32), 3, 32, 1, 8, batch_size=4, texture=0.0)
    adam = {"optimizer": lambda weights: torch.optim.AdamW(weights, lr=2e-3)}
    if name == "deqreg":
        model: RegistrationModule = deqreg(VxmUNet(4, 2), max_steps=6, states=3, **adam)
    else:
        variant = "diffeomorphic" if "_" in name else "displacement"
        model = VoxelMorph(VxmUNet(2, 2), objective(), variant=variant, **adam)
    run = Trainer(
        accelerator="cpu",
        max_steps=60,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        default_root_dir=tmp_path,
    )
    run.fit(model, data)
    unseen = list(data.test_dataloader())
    before = float(torch.stack([LNCC(5)(p["moving"], p["fixed"]) for p in unseen]).mean())
    labels = [overlap(p, torch.zeros(len(p["fixed"]), 2, 32, 32)) for p in unseen]
    with torch.no_grad():
        after = [overlap(p, model.register(p)) for p in unseen]
    assert similarity(model, unseen) < before - 0.02
    assert sum(after) > sum(labels)


def overlap(pair: Pair, u: Tensor) -> float:
    """Share of voxels whose labels agree, background apart."""
    warped = warp(pair["moving_label"], u, mode="nearest")
    inside = (warped > 0) | (pair["fixed_label"] > 0)
    return float((warped == pair["fixed_label"])[inside].float().mean())
