"""Unrolling and GraDIRN: every step against a loop written by hand, the slope of a similarity, and training."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.testing import assert_close

from data_modules import SyntheticPairs
from dio_lightning.fields import gaussian_smooth
from dio_lightning.layers import Run
from dio_lightning.losses import LNCC, SSD, Diffusion, Objective, soft_dice
from dio_lightning.modules import GraDIRN, Unrolling
from dio_lightning.networks import CNN
from dio_lightning.pair import Pair
from dio_lightning.updates import similarity_slope

SLOPES = {"ssd": (SSD(), False), "lncc": (LNCC(5), False), "normalised": (LNCC(5), True)}
METHODS = {"unrolling": None, **SLOPES}


def smooth(*shape: int, sigma: float = 1.5) -> torch.Tensor:
    image = gaussian_smooth(torch.randn(*shape, dtype=torch.float64), sigma)
    return (image - image.amin()) / (image.amax() - image.amin())


def method(name: str, **settings) -> Unrolling:
    """A narrow network of float64, with weights that matter."""
    settings = {"spatial_dims": 2, "width": 6, "depth": 3, **settings}
    if METHODS[name] is None:
        model = Unrolling(**settings)
    else:
        similarity, normalise = METHODS[name]
        model = GraDIRN(similarity=similarity, normalise=normalise, rate_scale=2.0, **settings)
    for module in model.modules():
        if isinstance(module, CNN):
            torch.nn.init.normal_(module.head.weight, std=0.1)
    return model.double()


def objective(**weights) -> Objective:
    return Objective(image=LNCC(5), regularity=Diffusion("sum"), regularity_weight=0.25, **weights)


def warped(image: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """PyTorch's own sampler: independent of ours."""
    size = u.shape[2:]
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=u.dtype) for n in size), indexing="ij")) + u
    scale = torch.tensor([2 / (n - 1) for n in size], dtype=u.dtype).view(-1, *[1] * len(size))
    return F.grid_sample(image, (grid * scale - 1).movedim(1, -1).flip(-1), padding_mode="border", align_corners=True)


def interpolated(image: torch.Tensor, size: list[int]) -> torch.Tensor:
    return F.interpolate(image, size, mode="bilinear", align_corners=True)


def by_hand(model: Unrolling, name: str, fixed: torch.Tensor, moving: torch.Tensor, repeats) -> torch.Tensor:
    """The last field, of plain loops over levels and steps."""
    u = torch.zeros(len(fixed), 2, 2, 2, dtype=fixed.dtype)
    for i, level in enumerate((4, 2, 1)):
        size = [max(2, round(n / level)) for n in fixed.shape[2:]]
        ratio = torch.tensor([(new - 1) / (old - 1) for new, old in zip(size, u.shape[2:], strict=True)])
        u = interpolated(u, size) * ratio.view(1, 2, 1, 1).double()
        f, m, update = interpolated(fixed, size), interpolated(moving, size), model.layer.update.rules[i]
        for _ in range(repeats[i]):
            u.requires_grad_()
            step = update.network(torch.cat([u / 5, warped(m, u), f], 1))
            if METHODS[name] is not None:
                similarity, normalise = METHODS[name]
                value = similarity(warped(m, u), f)
                slope = torch.autograd.grad(value, u, create_graph=True)[0] * f.numel()
                if normalise:
                    slope = slope / slope.square().mean((1, 2, 3), keepdim=True).sqrt()
                step = step - update.rate * 2 * slope
            u = u + step
    return u


@pytest.mark.parametrize("name", METHODS)
def test_value_and_gradients_are_those_of_a_loop_by_hand(name) -> None:
    fixed, moving = smooth(2, 1, 17, 22), smooth(2, 1, 17, 22)
    model, repeats = method(name, repeats=[2, 1, 2]), (2, 1, 2)
    expected = by_hand(model, name, fixed, moving, repeats)
    found = model(fixed, moving)[-1].value
    assert expected.detach().square().mean() > 1e-3
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    names, weights = zip(*model.named_parameters(), strict=True)
    towards = torch.randn_like(found)
    pairs = zip(*(torch.autograd.grad((u * towards).sum(), weights) for u in (found, expected)), strict=True)
    for key, (ours, theirs) in zip(names, pairs, strict=True):
        assert theirs.abs().max() > 0, key
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("similarity", [SSD(), LNCC(5)], ids=["ssd", "lncc"])
@pytest.mark.parametrize("shape", [(13, 16), (7, 8, 9)], ids=["2d", "3d"])
def test_the_slope_is_that_of_the_similarity(similarity, shape) -> None:
    """Central differences along a random direction."""
    fixed, moving = smooth(2, 1, *shape), smooth(2, 1, *shape)
    u, towards = (0.4 * torch.randn(2, 2, len(shape), *shape, dtype=torch.float64)).unbind(0)
    slope, voxels, h = similarity_slope(similarity, fixed, moving, u), 2 * fixed[0].numel(), 1e-6
    ahead, behind = (similarity(warped(moving, u + s * towards), fixed) * voxels for s in (h, -h))
    assert_close((slope * towards).sum(), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SLOPES)
def test_the_slope_can_be_differentiated(name) -> None:
    """As training does, through warp and similarity; by central differences of the slope."""
    similarity, normalise = SLOPES[name]
    fixed, moving = smooth(1, 1, 4, 5, sigma=1.0), smooth(1, 1, 4, 5, sigma=1.0)
    u = (0.3 * torch.rand(1, 2, 4, 5, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda u, m: similarity_slope(similarity, fixed, m, u, normalise), (u, moving.requires_grad_())
    )


def test_a_slope_needs_no_graph_and_belongs_to_its_sample() -> None:
    fixed, moving = smooth(2, 1, 12, 15), smooth(2, 1, 12, 15)
    u = torch.zeros(2, 2, 12, 15, dtype=torch.float64)
    both = similarity_slope(SSD(), fixed, moving, u)
    assert not both.requires_grad
    assert_close(both[1:], similarity_slope(SSD(), fixed[1:], moving[1:], u[1:]))
    rms = both.square().flatten(1).mean(1).sqrt().view(2, 1, 1, 1)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert_close(similarity_slope(SSD(), fixed.clone(), moving.clone(), u.clone(), True), both / rms)
    assert similarity_slope(SSD(), fixed, fixed, u, True).abs().max() < 1e-6  # nothing to do, but for rounding


def test_untrained_networks_leave_the_identity_and_plain_descent() -> None:
    fixed, moving = smooth(1, 1, 24, 21).float(), smooth(1, 1, 24, 21).float()
    with torch.inference_mode():
        assert Unrolling(spatial_dims=2)(fixed, moving)[-1].value.abs().max() < 1e-3
        u = GraDIRN(spatial_dims=2)(fixed, moving)[-1].value
    assert SSD()(warped(moving, u), fixed) < 0.95 * SSD()(moving, fixed)


@pytest.mark.parametrize("name", ["unrolling", "ssd"])
def test_steps_at_the_finest_level_may_be_changed_and_are_observed(name) -> None:
    model, fixed, moving = method(name), smooth(1, 1, 16, 16), smooth(1, 1, 16, 16)
    assert model.steps == 3
    seen: dict[int, list[torch.Tensor]] = {3: [], 7: [], 0: []}
    with torch.no_grad():
        for steps, fields in seen.items():
            model.steps, pair = steps, Pair(fixed=fixed, moving=moving)
            run = Run(observe=lambda record: record.level == 2 and record.step and fields.append(record.displacement))
            solutions = model.align(pair, pair, run)
            assert [int(s.steps) for s in solutions] == [3, 3, steps]
            assert not bool(solutions[-1].failed.any()) and not bool(solutions[-1].converged.any())
            assert len(fields) == steps and all(u.shape == (1, 2, 16, 16) for u in fields)
            assert steps == 0 or torch.equal(fields[-1], solutions[-1].value)
    assert_close(seen[7][:3], seen[3])
    assert not torch.allclose(seen[7][6], seen[7][2])
    with pytest.raises(ValueError, match="steps is -1"):
        model.steps = -1


def test_only_the_last_field_is_scored_and_every_level_learns(monkeypatch) -> None:
    pair, scored = next(iter(SyntheticPairs((18, 21), 3, 4, 1, 1).train_dataloader())), []
    model = GraDIRN(objective(), spatial_dims=2, width=4)
    score = model.objective.forward
    monkeypatch.setattr(model.objective, "forward", lambda pair, u: scored.append(u.detach()) or score(pair, u))
    loss = model.training_step(pair, 0)
    assert len(scored) == 1 and scored[0].shape == (1, 2, 18, 21)
    assert_close(loss, score(pair, scored[0])["loss"])
    loss.backward()
    rates = [update.rate for update in model.layer.update.rules]
    assert [rate.item() for rate in rates] == pytest.approx([0.05] * 3)
    assert all(rate.grad.item() != 0 for rate in rates)
    assert all(bool((update.network.head.weight.grad != 0).any()) for update in model.layer.update.rules)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("kind", [Unrolling, GraDIRN])
def test_odd_volumes_in_bfloat16(kind) -> None:
    """The field comes in float32 on the full grid, its coarser solves on grids of a quarter and a half."""
    shape = (11, 14, 9)
    fixed, moving = smooth(1, 1, *shape).float(), smooth(1, 1, *shape).float()
    model = kind(objective(), width=4, precision="bfloat16")
    solutions = model(fixed, moving)
    assert [tuple(s.value.shape[2:]) for s in solutions] == [(3, 4, 2), (6, 7, 4), shape]
    assert solutions[-1].value.dtype == torch.float32
    coarse = kind(objective(), width=4, resolution=2.0)
    pair = Pair(fixed=fixed, moving=moving)
    coarse.training_step(pair, 0).backward()
    assert all(bool(p.grad.isfinite().all()) for p in coarse.parameters() if p.grad is not None)
    assert coarse.register(pair).shape == (1, 3, *shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [4, 2]}, r"levels is \[4, 2\], expected whole numbers that fall to 1"),
        ({"levels": [2, 4, 1]}, r"levels is \[2, 4, 1\]"),
        ({"repeats": [3, 3]}, r"repeats is \[3, 3\], expected 3 numbers"),
        ({"repeats": [3, 3, -1]}, "at least 0"),
        ({"depth": 1}, "depth is 1"),
        ({"scale": 0.0}, "scale is 0"),
    ],
    ids=str,
)
def test_wrong_settings_are_one_sentence(settings, message) -> None:
    for kind in (Unrolling, GraDIRN):
        with pytest.raises(ValueError, match=message) as error:
            kind(spatial_dims=2, **settings)
        assert "\n" not in str(error.value)


def test_titles() -> None:
    small = {"spatial_dims": 2, "width": 2}
    models = Unrolling(**small), GraDIRN(**small), GraDIRN(similarity=LNCC(5), normalise=True, **small)
    assert [model.title for model in models] == ["Unrolling", "GraDIRN (SSD)", "GraDIRN (LNCC)"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Unrolling, GraDIRN])
def test_a_short_training_beats_no_registration_on_unseen_pairs(tmp_path, kind) -> None:
    """And the weights that it started from, which for GraDIRN are plain descent."""
    data = SyntheticPairs((32, 32), 4, 48, 1, 8, 3.0, 8.0, 4.0, "shared", bias=0.0, batch_size=4)
    settings = {"spatial_dims": 2, "levels": [2, 1], "width": 16, "depth": 3}
    adam = partial(torch.optim.AdamW, lr=3e-3)
    model = kind(objective(), adam, repeats=[3, 2], **settings)
    identity = scores(kind(objective(), repeats=[0, 0], **settings), data)
    before = scores(model, data)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = Trainer(accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, max_steps=80, **quiet)
    run.fit(model, data)
    after = scores(model, data)
    assert after[0] > identity[0] + 0.05
    assert after[1] < min(identity[1], before[1]) - 0.02


def scores(model: Unrolling, data: SyntheticPairs) -> tuple[float, float]:
    """Mean Dice and loss on the test pairs."""
    dice, losses = [], []
    with torch.no_grad():
        for pair in data.test_dataloader():
            u = model.register(pair)
            dice.append(soft_dice(pair["fixed_label"], pair["moving_label"], u, 4).mean())
            losses.append(model.objective(pair, u)["loss"])
    return float(torch.stack(dice).mean()), float(torch.stack(losses).mean())
