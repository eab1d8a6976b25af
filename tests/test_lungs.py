"""Lungs: features of a descriptor, the Dice of masks, the recipes of NLST on a miniature, and one real pair."""

from pathlib import Path

import miniature
import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

from dio_lightning.features import LKU, MIND, Described, Intensity, mind
from dio_lightning.features.base import average_pool
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import score_pair
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.scores.rows import scores_of, to_csv

LUNGS = Path(__file__).parents[1] / "experiments/lungs"


def described(d: int, **settings: object) -> Described:
    """LKU-mini on MIND-SSC, in 2-D and 3-D."""
    channels = {2: 4, 3: 12}[d]
    network = LKU(channels, channels, (4, 2), d, width=8, scales=3, **settings)  # pyright: ignore[reportArgumentType]
    return Described(MIND([1], d), network)


def image(*size: int) -> Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(18, 25), (9, 18, 11)], ids=str)
def test_training_starts_from_the_descriptor_itself(size: tuple[int, ...]) -> None:
    pyramid, x = described(len(size), residual=True, intensity_scale=2.0), image(*size)
    features = pyramid(x)
    assert (pyramid.levels, pyramid.channels) == ((4, 2), features[0].shape[1])
    for level, feature in zip((4, 2), features, strict=True):
        assert_close(feature, 2 * average_pool(mind(x), level))
    assert_close(pyramid(x, levels=[2])[0], features[1])


def test_every_head_of_a_residual_start_has_a_gradient() -> None:
    pyramid = described(2, residual=True)
    loss = torch.stack([feature.square().mean() for feature in pyramid(image(18, 25))]).sum()
    heads = [head for name, head in pyramid.named_parameters() if ".heads." in name]
    assert len(heads) == 2 and all(g.abs().min() > 0 for g in grad(loss, heads))


def test_the_network_sees_nothing_but_the_descriptor() -> None:
    pyramid, x = described(2), image(18, 25)
    assert_close(pyramid(x), pyramid.network(mind(x)))
    assert_close(pyramid(5 - 3 * x), pyramid(x), atol=1e-3, rtol=1e-3)


def test_a_descriptor_that_does_not_fit_is_refused() -> None:
    network = LKU(12, 12, (4, 2), scales=3, width=8)
    with pytest.raises(ValueError, match=r"levels \[4, 2\], expected level 1"):
        Described(MIND((4, 2)), network)
    with pytest.raises(ValueError, match="in_channels is 12, expected 1, the channels of Intensity"):
        Described(Intensity([1]), network)


def masks(*starts: int) -> Pair:
    """Masks of 4 rows that start at these rows, and images of another shape than any score needs."""
    both = torch.zeros(2, 1, 1, 12, 9, dtype=torch.uint8)
    for mask, start in zip(both, starts, strict=True):
        mask[0, 0, start : start + 4] = 1
    return {"fixed": image(12, 9), "moving": image(12, 9), "fixed_mask": both[0], "moving_mask": both[1]}


def test_the_dice_of_masks_is_given_with_that_of_the_identity() -> None:
    u = torch.zeros(1, 2, 12, 9)
    u[:, 0] = 2
    row, labels = score_pair(u, masks(3, 5), ScoreOptions())
    assert (row["mask_dice"], row["mask_dice_identity"], labels) == (1.0, 0.5, [])
    assert to_csv([row], scores_of([row])).startswith("mask_dice,folds,sdlogj,std_logj,mask_dice_identity\n")


def test_without_both_masks_there_is_no_dice_of_masks() -> None:
    pair = masks(3, 5)
    del pair["moving_mask"]
    assert (
        not {"mask_dice", "mask_dice_identity"} & score_pair(torch.zeros(1, 2, 12, 9), pair, ScoreOptions())[0].keys()
    )


@pytest.mark.parametrize(
    ("recipe", "steps"), [("nlst_dio", "--model.layer.iterations=[6, 4]"), ("nlst_deqreg", "--model.max_steps=6")]
)
def test_a_recipe_of_nlst_trains_and_tests_a_miniature(recipe: str, steps: str, command, rows, tmp_path: Path) -> None:
    root = miniature.nlst(tmp_path / "NLST")
    shared = ["--data.split_sizes", "[2, 2, 2]", "--data.root", root, "--trainer.accelerator", "cpu", steps]
    shared += ["--trainer.default_root_dir", "run"]
    fast = [
        "--trainer.max_epochs",
        "1",
        "--trainer.num_sanity_val_steps",
        "0",
        "--trainer.enable_progress_bar",
        "false",
    ]
    command("fit", "--config", LUNGS / f"{recipe}.yaml", *shared, *fast)
    command("test", "--ckpt_path", "run/checkpoints/best.ckpt", *shared)
    found = rows(Path("run"))
    assert [row["fixed_id"] for row in found] == ["NLST_0003_0000", "NLST_0004_0000"]
    assert all(float(row["tre"]) > 0 and 0 < float(row["mask_dice"]) <= 1 and row["folds"] for row in found)
    assert Path("run/checkpoints/last.ckpt").is_file()


@pytest.mark.real
def test_the_real_lung_is_found_by_the_documented_command(command, rows, data_root: Path, monkeypatch) -> None:
    """README of the data: 4.65 mm before, 1.46 mm by elastix's B-spline."""
    folder = Path.cwd()
    configs = ["--config", LUNGS / "pair_data.yaml", "--config", LUNGS / "pair_mind.yaml"]
    # fewer steps than as it is written
    quick = ["--data.csv", LUNGS / "pair.csv", "--model.layer.iterations", "[60, 40, 5]"]
    command("test", *configs, *quick, "--data.root", data_root / "lung", "--trainer.default_root_dir", folder / "run")
    row = rows(folder / "run")[0]
    assert float(row["tre_identity"]) == pytest.approx(4.647, abs=1e-3)
    assert float(row["tre"]) < 1.8
    assert float(row["mask_dice"]) > 0.96 > float(row["mask_dice_identity"])
    assert float(row["folds"]) == 0
