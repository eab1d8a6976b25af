"""How one registration is asked for: its start, its steps, who watches it, and the refinement after it."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dio_lightning.checkpoint_files import migrated
from dio_lightning.features import Intensity, UNet
from dio_lightning.fields import gaussian_smooth, resize, warp
from dio_lightning.implicit import Adam, Never
from dio_lightning.layers import OptimizerLayer, Record, Run
from dio_lightning.losses import LNCC, SSD
from dio_lightning.modules import (
    DIO,
    RIIR,
    DEQReg,
    GraDIRN,
    Refinement,
    RegistrationModule,
    Unrolling,
    VoxelMorph,
)
from dio_lightning.networks import VxmUNet
from dio_lightning.pair import Pair
from dio_lightning.transformations import Affine, Diffeomorphism, FreeForm, StationaryVelocity
from dio_lightning.updates import ImageDescent, LearnedStep


def small(inputs: int, d: int = 2) -> VxmUNet:
    return VxmUNet(inputs, d, encoder=(4, 4), decoder=(4, 4), final=(4,))


def method(name: str) -> RegistrationModule:
    """A method with random weights that moves."""
    torch.manual_seed(1)
    layer = OptimizerLayer([4, 6], stop=Never())
    built: RegistrationModule = {
        "DIO": lambda: DIO(UNet(spatial_dims=2, levels=(2, 1), widths=(8, 8, 16)), layer),
        "image space": lambda: DIO(Intensity((2, 1)), layer),
        "DEQReg": lambda: DEQReg(LearnedStep(small(4)), max_steps=6, stop=Never(), states=1),
        "Unrolling": lambda: Unrolling(spatial_dims=2, levels=(2, 1), repeats=(2, 3), width=4),
        "GraDIRN": lambda: GraDIRN(spatial_dims=2, levels=(2, 1), repeats=(2, 3), width=4),
        "RIIR": lambda: RIIR(small(6), repeats=3),
        "VoxelMorph": lambda: VoxelMorph(small(2)),
    }[name]()
    for module in built.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 2:
            nn.init.normal_(module.weight, std=0.02)
    return built.eval()


METHODS = ["DIO", "image space", "DEQReg", "Unrolling", "GraDIRN", "RIIR", "VoxelMorph"]
ITERATIVE = METHODS[:-1]


def pair(size: tuple[int, ...] = (24, 20)) -> Pair:
    """An image and what is left of it three voxels on."""
    moving = gaussian_smooth(torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(3)), 2.0)
    moving = (moving - moving.amin()) / (moving.amax() - moving.amin())
    u = torch.zeros(2, len(size), *size)
    u[:, 0] = 3.0
    return Pair(fixed=warp(moving, u), moving=moving)


@pytest.mark.parametrize("name", METHODS)
def test_every_state_is_recorded_and_watching_changes_nothing(name) -> None:
    module, images, records = method(name), pair(), list[Record]()
    with torch.no_grad():
        plain = module.register(images)
        watched = module.register(images, Run(observe=records.append))
    assert torch.equal(plain, watched)
    last = records[-1]
    assert_close(resize(last.displacement, (24, 20)), plain, atol=1e-6, rtol=1e-6)
    for level in {record.level for record in records}:
        steps = [record.step for record in records if record.level == level]
        assert steps == list(range(steps[0], steps[0] + len(steps))) and steps[0] == (name == "VoxelMorph")
    # f is asked at every state but the last, where no sample stops early
    if name not in ("RIIR", "VoxelMorph"):
        finest = [record.evaluation is None for record in records if record.level == last.level]
        assert finest == [False] * (len(finest) - 1) + [True]


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_run_takes_as_many_steps_as_it_is_asked_for_and_leaves_the_method_alone(name) -> None:
    module, images = method(name), pair()
    with torch.no_grad():
        before = module.register(images)
        solutions = module.align(module.work(images), images, Run(steps=9))
        assert solutions[-1].steps.tolist() == [9, 9]
        assert torch.equal(module.register(images), before)


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_solve_starts_where_it_is_told(name) -> None:
    """Without a step left to take, what comes out is what went in."""
    module, images = method(name), pair()
    u = gaussian_smooth(torch.randn(2, 2, 24, 20), 4.0)
    with torch.no_grad():
        if name in ("DIO", "image space", "Unrolling", "GraDIRN"):
            module.layer.iterations = (0,) * len(module.layer.iterations)  # type: ignore[union-attr]
        states = list[Record]()
        module.register(images, Run(start=u, steps=1, observe=states.append))
    first = states[0].displacement
    assert (resize(first, (24, 20)) - u).norm() < 0.1 * u.norm()
    with pytest.raises(ValueError, match=r"\(2, 2, 20, 24\), expected \(2, 2, 24, 20\)"):
        DIO(Intensity((1,)), OptimizerLayer([1])).align(images, images, Run(start=u.transpose(2, 3)))


def test_what_takes_no_steps_or_has_no_parameters_for_a_displacement_says_so() -> None:
    images, u = pair(), torch.zeros(2, 2, 24, 20)
    for run in (Run(steps=3), Run(start=u)):
        with pytest.raises(ValueError, match="VoxelMorph finds its displacement in one step"):
            method("VoxelMorph").register(images, run)
    for model in (StationaryVelocity(), Affine()):
        module = DIO(Intensity((1,)), OptimizerLayer([2], transformation=model))
        with pytest.raises(ValueError, match=f"{type(model).__name__} cannot start from a displacement"):
            module.register(images, Run(start=u))


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_refinement_goes_on_from_every_methods_displacement(name, level) -> None:
    module, images = method(name), pair()
    with torch.no_grad():
        before = module.register(images)
        layer = OptimizerLayer(
            [40], ImageDescent(LNCC(5), regularity=0.1), Adam(0.2), Diffeomorphism(), stop=Never(), field_sigma=0.0
        )
        module.refine = Refinement(layer, Intensity((level,)))
        after = module.register(images)
        tested, predicted = module._evaluate(images, "test"), module.predict_step(images, 0)
        validated = module._evaluate(images, "val")
    assert SSD()(warp(images["moving"], after), images["fixed"]) < SSD()(
        warp(images["moving"], before), images["fixed"]
    )
    assert torch.equal(tested["displacement"], after) and torch.equal(predicted, after)
    assert torch.equal(validated["displacement"], before)
    assert bool((tested["steps"] - validated["steps"] == 40).all())
    module.refine.layer.iterations = (0,)
    with torch.no_grad():
        assert_close(module.register(images), before)


def test_a_refinement_that_cannot_be_is_one_sentence() -> None:
    for wrong, message in (
        (lambda: Refinement(OptimizerLayer([3, 2])), "expected 1 numbers, one for each of the levels"),
        (lambda: Refinement(OptimizerLayer([3]), UNet(spatial_dims=2, levels=(1,))), "features without weights"),
        (lambda: Refinement(OptimizerLayer([3], transformation=Affine())), "expected FreeForm or Diffeomorphism"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            wrong()
        assert "\n" not in str(error.value)


def test_old_keys_are_migrated_and_no_others() -> None:
    own = ["layer.update.network.head.weight", "layer.update.rules.0.rate", "features.update.weight", "update.kept"]
    keys = ["update.network.head.weight", "updates.0.rate", "features.update.weight", "update.kept", "update.unknown"]
    assert migrated(keys, own) == {
        "update.network.head.weight": "layer.update.network.head.weight",
        "updates.0.rate": "layer.update.rules.0.rate",
    }


@pytest.mark.parametrize(("name", "old"), [("DEQReg", "update."), ("GraDIRN", "updates."), ("Unrolling", "updates.")])
def test_weights_of_the_first_storey_load(name, old) -> None:
    module, other = method(name), method(name)
    new = "layer.update." if name == "DEQReg" else "layer.update.rules."
    state = {key.replace(new, old): value + 1 for key, value in module.state_dict().items()}
    assert any(key.startswith(old) for key in state)
    other.load_state_dict(dict(state))
    for key, value in module.state_dict().items():
        assert_close(other.state_dict()[key], value + 1)


def test_the_command_line_refines(command, rows, tmp_path) -> None:
    base = ["test", "--model", "VoxelMorph", "--model.network", "VxmUNet", "--model.network.spatial_dims", "2"]
    base += ["--model.network.in_channels", "2", "--model.network.encoder", "[4,4]", "--model.network.decoder", "[4,4]"]
    base += ["--model.network.final", "[4]", "--data", "SyntheticPairs", "--data.size", "[32, 28]"]
    base += ["--data.test_pairs", "2", "--trainer.accelerator", "cpu"]
    command(*base, "--trainer.default_root_dir", "plain")
    refine = ["--model.refine.layer.iterations", "[30]", "--model.refine.layer.transformation", "Diffeomorphism"]
    command(*base, *refine, "--trainer.default_root_dir", "refined")
    plain, refined = rows(tmp_path / "plain"), rows(tmp_path / "refined")
    assert all(float(b["dice"]) > float(a["dice"]) for a, b in zip(plain, refined, strict=True))
    assert [row["steps"] for row in refined] != [row["steps"] for row in plain]
    assert Path(tmp_path / "refined/config_test.yaml").read_text().count("refine") >= 1


def test_free_form_and_diffeomorphism_take_a_displacement_as_it_is() -> None:
    u = torch.randn(1, 2, 5, 6)
    assert all(torch.equal(model.parameters(u), u) for model in (FreeForm(), Diffeomorphism()))
