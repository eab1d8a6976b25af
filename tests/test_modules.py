"""DIO as a LightningModule: levels open in time, classical rows are special cases, and training pays off."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.testing import assert_close

from data_modules import SyntheticPairs
from dio_lightning.features import MIND, FeaturePyramid, Intensity, UNet
from dio_lightning.fields import gaussian_smooth, jacobian_determinant, warp
from dio_lightning.implicit import Adam, GradientDescent, ImplicitAdjoint, PhantomAdjoint, Picard, Solution
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import Dice, Objective, soft_dice
from dio_lightning.modules import DIO, RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.transformations import Diffeomorphism, FreeForm
from dio_lightning.updates import Descent, GaussNewton

LABELS, MARGIN = 4, 0.05


def pairs(**settings) -> SyntheticPairs:
    return SyntheticPairs(**{"size": (20, 16), "num_labels": 3, "train_pairs": 4, "test_pairs": 2, **settings})


def trainer(folder, **settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        inference_mode=False,
        **quiet,
        **settings,
    )


def tiny(iterations=(2, 1), levels=(2, 1), label: bool = True, **settings) -> DIO:
    features = UNet(channels=4, levels=levels, spatial_dims=2, widths=(4, 8, 8))
    return DIO(features, OptimizerLayer(iterations), Objective(label=Dice()) if label else None, **settings)


class Seen(Callback):
    """What a training left after each step: open levels, levels with gradients, levels solved, levels scored."""

    def __init__(self) -> None:
        self.open: list[int] = []
        self.gradients: list[list[str]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        heads = pl_module.features.heads
        self.open.append(int(pl_module.open_levels))
        self.gradients.append([level for level in heads if next(heads[level].parameters()).grad is not None])


def test_levels_open_at_their_steps(tmp_path, monkeypatch) -> None:
    model, seen, computed, scored = tiny((2, 1, 1), (4, 2, 1), opens=(0, 2, 3)), Seen(), [], []
    extract, score = model.features.extract, model.objective.forward
    monkeypatch.setattr(
        model.features, "extract", lambda x, levels: computed.append((len(x), levels)) or extract(x, levels)
    )
    monkeypatch.setattr(model.objective, "forward", lambda pair, u: scored.append(u.shape[2:]) or score(pair, u))
    trainer(tmp_path, max_steps=5, limit_val_batches=0, callbacks=[seen]).fit(model, pairs())
    assert seen.open == [1, 1, 2, 3, 3]
    assert seen.gradients == [["4"], ["4"], ["4", "2"], ["4", "2", "1"], ["4", "2", "1"]]
    both = 2 * pairs().batch_size  # images of a training step are one batch
    assert computed == [(both, levels) for levels in [(4,), (4,), (4, 2), (4, 2, 1), (4, 2, 1)]]
    coarse, middle, fine = (5, 4), (10, 8), (20, 16)
    assert scored == [coarse] * 2 + [coarse, middle] + [coarse, middle, fine] * 2


def test_a_checkpoint_knows_which_levels_training_opened(tmp_path) -> None:
    model = tiny(opens=(0, 100))
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model, pairs())
    run.save_checkpoint(tmp_path / "one.ckpt")
    fresh = tiny(opens=(0, 0))
    assert int(fresh.open_levels) == 2
    trainer(tmp_path).test(fresh, pairs(), ckpt_path=tmp_path / "one.ckpt", verbose=False, weights_only=True)
    assert int(fresh.open_levels) == 1


def test_a_method_that_returns_no_solutions_says_what_was_expected() -> None:
    class Bare(RegistrationModule):
        answer: object = None

        def forward(self, fixed, moving):
            return self.answer

    method, image = Bare(), torch.rand(1, 1, 8, 9)
    pair = Pair(fixed=image, moving=image)
    for method.answer in (torch.zeros(1, 2, 8, 9), [torch.zeros(1, 2, 8, 9)], []):
        with pytest.raises(TypeError, match=r"Bare returned a (Tensor|list), expected a list"):
            method.register(pair)
    method.answer = [Solution.of_one_step(torch.ones(1, 2, 8, 9))]
    assert torch.equal(method.register(pair), torch.ones(1, 2, 8, 9))
    (solution,) = method.answer
    assert solution.steps.tolist() == [1] and solution.residual.isinf().all() and not solution.converged.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": (1, 2, 3)}, r"layer.iterations \[1, 2, 3\] has 3 entries, expected 2"),
        ({"opens": (0,)}, r"opens is \[0\], expected 2 rising steps"),
        ({"opens": (1, 2)}, r"opens is \[1, 2\]"),
        ({"opens": (0, -1)}, r"opens is \[0, -1\]"),
        ({"resolution": 0.5}, "resolution is 0.5"),
    ],
    ids=str,
)
def test_wrong_settings_are_one_sentence(arguments, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tiny(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(33, 40), (22, 24, 21)], ids=["2d", "3d"])
def test_a_coarser_resolution_answers_on_the_full_grid_in_full_voxels(shape) -> None:
    moving = gaussian_smooth(torch.randn(1, 1, *shape), 2.5, truncate=3.0)
    u = torch.zeros(1, len(shape), *shape)
    u[:, 0] = 2.0
    fixed = warp(moving, u)
    model = DIO(Intensity((1,)), OptimizerLayer([80]), resolution=2)
    with torch.no_grad():
        found = model.register(Pair(fixed=fixed, moving=moving))
    assert found.shape == u.shape
    inner = (slice(None), 0, *[slice(5, -5)] * len(shape))
    assert abs(found[inner].mean() - 2) < 0.3


@pytest.mark.parametrize("features", [Intensity((2, 1)), MIND((2, 1))], ids=["intensity", "mind"])
@pytest.mark.parametrize("iterations", [(0, 0), (6, 3)], ids=["identity", "solved"])
def test_classical_rows_run_through_the_trainer(tmp_path, features: FeaturePyramid, iterations) -> None:
    kept: list[dict] = []

    class Keep(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            kept.append({**outputs, "true": batch["displacement"]})

    run = trainer(tmp_path, callbacks=[Keep()])
    (logged,) = run.test(DIO(features, OptimizerLayer(iterations)), pairs(), verbose=False)
    assert len(kept) == 2
    for out in kept:
        assert out["displacement"].shape == out["true"].shape
        assert bool(out["displacement"].isfinite().all())
        assert bool((out["displacement"] == 0).all()) == (sum(iterations) == 0)
        assert bool((out["steps"] <= sum(iterations)).all())
    assert logged["test/failed"] == 0


def test_a_module_without_weights_or_objective_refuses_to_train(tmp_path) -> None:
    classical = DIO(Intensity((2, 1)), OptimizerLayer((1, 1)), Objective(label=Dice()))
    for model, message in ((classical, "no weights to train"), (tiny(label=False), "no objective to train with")):
        with pytest.raises(ValueError, match=message) as error:
            trainer(tmp_path, max_steps=1).fit(model, pairs())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("update", "solver", "adjoint"),
    [
        (Descent(), Adam(0.3), PhantomAdjoint(1)),
        (Descent(), Adam(0.3), PhantomAdjoint(3)),
        (GaussNewton(), Picard(), ImplicitAdjoint(rtol=1e-3)),
        (Descent(regularity=0.1), GradientDescent(0.2), ImplicitAdjoint(rtol=1e-3)),
    ],
    ids=["jfb", "phantom", "implicit-newton", "implicit-descent"],
)
@pytest.mark.filterwarnings("ignore:ImplicitAdjoint reached")
def test_every_adjoint_reaches_all_weights(update, solver, adjoint) -> None:
    model = tiny()
    model.layer = OptimizerLayer((20, 10), update, solver, adjoint=adjoint)
    pair = next(iter(pairs().train_dataloader()))
    model.training_step(pair, 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_the_solver_needs_no_graph_outside_training() -> None:
    model, pair = tiny(), next(iter(pairs().test_dataloader()))
    with torch.no_grad():
        expected = model.register(pair)
    with torch.inference_mode():
        assert_close(model.register(pair), expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[DIO, list[Pair]]:
    """DIO after 120 steps on pairs whose intensities mislead, and unseen pairs."""
    torch.manual_seed(0)
    data = SyntheticPairs((32, 32), LABELS, 64, 1, 16, 3.0, 8.0, structure=4.0, texture=0.3, batch_size=4)
    model = DIO(
        UNet(channels=8, levels=(2, 1), spatial_dims=2, widths=(8, 16, 16)),
        OptimizerLayer((10, 10), solver=Adam(0.3), transformation=Diffeomorphism()),
        Objective(label=Dice()),
        optimizer=lambda weights: torch.optim.Adam(weights, lr=2e-3),
    )
    folder = tmp_path_factory.mktemp("learning")
    trainer(folder, max_steps=120, limit_val_batches=0, gradient_clip_val=10.0).fit(model, data)
    return model.eval(), list(data.test_dataloader())


def scores(model: RegistrationModule, unseen: list[Pair]) -> tuple[float, int]:
    """Mean soft Dice and number of folded voxels."""
    dice, folds = [], 0
    with torch.no_grad():
        for pair in unseen:
            u = model.register(pair)
            dice.append(soft_dice(pair["fixed_label"], pair["moving_label"], u, LABELS).mean())
            folds += int((jacobian_determinant(u) <= 0).sum())
    return float(torch.stack(dice).mean()), folds


@pytest.mark.slow
def test_training_beats_no_registration_and_raw_intensities_on_unseen_pairs(trained) -> None:
    model, unseen = trained
    dio = scores(model, unseen)[0]
    identity = scores(DIO(Intensity((2, 1)), OptimizerLayer((0, 0))), unseen)[0]
    intensity = scores(DIO(Intensity((2, 1)), model.layer), unseen)[0]
    assert dio > identity + MARGIN
    assert dio > intensity + MARGIN


@pytest.mark.slow
def test_the_same_weights_serve_another_transformation(trained) -> None:
    """Zero-shot: the transformation is chosen after training (section 3.5 of DIO)."""
    model, unseen = trained
    dice, folds = {}, {}
    layer = model.layer
    for transformation in (FreeForm(), Diffeomorphism()):
        model.layer = OptimizerLayer(layer.iterations, layer.update, layer.solver, transformation)
        dice[type(transformation)], folds[type(transformation)] = scores(model, unseen)
    model.layer = layer
    assert abs(dice[FreeForm] - dice[Diffeomorphism]) < 0.03
    assert folds[Diffeomorphism] == 0
