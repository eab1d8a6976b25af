"""RIIR: its memory against torch's, its gradient input against differences, its loss by hand, and that it learns."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from data_modules import SyntheticPairs
from dio_lightning.fields import gaussian_smooth, warp
from dio_lightning.layers import Run
from dio_lightning.losses import LNCC, SSD, Diffusion, Objective
from dio_lightning.modules import RIIR
from dio_lightning.networks import ConvGRU, RecurrentUNet, VxmUNet
from dio_lightning.ops import sampling_reference
from dio_lightning.pair import Pair

SIZE = (11, 14)


def images(*size: int, count: int = 2, dtype: torch.dtype = torch.float32) -> Pair:
    """Smooth images, each sample of its own strength."""
    smooth = [gaussian_smooth(torch.randn(count, 1, *size, dtype=dtype), 1.5) for _ in range(2)]
    strength = torch.logspace(0, 2, count, dtype=dtype).view(-1, *[1] * (len(size) + 1))
    return Pair(fixed=strength * smooth[0], moving=strength * smooth[1])


def riir(d: int = 2, head: float = 0.1, precision: str = "float32", **settings) -> RIIR:
    """A small RIIR whose steps are of about `head` voxels, not the tiny ones of the start of a training."""
    network = VxmUNet(2 * d + 2, d, encoder=(4, 4), decoder=(4, 4), final=(4,), precision=precision)
    nn.init.normal_(network.head.weight, std=head)
    objective = Objective(image=LNCC(5), regularity=Diffusion("sum"), regularity_weight=0.25)
    return RIIR(network, **{"objective": objective, "repeats": 3, **settings})


def inputs(model: RIIR, pair: Pair) -> list[Tensor]:
    """What the cell saw at each step of a solve."""
    seen: list[Tensor] = []
    hook = model.cell.register_forward_pre_hook(lambda cell, arguments: seen.append(arguments[0].detach()))
    with torch.no_grad():
        model(pair["fixed"], pair["moving"])
    hook.remove()
    return seen


def states(model: RIIR, pair: Pair) -> list[Tensor]:
    """u_1 to u_T of a solve."""
    fields: list[Tensor] = []
    with torch.no_grad():
        (solution,) = model.align(pair, pair, Run(observe=lambda record: fields.append(record.displacement)))
    assert_close(fields[-1], solution.value, rtol=0, atol=0)
    assert not bool(fields[0].any())
    return fields[1:]


@pytest.mark.parametrize("reset", ["any", "open"])
def test_the_memory_is_torchs_gru_at_every_voxel(reset) -> None:
    """Where reset and product commute: a diagonal product, or a reset of 1. Our z is 1 - z there."""
    ours, torchs = ConvGRU(2, 4, kernel=1).double(), nn.GRUCell(4, 4).double()
    z, r, n = ours.of_input.weight.detach()[..., 0, 0].split(4)
    bz, br, bn = ours.of_input.bias.detach().split(4)
    uz, ur = ours.of_state.weight.detach()[..., 0, 0].split(4)
    un = ours.of_reset.weight.detach()[..., 0, 0]
    if reset == "any":
        un.copy_(torch.diag(torch.randn(4).double()))
    else:
        br.fill_(50.0)
    torchs.weight_ih.data, torchs.bias_ih.data = torch.cat([r, -z, n]), torch.cat([br, -bz, bn])
    torchs.weight_hh.data, torchs.bias_hh.data = torch.cat([ur, -uz, un]), torch.zeros(12).double()
    x, h = torch.randn(2, 2, 4, 3, 5).double()
    flat = [t.movedim(1, -1).reshape(-1, 4) for t in (x, h)]
    assert_close(ours(x, h).movedim(1, -1).reshape(-1, 4), torchs(*flat))
    assert_close(ours(x, None), ours(x, torch.zeros_like(h)))


def test_the_memory_reaches_the_field_from_both_places() -> None:
    cell = riir().cell
    x = torch.randn(1, 6, *SIZE)
    field, (bottom, last) = cell(x)
    assert bottom.shape == (1, 4, 3, 4) and last.shape == (1, 4, *SIZE)
    for memory in ((bottom, None), (None, last)):
        assert (cell(x, memory)[0] - field).abs().max() > 1e-5
    assert_close(cell(x, (torch.zeros_like(bottom), torch.zeros_like(last)))[0], field)


@pytest.mark.parametrize("inner", [SSD(), LNCC(5)], ids=["ssd", "lncc"])
def test_the_gradient_input_is_that_of_finite_differences(inner) -> None:
    pair, model = images(*SIZE, dtype=torch.float64), riir(inner=inner).double()
    x = inputs(model, pair)[2]
    u, slope, warped, fixed = x.split([2, 2, 1, 1], 1)
    u = u * model.scale
    assert u.abs().max() > 0.05
    assert_close((warped, fixed), (warp(pair["moving"], u), pair["fixed"]))
    assert_close(slope.square().flatten(1).mean(1).sqrt(), torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)
    places, eps = torch.randperm(u[0].numel())[:12].tolist(), 1e-6
    for b in range(2):
        differences = []
        for place in places:
            shift = torch.zeros_like(u[[b]])
            shift.view(-1)[place] = eps
            ends = [inner(warp(pair["moving"][[b]], u[[b]] + s), pair["fixed"][[b]]) for s in (shift, -shift)]
            differences.append(ends[0] - ends[1])
        expected, found = torch.stack(differences), slope[b].view(-1)[places]
        assert_close(found / found.norm(), expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    pair, model = images(*SIZE, dtype=torch.float64), riir().double()
    with torch.no_grad():
        together = model.register(pair)
        alone = [model.register(Pair(fixed=pair["fixed"][[b]], moving=pair["moving"][[b]])) for b in range(2)]
    assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-8)


def test_black_images_have_no_slope_and_finite_gradients() -> None:
    image = torch.zeros(1, 1, *SIZE)
    pair, model = Pair(fixed=image, moving=image), riir(differentiate_gradient=True)
    assert all(bool((x[:, 2:4] == 0).all()) for x in inputs(model, pair))
    model.training_step(pair, 0).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_the_weights_of_the_states_in_closed_form() -> None:
    w = riir(repeats=6).weights()
    assert_close(w / w[0], torch.tensor([10 ** (t / 5) for t in range(6)], dtype=torch.float64))
    assert_close(w.sum(), torch.ones((), dtype=torch.float64))
    assert_close(riir(repeats=4, growth=1.0).weights(), torch.full((4,), 0.25, dtype=torch.float64))
    decay = torch.tensor([0.8 ** (4 - t) for t in range(1, 5)], dtype=torch.float64)
    assert_close(riir(repeats=4, growth=0.8**-3).weights(), decay / decay.sum())
    assert riir(repeats=1).weights().tolist() == [1.0]


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_loss_weighs_every_state_and_the_answer_is_the_last(repeats, monkeypatch) -> None:
    pair, model, logged = images(16, 12), riir(repeats=repeats), {}
    monkeypatch.setattr(model, "log_dict", lambda values, **_: logged.update(values))
    seen = states(model, pair)
    assert len(seen) == repeats
    terms = [model.objective(pair, u) for u in seen]
    loss = model.training_step(pair, 0)
    for name in ("loss", "image", "regularity"):
        expected = sum(float(w) * t[name] for w, t in zip(model.weights(), terms, strict=True))
        assert_close(logged[f"train/{name}"], expected)
    assert_close(loss, logged["train/loss"])
    model.validation_step(pair, 0)
    assert_close(logged["val/loss"], terms[-1]["loss"])
    before = seen[-2] if repeats > 1 else torch.zeros_like(seen[0])
    change = (seen[-1] - before).flatten(1).norm(dim=1) / seen[-1].flatten(1).norm(dim=1)
    assert_close(logged["val/residual"], change.mean())


@pytest.mark.parametrize("differentiate", [False, True])
def test_second_derivatives_only_if_asked_and_then_right(differentiate, monkeypatch) -> None:
    calls, second = [], sampling_reference.interpolate_double_backward
    monkeypatch.setattr(sampling_reference, "interpolate_double_backward", lambda *a: calls.append(1) or second(*a))
    pair, model = images(*SIZE, dtype=torch.float64), riir(head=0.3, differentiate_gradient=differentiate).double()
    bias = model.cell.network.head.bias
    model.training_step(pair, 0).backward()
    assert len(calls) == (2 if differentiate else 0)  # u_0 does not depend on the weights
    ends = []
    for sign in (-1, 1):
        bias.data[0] += sign * 1e-6
        ends.append(model.training_step(pair, 0).detach())
        bias.data[0] -= sign * 1e-6
    error = abs(float(bias.grad[0] - (ends[1] - ends[0]) / 2e-6)) / abs(float(bias.grad[0]))
    assert error < 1e-5 if differentiate else error > 1e-3


def test_memory_of_training_is_linear_in_the_steps() -> None:
    def saved(repeats: int) -> int:
        found: dict[int, int] = {}
        kept = []  # keeps storages alive, so that their addresses are their own

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = riir(repeats=repeats).training_step(images(*SIZE), 0)
        return sum(found.values()) if loss.requires_grad else 0

    two, four, six = (saved(repeats) for repeats in (2, 4, 6))
    assert 0 < six - four == four - two


def test_steps_may_be_others_than_trained() -> None:
    pair, model = images(*SIZE), riir()
    three = states(model, pair)
    model.steps = 7
    seven = states(model, pair)
    assert (len(three), len(seven), model.steps) == (3, 7, 7)
    assert_close(seven[:3], three, rtol=0, atol=0)
    assert int(model(pair["fixed"], pair["moving"])[0].steps[0]) == 7
    with pytest.raises(ValueError, match="repeats are 0, expected at least 1"):
        model.steps = 0


@pytest.mark.parametrize("arguments", [{"growth": 0.0}, {"scale": -1.0}, {"repeats": 0}], ids=str)
def test_wrong_settings_are_one_sentence(arguments) -> None:
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))) as error:
        riir(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_odd_volumes_at_half_the_resolution(precision) -> None:
    pair, model = images(17, 13, 10), riir(3, precision=precision, resolution=2.0, repeats=2)
    model.training_step(pair, 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
    with torch.inference_mode():
        expected = model.register(pair)
    with torch.no_grad():
        assert_close(model.register(pair), expected)
    assert expected.shape == (2, 3, 17, 13, 10) and expected.dtype == torch.float32


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_memory_does_not_drift() -> None:
    """24 steps in both precisions, the same weights."""
    pair, exact = images(24, 20), riir(repeats=24, head=0.02)
    rounded = riir(repeats=24, precision="bfloat16")
    rounded.load_state_dict(exact.state_dict())
    a, b = states(exact, pair)[-1], states(rounded, pair)[-1]
    assert (a - b).norm() < 0.05 * a.norm()


@pytest.mark.slow
def test_training_beats_no_registration_on_unseen_pairs(tmp_path) -> None:
    data = SyntheticPairs((32, 32), 4, 64, 1, 16, 2.0, 8.0, contrast="shared", texture=0.0, bias=0.0, batch_size=4)
    model = RIIR(
        VxmUNet(6, 2, encoder=(8, 8), decoder=(8, 8), final=(8,)),
        objective=Objective(image=SSD(), image_weight=100.0, regularity=Diffusion("sum"), regularity_weight=0.25),
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=5e-3),
        repeats=3,
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    steps = {"max_steps": 60, "limit_val_batches": 0, "gradient_clip_val": 1.0}
    run = Trainer(accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **steps, **quiet)
    run.fit(model, data)
    found = []
    with torch.no_grad():
        for pair in data.test_dataloader():
            u, true = model.register(pair), pair["displacement"]
            ends = [SSD()(warp(pair["moving"], v), pair["fixed"]) for v in (0 * u, u)]
            found.append(torch.stack([*ends, (u - true).square().mean(), true.square().mean()]))
    before, after, error, nothing = torch.stack(found).mean(0)
    assert after < 0.25 * before
    assert error < 0.85 * nothing


def test_the_cell_is_the_unet_with_two_memories() -> None:
    cell = RecurrentUNet(VxmUNet(8, 3))
    assert [m.of_state.weight.shape for m in (cell.bottom, cell.last)] == [(64, 32, 3, 3, 3), (32, 16, 3, 3, 3)]
