"""A9: a loss or gradient that is not finite reaches no weight, of any method; weights that are not reach no file."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from trainings import METHODS, batch, build, loader, trainer

from dio_lightning.callbacks import Best, Last

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests/conf/tiny.yaml")
FAULTS = {"nan": torch.nan, "inf": torch.inf, "1e20": 1e20}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*was skipped, because its loss or gradient.*"),
    pytest.mark.filterwarnings("ignore:.*no checkpoint is written at step.*"),
]


class Spoil(Callback):
    """Writes a number into the first weight's gradient after the backward passes of some batches."""

    def __init__(self, at: tuple[int, ...], value: float) -> None:
        self.at, self.value, self.batch = at, value, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batch = batch_idx

    def on_after_backward(self, trainer, pl_module) -> None:
        if self.batch in self.at:
            gradient = next(p.grad for p in pl_module.parameters() if p.grad is not None)
            gradient[(0,) * gradient.ndim] = self.value


def broken(value: float):
    """A batch whose images hold the number."""
    pair = batch(100)
    for key in ("fixed", "moving"):
        pair[key][0, 0, 3:7, 4:9] *= value
    return pair


def trained(name: str, batches: list, folder: Path, *callbacks: Callback, **settings) -> tuple[dict[str, Tensor], dict]:
    """Weights and states of the optimizer after one pass over the batches, and the module's count."""
    module = build(name)
    run = trainer(folder, *callbacks, **settings)
    run.fit(module, loader(batches))
    return {**module.state_dict()}, {**run.optimizers[0].state_dict()["state"], "skipped": module.skipped_steps}


@cache
def expected(name: str, good: tuple[int, ...], **settings) -> tuple[dict[str, Tensor], dict]:
    """What a training on these batches leaves, none of them bad."""
    with TemporaryDirectory() as folder:
        return trained(name, [batch(i) for i in good], Path(folder), **settings)


def same(left: dict, right: dict) -> bool:
    """Whether nested dicts of tensors are equal to the last bit."""
    if left.keys() != right.keys():
        return False
    for key, value in left.items():
        if isinstance(value, dict):
            equal = same(value, right[key])
        else:
            equal = torch.equal(value, right[key]) if isinstance(value, Tensor) else True
        if not equal:
            return False
    return True


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", METHODS)
def test_a_bad_batch_leaves_weights_and_optimizer_as_if_it_had_not_been(name, fault, tmp_path) -> None:
    """Bit for bit, the training goes on as one that never saw the batch."""
    good = [batch(i) for i in range(3)]
    weights, state = trained(name, [good[0], broken(FAULTS[fault]), *good[1:]], tmp_path)
    clean_weights, clean_state = expected(name, (0, 1, 2))
    assert state["skipped"] == 1 and clean_state["skipped"] == 0
    assert same(weights, clean_weights) and same(state, clean_state)
    assert not same(weights, dict(build(name).state_dict()))


# the last is finite, but Adam would square it
@pytest.mark.parametrize(("value", "clip"), [(torch.nan, None), (-torch.inf, 1.0), (1e25, None)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_bad_gradient_of_a_finite_loss_is_skipped_too(name, clip, value, tmp_path) -> None:
    good = [batch(i) for i in range(3)]
    spoil = Spoil((1,), value)
    weights, state = trained(name, [good[0], batch(7), *good[1:]], tmp_path, spoil, gradient_clip_val=clip)
    clean_weights, clean_state = expected(name, (0, 1, 2), gradient_clip_val=clip)
    assert state["skipped"] == 1 and same(weights, clean_weights) and same(state, clean_state)


@pytest.mark.parametrize("at", [2, 3])
@pytest.mark.parametrize("name", ["DIO", "DEQReg"])
def test_one_bad_batch_spoils_the_step_that_it_is_accumulated_into(name, at, tmp_path) -> None:
    batches = [batch(i) for i in range(6)]
    weights, state = trained(name, [*batches[:at], broken(torch.nan), *batches[at + 1 :]], tmp_path,
                             accumulate_grad_batches=2)  # fmt: skip
    clean_weights, clean_state = expected(name, (0, 1, 4, 5), accumulate_grad_batches=2)
    assert state["skipped"] == 1 and same(weights, clean_weights) and same(state, clean_state)


@pytest.mark.parametrize("name", ["DIO", "DEQReg", "VoxelMorph"])
@pytest.mark.parametrize("fault", [*FAULTS, "gradient"])
def test_a_gradient_scaler_keeps_its_own_search_and_loses_no_step(name, fault, tmp_path) -> None:
    """Precision 16-mixed: overflows halve the scale, are counted, and never end a training whose loss is finite."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    spoil = Spoil((1,) if fault == "gradient" else (), torch.inf)
    middle = batch(7) if fault == "gradient" else broken(FAULTS[fault])
    module = build(name)
    trainer(tmp_path, spoil, plugins=[plugin]).fit(module, loader([batch(0), middle, batch(1)]))
    assert module.skipped_steps == 1 and scaler.get_scale() == 2.0
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())


def test_a_scaler_may_search_longer_than_ten_steps(tmp_path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    module = build("VoxelMorph")
    run = trainer(tmp_path, Spoil(tuple(range(12)), torch.inf), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    run.fit(module, loader([batch(i) for i in range(13)]))
    assert module.skipped_steps == 12


@pytest.mark.parametrize("name", METHODS)
def test_ten_in_a_row_end_the_training_and_the_checkpoints_from_before_stay(name, tmp_path) -> None:
    good = [batch(i) for i in range(2)]
    module, last = build(name), Last(tmp_path)
    trainer(tmp_path, last, enable_checkpointing=True).fit(module, loader(good))
    before = (tmp_path / "last.ckpt").read_bytes()
    run = trainer(tmp_path, Last(tmp_path), Best(tmp_path), enable_checkpointing=True, max_epochs=20)
    with pytest.raises(ValueError, match="not finite in 10 steps in a row") as error:
        run.fit(build(name), loader([broken(torch.nan)] * 3), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert "\n" not in str(error.value)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert sorted(file.name for file in tmp_path.glob("*.ckpt")) == ["last.ckpt"]


def test_good_steps_between_bad_ones_go_on(tmp_path) -> None:
    batches = [batch(i) if i % 5 == 0 else broken(torch.nan) for i in range(31)]
    _, state = trained("VoxelMorph", batches, tmp_path)
    assert state["skipped"] == 24


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_overflow_are_never_saved(name, tmp_path) -> None:
    """A finite gradient may still throw them to infinity; Lightning's own checkpoints refuse them too."""
    module, spoil = build(name, torch.optim.SGD, 1e37), Spoil((1,), 1e3)
    run = trainer(tmp_path, spoil, ModelCheckpoint(tmp_path), enable_checkpointing=True, max_epochs=20)
    with pytest.raises(ValueError, match="training has diverged") as error:
        run.fit(module, loader([batch(i) for i in range(2)]))
    assert "\n" not in str(error.value)
    for file in tmp_path.glob("*.ckpt"):
        weights = torch.load(file, weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.parametrize("where", ["weight", "optimizer"])
def test_a_checkpoint_with_anything_that_is_not_finite_is_refused_by_name(where, tmp_path) -> None:
    module, run = build("VoxelMorph"), trainer(tmp_path)
    run.fit(module, loader([batch(0)]))
    run.save_checkpoint(tmp_path / "good.ckpt")
    name, weight = next(iter(module.named_parameters()))
    if where == "weight":
        weight.data[(0,) * weight.ndim] = torch.nan
    else:
        name = "exp_avg_sq"
        run.optimizers[0].state[weight][name][(0,) * weight.ndim] = torch.inf
    with pytest.raises(ValueError, match=name):
        run.save_checkpoint(tmp_path / "bad.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["good.ckpt"]


def test_skipped_steps_are_logged_warned_of_now_and_then_and_counted_over_a_resume(tmp_path) -> None:
    module, logger = build("VoxelMorph"), CSVLogger(tmp_path)
    bad = [broken(torch.nan)] * 3
    with pytest.warns(UserWarning, match="was skipped") as warned:
        run = trainer(tmp_path, logger=logger, log_every_n_steps=1)
        run.fit(module, loader([batch(0), *bad, batch(1), *bad, batch(2)]))
    assert [str(w.message).split("(")[1] for w in warned if "was skipped" in str(w.message)] == [
        f"{n} skipped so far)" for n in (1, 2, 4)
    ]
    text = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = text[0].split(",").index("train/skipped_steps")
    assert [float(row.split(",")[column]) for row in text[1:]] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    run.save_checkpoint(tmp_path / "six.ckpt")
    again = build("VoxelMorph")
    six = loader([batch(0), *bad])
    trainer(tmp_path, max_epochs=2).fit(again, six, ckpt_path=tmp_path / "six.ckpt", weights_only=True)
    assert again.skipped_steps == 9


def test_deqreg_never_replays_the_state_of_a_batch_that_was_skipped(tmp_path) -> None:
    module = build("DEQReg")
    module.replay = 0.99  # almost every step would go on from the last state
    torch.manual_seed(0)
    trainer(tmp_path).fit(module, loader([broken(torch.nan), *[batch(i) for i in range(5)]]))
    assert module.skipped_steps == 1


@pytest.mark.parametrize("lr", ["1e6", "1e30"])
def test_the_command_ends_with_one_sentence_or_finite_weights(lr, command, capsys, tmp_path) -> None:
    again = ["--trainer.max_epochs", "8", "--model.optimizer.lr", lr]
    try:
        command("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *again)
    except SystemExit as stopped:
        assert stopped.code == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
        assert line.startswith("dio-lightning: error: training has diverged")
    else:
        assert lr == "1e6"
    for path in tmp_path.glob("run/checkpoints/*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in weights.values())
