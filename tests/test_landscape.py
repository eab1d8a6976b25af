"""Squares, the landscape around the truth, and pictures of features: what the studies of interpretability rest on."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scans import scene, write
from torch import Tensor
from torch.testing import assert_close

from data_modules import Squares
from dio_lightning.feature_maps import FeatureMaps, cut, feature_maps
from dio_lightning.features import FeaturePyramid, Intensity
from dio_lightning.fields import warp
from dio_lightning.landscape import energies
from dio_lightning.layers import OptimizerLayer
from dio_lightning.modules import DIO, VoxelMorph
from dio_lightning.networks import VxmUNet
from dio_lightning.transformations import Affine
from dio_lightning.updates import Descent

ROOT = Path(__file__).parents[1]
SMALL = {"size": (48, 50), "side": 8, "test_pairs": 6, "batch_size": 6}


class Halo(FeaturePyramid):
    """The distance to the image's mass, capped nowhere: what a wide receptive field can say of a lone square."""

    def __init__(self) -> None:
        super().__init__([1], 2)

    def extract(self, image: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
        size = image.shape[2:]
        axes = torch.meshgrid(*(torch.arange(n, dtype=image.dtype) for n in size), indexing="ij")
        mass = image.sum((1, 2, 3)).view(-1, 1, 1)
        return [torch.stack([x - (image[:, 0] * x).sum((1, 2)).view(-1, 1, 1) / mass for x in axes], 1)]


def dio(features: FeaturePyramid) -> DIO:
    layer = OptimizerLayer([10] * len(features.levels), Descent(0.0), transformation=Affine(), field_sigma=0.0)
    return DIO(features, layer)


@pytest.mark.parametrize("size", [(48, 50), (24, 26, 28)])
def test_squares_overlap_in_every_other_pair_and_the_displacement_is_the_truth(size) -> None:
    side = min(size) // 6
    data = Squares(size, side, test_pairs=8, batch_size=8)
    pair = next(iter(data.test_dataloader()))
    assert pair["fixed"].shape == (8, 1, *size) and data.num_labels == 1
    for image in (pair["fixed_label"], pair["moving_label"]):
        assert torch.equal(image.flatten(1).sum(1), torch.full((8,), side ** len(size)))
        for axis, extent in enumerate(size):
            inside = image.amax([i for i in range(1, image.ndim) if i != axis + 2]).nonzero()[:, 1]
            assert extent // 4 <= int(inside.min()) and int(inside.max()) < extent - extent // 4
    assert torch.equal(warp(pair["moving"], pair["displacement"]), pair["fixed"])
    both = (pair["fixed_label"] * pair["moving_label"]).flatten(1).sum(1)
    assert bool((both[::2] > side ** len(size) / 2 ** len(size)).all()) and not bool(both[1::2].any())
    assert torch.equal(Squares(size, side).draw("test", 3)["moving"], pair["moving"][3])


@pytest.mark.parametrize("wrong", [{"side": 1}, {"side": 9}, {"size": (48,)}, {"val_pairs": 0}])
def test_squares_that_cannot_be_drawn_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"expected a side of at least 2|expected at least 1"):
        Squares(**{**SMALL, **wrong})


def test_intensities_are_flat_where_squares_do_not_touch_and_a_halo_is_a_funnel() -> None:
    pair = next(iter(Squares(**SMALL).test_dataloader()))
    offsets = [-12.0, -10.0, -4.0, -2.0, 0.0, 2.0, 4.0, 10.0, 12.0]
    of_levels = energies(dio(Intensity([2, 1])), pair, offsets)
    # at level 1 |t| columns of the fixed square and as many beside it differ by 1: min(|t|, side) of side columns
    square = pair["fixed"].flatten(1)
    columns = torch.tensor(offsets).abs().clamp(max=8)[:, None] * 2 * 8 / square.shape[1]
    assert list(of_levels) == [2, 1]
    assert_close(of_levels[1], columns / square.var(1))
    assert_close(of_levels[2][[0, 1]], of_levels[2][[8, 7]])
    assert bool((of_levels[2][3] < of_levels[2][2]).all()) and torch.equal(of_levels[2][0], of_levels[2][1])
    (halo,) = energies(dio(Halo()), pair, offsets).values()
    assert bool((halo[:4].diff(dim=0) < 0).all()) and bool((halo[5:].diff(dim=0) > 0).all())
    with pytest.raises(ValueError, match="descends on no energy"):
        energies(VoxelMorph(VxmUNet(2, 2)), pair, offsets)


def test_the_study_tells_pairs_that_overlap_from_others(command, tmp_path, capsys) -> None:
    config = ROOT / "experiments/squares/intensity.yaml"
    asked = "--out", "out", "--reach", "3", "--every", "8", "--limit", "4"
    command("study", "landscape", f"raw={config}", *asked, "--", "--data.test_pairs", "4")
    printed = capsys.readouterr().out
    rows = {
        line.split("|")[2].strip(): line.split("|")[3:7] for line in printed.splitlines() if line.startswith("| raw")
    }
    assert (rows["yes"][0].strip(), rows["no"][0].strip()) == ("2", "2")
    assert float(rows["yes"][2]) > 0.95 > 0.6 > float(rows["yes"][1]) and float(rows["no"][1]) == 0
    with open(tmp_path / "out/landscape.csv", encoding="utf-8") as file:
        taken = [(int(row["level"]), float(row["offset"])) for row in csv.DictReader(file)]
    assert sorted(set(taken)) == [(n, 8.0 * k) for n in (1, 4, 8) for k in range(-3, 4)]
    assert (tmp_path / "out/landscape.png").stat().st_size > 1000


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)])
def test_components_are_those_of_numpy_and_keep_the_variance(size) -> None:
    features = {side: torch.randn(1, 5, *size) @ torch.randn(size[-1], size[-1]) for side in ("fixed", "moving")}
    features["warped"] = features["moving"]
    maps = FeatureMaps(1, {}, features)
    shown, shares = maps.principal
    both = np.concatenate([features[side][0].flatten(1).double().numpy() for side in ("fixed", "moving")], 1)
    mean = both.mean(1, keepdims=True)
    axes, values, _ = np.linalg.svd(both - mean, full_matrices=False)
    assert_close(shares, torch.from_numpy(values**2 / (values**2).sum()))
    expected = axes.T[:3] @ (features["fixed"][0].flatten(1).double().numpy() - mean)
    ours = shown["fixed"][0].flatten(1).double().numpy()
    signs = np.sign((ours * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(ours, signs * expected, atol=1e-4)


def test_warped_features_are_read_where_the_registration_says() -> None:
    pair = next(iter(Squares(**{**SMALL, "batch_size": 1}).test_dataloader()))
    fine, coarse = None, None
    for maps in feature_maps(dio(Intensity([2, 1])), pair):
        coarse, fine = (maps, fine) if maps.factor == 2 else (coarse, maps)
        before, after = maps.distances
        assert float(after) < 0.2 * float(before)
    assert coarse is not None and fine is not None and coarse.features["warped"].shape == (1, 1, 24, 25)
    assert_close(fine.features["warped"], fine.images["warped"])
    with pytest.raises(ValueError, match="compares no features"):
        list(feature_maps(VoxelMorph(VxmUNet(2, 2)), pair))


def test_a_slice_stands_upright_whatever_the_order_of_the_axes() -> None:
    body = torch.arange(24.0).view(1, 1, 2, 3, 4)  # axes to the right, front and top
    pair = {"fixed": body, "affine": torch.eye(4)[None].double()}
    upright = cut(body, pair, 1)  # type: ignore[arg-type]
    assert upright.shape == (1, 2, 4) and np.array_equal(upright[0], body[0, 0, :, 1].numpy())
    turned = body.permute(0, 1, 4, 2, 3).flip(2)  # first axis from top to foot, then right, then front
    affine = torch.tensor([[0, 1.0, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 3], [0, 0, 0, 1]]).double()[None]
    assert np.array_equal(cut(turned, {"fixed": turned, "affine": affine}, 1), upright)  # type: ignore[arg-type]


def test_the_command_writes_a_picture_a_level_and_distances_by_channel(command, tmp_path, capsys) -> None:
    config = str(ROOT / "experiments/squares/intensity.yaml")
    command("features", config, "--out", "out", "--pair", "2", "--", "--data.test_pairs", "3")
    printed = capsys.readouterr().out
    assert "test_0002_0001 onto test_0002_0000" in printed
    names = {"features.csv", "features.md", *(f"features_level{n}.png" for n in (8, 4, 1))}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    with open(tmp_path / "out/features.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["level"] for row in rows] == ["8", "4", "1"]
    assert all(float(row["distance_after"]) < float(row["distance_before"]) for row in rows)
    for out, wrong, said in (("other", "3", "counted from 0"), ("out", "2", "give --overwrite")):
        with pytest.raises(SystemExit):
            command("features", config, "--out", out, "--pair", wrong, "--", "--data.test_pairs", "3")
        assert said in capsys.readouterr().err


def test_features_of_a_pair_need_no_labels(command, tmp_path, capsys) -> None:
    for seed, name in enumerate(("one", "two")):
        write(tmp_path, f"{name}.nii.gz", scene((32, 32), seed).astype(np.float32))
    (tmp_path / "pairs.csv").write_text("fixed,moving\none.nii.gz,two.nii.gz\n")
    config = str(ROOT / "experiments/squares/intensity.yaml")
    command("features", config, "--out", "out", "--", "--data", "PairsCSV", "--data.csv", "pairs.csv")
    assert "two onto one" in capsys.readouterr().out and (tmp_path / "out/features.csv").is_file()
