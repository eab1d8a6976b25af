"""A batch of several pairs is its pairs one by one: nothing is dropped, nothing is decided for all by their mean."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.testing import assert_close

from data_modules import PairsCSV, SyntheticPairs
from data_modules.augment import Swap
from data_modules.base import collate
from dio_lightning.features import FeaturePyramid, Intensity, UNet
from dio_lightning.fields import gaussian_smooth, on_one_grid
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import SSD, Objective
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import one_pair, score_pair
from dio_lightning.scores.registered import ScoreOptions

SHAPE = (20, 18, 16)


def affine(spacing: float | list[float] = 1.0, origin: tuple[float, ...] = (0.0, 0.0, 0.0)) -> np.ndarray:
    placed = np.diag([*np.broadcast_to(spacing, 3), 1.0])
    placed[:3, 3] = origin
    return placed


def ball(placed: np.ndarray, centre: tuple[float, ...] = (20.0, 18.0, 16.0)) -> np.ndarray:
    """Labels 1 and 2 of a ball of 12 mm and its core, on the grid of an affine."""
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ placed[:3, :3].T + placed[:3, 3]
    radius = np.linalg.norm(at - centre, axis=-1)
    return (radius < 12).astype(np.int16) + (radius < 6)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two pairs whose images show one ball, in images of one shape: on one grid, and on two."""
    for name, placed in (("a", affine(2)), ("b", affine(2)), ("c", affine(2, (8, -6, 4)))):
        labels = ball(placed)
        noise = np.random.default_rng(ord(name)).random(SHAPE, np.float32)
        nib.save(nib.Nifti1Image(labels + 0.1 * noise, placed), tmp_path / f"{name}.nii.gz")  # type: ignore[attr-defined]
        nib.save(nib.Nifti1Image(labels, placed), tmp_path / f"{name}_seg.nii.gz")  # type: ignore[attr-defined]
    rows = [f"{one}.nii.gz,{two}.nii.gz,{one}_seg.nii.gz,{two}_seg.nii.gz" for one, two in ("ab", "ac")]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["fixed,moving,fixed_label,moving_label", *rows]) + "\n")
    return path


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("size", [1, 2])
def test_pairs_on_one_grid_and_on_two_share_a_batch(table: Path, size: int, order: tuple[int, int]) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(lines[1 + i] for i in order)]) + "\n")
    data = PairsCSV(str(table), batch_size=size)
    data.setup("test")
    scores = {}
    for batch in data.test_dataloader():
        for i in range(len(batch["fixed"])):
            pair = one_pair(batch, i)
            row, _ = score_pair(torch.zeros(1, 3, *SHAPE), pair, ScoreOptions(surface=False))
            scores[batch["moving_id"][i]] = row["dice"]
    # the grids are whole voxels apart, and the ball lies inside of both
    assert scores == pytest.approx({"b": 1.0, "c": 1.0})


def sample(name: str, **more: object) -> dict:
    image = torch.rand(1, 4, 4)
    return {"fixed": image, "moving": image, "fixed_id": name, "moving_id": f"{name}2", **more}


def test_the_moving_affine_of_a_pair_on_one_grid_is_its_affine() -> None:
    one, two, three = (i * torch.eye(4, dtype=torch.float64) for i in (1, 2, 3))
    mixed = [sample("a", affine=one), sample("b", affine=two, moving_affine=three)]
    for samples, expected in ((mixed, [one, three]), (mixed[::-1], [three, one])):
        assert torch.equal(collate(samples)["moving_affine"], torch.stack(expected))
    assert "moving_affine" not in mixed[0]
    assert "moving_affine" not in collate([sample("a", affine=one), sample("b", affine=two)])


@pytest.mark.parametrize("key", ["fixed_label", "moving_mask", "fixed_points", "spacing", "displacement", "fixed_file"])
def test_what_one_pair_alone_has_is_not_dropped(key: str) -> None:
    having, lacking = sample("a", **{key: torch.ones(2)}), sample("b")
    for samples in ([having, lacking], [lacking, having], [lacking, lacking, having]):
        with pytest.raises(ValueError, match=f"a with a2 has {key} and b with b2 has none, .* set batch_size to 1"):
            collate(samples)
    assert key in collate([having]) and key not in collate([lacking])


def test_a_moving_affine_needs_an_affine_of_every_pair() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="a with a2 has affine and b with b2 has none"):
        collate([sample("a", affine=eye, moving_affine=eye), sample("b")])


@pytest.mark.parametrize(
    ("settings", "fine"), [((2, 0.5), False), ((1, 0.5), True), ((2, 0.0), True), ((2, 1.0), True)]
)
def test_what_changes_sides_in_some_pairs_of_a_batch_is_said_before_training(
    table: Path, settings: tuple[int, float], fine: bool
) -> None:
    """A label map of one image alone, with an exchange of the images."""
    table.write_text("fixed,moving,moving_label\na.nii.gz,b.nii.gz,b_seg.nii.gz\na.nii.gz,c.nii.gz,c_seg.nii.gz\n")
    size, probability = settings
    data = PairsCSV(str(table), batch_size=size, augment=Swap(probability))
    if fine:
        data.setup("fit")
        assert len(list(data.train_dataloader())) == 2 // size
    else:
        with pytest.raises(ValueError, match="Swap exchanges a and b, one of which alone has a label, in batches of 2"):
            data.setup("fit")


def unlike(d: int) -> Pair:
    """Pairs of one shape: moved by voxels, coarser by 2 and 1.6, finer along one axis, turned, and on one grid."""
    generator = torch.Generator().manual_seed(0)
    size = (20, 18, 16)[:d]
    images = gaussian_smooth(torch.rand(10, 1, *size, generator=generator), 1.5)
    turned = affine()
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    placed = [affine(1, (2, -1, 0)), affine(2), affine(1.6, (1, 0, 0)), affine([0.4, 1, 1]), turned]
    return Pair(
        fixed=images[:5],
        moving=images[5:],
        moving_label=(images[5:] > 0.5).short(),
        moving_points=torch.rand(5, d, 4, generator=generator) * 10,
        affine=torch.from_numpy(np.stack([affine(), affine(), affine(0.7), affine(), affine()])),
        moving_affine=torch.from_numpy(np.stack(placed)),
    )


@pytest.mark.parametrize("d", [2, 3])
def test_images_of_a_batch_are_smoothed_each_by_its_own_voxels(d: int) -> None:
    pair = unlike(d)
    together = on_one_grid(pair)
    for i in range(5):
        alone = on_one_grid(one_pair(pair, i))
        for key in ("moving", "moving_label", "moving_points"):
            assert_close(together[key][i], alone[key][0], rtol=0, atol=1e-6, msg=f"{key} of pair {i}")


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("learned", [False, True])
def test_dio_registers_a_batch_of_unlike_pairs_as_one_by_one(d: int, learned: bool) -> None:
    """Moving images with equal voxels keep their grid, the others of the batch are resampled."""
    torch.manual_seed(0)
    features: FeaturePyramid = UNet(1, 4, (2, 1), d, widths=(4, 8)) if learned else Intensity((2, 1))
    # in double precision, because normalisations of few voxels multiply the rounding of convolutions
    module, pair = DIO(features.double(), OptimizerLayer((2, 2))), unlike(d)
    pair |= Pair(fixed=pair["fixed"].double(), moving=pair["moving"].double())
    singles = [one_pair(pair, i) for i in range(5)]
    assert [module.keeps_grid(one) for one in singles] == [True, False, False, False, False]
    assert not module.keeps_grid(pair)
    on_one = one_pair(pair, 0)
    del on_one["moving_affine"]
    with torch.no_grad():
        together = [x.clone() for x in module.pyramids(module.work(pair), pair).moving]
        for i, one in enumerate(singles):
            alone = module.pyramids(module.work(one), one).moving
            for level, expected in zip(together, alone, strict=True):
                assert_close(level[i], expected[0], rtol=1e-5, atol=1e-5, msg=lambda m: f"features of pair {i}: {m}")
        # beside a pair on two grids, one on one grid is given as if it lay on two
        placed = Pair(**{**on_one, "moving_affine": on_one["affine"]})  # type: ignore[typeddict-item]
        assert_close(module.register(placed), module.register(on_one), rtol=0, atol=1e-5)
        u = module.register(pair)
        for i, one in enumerate(singles):
            assert_close(
                u[i : i + 1], module.register(one), rtol=0, atol=1e-4, msg=lambda m: f"displacement of pair {i}: {m}"
            )


@pytest.mark.parametrize("setting", ["voxel", "max_voxel"])
def test_pairs_whose_working_grids_differ_do_not_share_a_batch(setting: str) -> None:
    module = DIO(Intensity((1,)), OptimizerLayer((1,)), **{setting: 2.0})
    images = torch.rand(2, 1, 20, 30)
    spacings = torch.tensor([[2.0, 2.0], [3.0, 2.0]])
    pair = Pair(fixed=images, moving=images, spacing=spacings)
    sentence = (
        r"voxels of 2x2 and 3x2 mm cannot .* grids have 20x30 and 30x30 voxels, expected one; set batch_size to 1"
    )
    with pytest.raises(ValueError, match=sentence):
        module.work(pair)
    for i, size in enumerate(((20, 30), (30, 30))):
        assert module.work(one_pair(pair, i))["fixed"].shape[2:] == size
    # voxels that differ by less than it takes for another size are fine, and so is a resolution
    pair["spacing"] = torch.tensor([[2.0, 2.0], [2.01, 2.0]])
    assert module.work(pair)["fixed"].shape[2:] == (20, 30)
    pair["spacing"] = spacings
    assert DIO(Intensity((1,)), OptimizerLayer((1,)), resolution=2.0).work(pair)["fixed"].shape[2:] == (10, 15)


def symmetric(consistency: float) -> DIO:
    torch.manual_seed(0)
    layer = OptimizerLayer((2, 2), clamp_quantile=1.0)
    features = UNet(1, 4, (2, 1), 2, widths=(4, 8))
    return DIO(features, layer, Objective(image=SSD()), symmetric=True, consistency=consistency)


class Logged(Callback):
    """What each validation has logged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [1, 2])
def test_validation_of_symmetric_training_solves_one_way_whatever_the_batches(tmp_path: Path, size: int) -> None:
    """Batches of one, or of two with an odd last one; consistency counts in training alone."""
    losses = {}
    for weight in (0.0, 1.0):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        logged = Logged()
        run = Trainer(
            accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, max_steps=2, callbacks=[logged],
            num_sanity_val_steps=-1, **quiet,
        )  # fmt: skip
        model = symmetric(weight)
        run.fit(model, SyntheticPairs((32, 36), train_pairs=3, val_pairs=3, batch_size=size))
        assert model.global_step == 2
        assert ("train/consistency" in run.callback_metrics) == (weight > 0)
        assert not any(name.startswith("val/consistency") for seen in logged.seen for name in seen)
        losses[weight] = logged.seen[0]["val/loss"]  # before the first step
    assert losses[1.0] == pytest.approx(losses[0.0], rel=1e-6), "the loss of validation is comparable across weights"


def test_consistency_compares_the_two_ways_of_each_pair() -> None:
    pairs = SyntheticPairs((32, 36), train_pairs=3).dataset("train")
    samples = [{k: v for k, v in pairs[i].items() if k != "displacement"} for i in range(3)]  # type: ignore[arg-type]
    model = symmetric(1.0)
    term = model._learn(collate(samples))[0]["consistency"]
    alone = [model._learn(collate([one]))[0]["consistency"] for one in samples]
    assert float(term.detach()) > 0.1
    assert_close(term, torch.stack(alone).mean(), rtol=1e-4, atol=0)
