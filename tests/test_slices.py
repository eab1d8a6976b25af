"""Two-dimensional slices of volumes: the right axis, the right content, the right place in the world."""

import csv
from itertools import permutations
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from miniature import image, listed, write_json
from torch.testing import assert_close
from torch.utils.data import DataLoader

from data_modules import Learn2Reg
from dio_lightning.callbacks import RegistrationScores
from dio_lightning.callbacks.writer import FieldWriter, pair_ids
from dio_lightning.fields.names import own_names
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import score_pair
from dio_lightning.scores.registered import ScoreOptions

SHAPE = (6, 8, 10)
# array axes point to the left, to the feet and to the front, as in brains resampled to FreeSurfer's order
AFFINE = np.array([[-2.0, 0.1, 0.2, 79], [0.1, 0.2, 3.0, -111], [0.2, -2.5, 0.1, 95], [0, 0, 0, 1]])
AXES = {"sagittal": 0, "coronal": 2, "axial": 1}


def write_case(root: Path, i: int, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE) -> None:
    rng = np.random.default_rng(i)
    name = f"Mini_{i:04d}_0000"
    for folder, top in (("images", 200), ("labels", 4), ("masks", 2)):
        (root / f"{folder}Tr").mkdir(parents=True, exist_ok=True)
        volume = rng.integers(0, top, shape).astype(np.uint8)
        nib.save(nib.Nifti1Image(volume, affine), root / f"{folder}Tr/{name}.nii.gz")  # pyright: ignore
    (root / "keypointsTr").mkdir(exist_ok=True)
    np.savetxt(root / f"keypointsTr/{name}.csv", rng.uniform(0, 5, (3, len(shape))), delimiter=",")


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    """Six subjects: the last two are for validation and test, the others are drawn."""
    for i in range(1, 7):
        write_case(tmp_path, i)
    return hold_out(tmp_path)


def hold_out(root: Path) -> Path:
    """The folder, with subjects 5 and 6 as its validation pair."""
    write_json(root, pairings="unpaired", registration_val=listed((image(5), image(6))))
    return root


def ready(root: Path, stage: str | None = None, **settings: object) -> Learn2Reg:
    module = Learn2Reg(str(root), **{"plane": "coronal", "normalise": "none"} | settings)  # type: ignore[arg-type]
    module.setup(stage)
    return module


def ids(loader: DataLoader) -> list[tuple[str, str]]:
    return [pair for batch in loader for pair in zip(batch["fixed_id"], batch["moving_id"], strict=True)]


def stored(root: Path, folder: str, name: str) -> np.ndarray:
    return np.asarray(nib.load(root / f"{folder}Tr/{name}.nii.gz").dataobj)  # type: ignore[attr-defined]


@pytest.mark.parametrize("plane", AXES)
@pytest.mark.parametrize("cache", [True, False])
def test_slices_are_those_of_the_volumes(brains: Path, plane: str, cache: bool) -> None:
    axis = AXES[plane]
    batches = [*ready(brains, "test", plane=plane, cache=cache).test_dataloader()]
    assert len(batches) == SHAPE[axis]
    for index, batch in enumerate(batches):
        for side, name in (("fixed", "Mini_0005_0000"), ("moving", "Mini_0006_0000")):
            assert batch[f"{side}_id"] == [f"{name}_s{index:03d}"]
            for key, folder in ((side, "images"), (f"{side}_label", "labels"), (f"{side}_mask", "masks")):
                expected = torch.from_numpy(np.take(stored(brains, folder, name), index, axis))
                assert batch[key].is_contiguous() and torch.equal(batch[key][0, 0], expected.to(batch[key].dtype))
        assert not [key for key in batch if "points" in key]
    assert batches[0]["fixed"].dtype == torch.float32 and batches[0]["fixed_label"].dtype == torch.int16


@pytest.mark.parametrize("plane", AXES)
def test_a_slice_keeps_its_place_in_the_world(brains: Path, plane: str) -> None:
    axis = AXES[plane]
    kept = [a for a in range(3) if a != axis]
    for index, batch in enumerate(ready(brains, "test", plane=plane).test_dataloader()):
        assert_close(batch["spacing"], torch.from_numpy(np.linalg.norm(AFFINE[:3, kept], axis=0)).float()[None])
        assert batch["affine"].dtype == torch.float64
        for point in ((0, 0), (3, 2), (1, 5)):
            voxel = np.insert(np.array(point, float), axis, index)
            world = batch["affine"][0].numpy() @ [*point, 0, 1]
            np.testing.assert_allclose(world, AFFINE @ [*voxel, 1])


def test_training_draws_all_slices_of_all_candidates(brains: Path) -> None:
    module = ready(brains, "fit", slices=(2, 6), every=3)
    assert module.spatial_dims == 2
    assert len(module.dataset("train")) == 12 * 5  # type: ignore[arg-type]
    assert len(ids(module.train_dataloader())) == module.pairs_per_epoch() == 4
    everything = ids(ready(brains, "fit", slices=(2, 6), every=3, steps_per_epoch=60).train_dataloader())
    assert len(set(everything)) == 60
    assert {fixed[-5:] for fixed, _ in everything} == {f"_s{i:03d}" for i in range(2, 7)}
    assert all(fixed[-5:] == moving[-5:] and fixed != moving for fixed, moving in everything)
    assert {name[:9] for pair in everything for name in pair} == {f"Mini_{i:04d}" for i in range(1, 5)}


def test_an_epoch_of_slices_is_a_function_of_the_seed(brains: Path) -> None:
    def epoch(seed: int) -> list[tuple[str, str]]:
        return ids(ready(brains, "fit", seed=seed, steps_per_epoch=8).train_dataloader())

    assert epoch(0) == epoch(0) != epoch(1)


@pytest.mark.parametrize(("every", "found"), [(1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [1, 4, 7]), (7, [1, 8]), (9, [1])])
def test_every_thins_validation_test_and_prediction(brains: Path, every: int, found: list[int]) -> None:
    module = ready(brains, slices=(1, 8), every=every)
    expected = [(f"Mini_0005_0000_s{i:03d}", f"Mini_0006_0000_s{i:03d}") for i in found]
    for loader in (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader()):
        assert ids(loader) == expected


def test_slices_share_the_cached_volume(brains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready(brains)
    monkeypatch.setattr(module.subjects, "read", None)
    assert len(ids(module.train_dataloader())) == 4 and len(ids(module.val_dataloader())) == 10
    shapes = {tuple(subject["image"].shape) for subject in module.subjects._cached.values()}
    assert len(module.subjects._cached) == 6 and shapes == {(1, *SHAPE)}


def test_crops_and_flips_are_those_of_the_slice(brains: Path) -> None:
    torch.manual_seed(0)
    for batch in ready(brains, "fit", crop=(4, 5), flips=(1,), steps_per_epoch=6).train_dataloader():
        assert batch["fixed"].shape == batch["moving_label"].shape == (1, 1, 4, 5)
        # corners are looked up in the stored volume through the world
        for point in ((0, 0), (3, 4)):
            voxel = np.linalg.inv(AFFINE) @ batch["affine"][0].numpy() @ [*point, 0, 1]
            there = tuple(np.round(voxel[:3]).astype(int))
            assert there[2] == int(batch["fixed_id"][0][-3:])
            volume = stored(brains, "images", batch["fixed_id"][0][:-5])
            assert batch["fixed"][(0, 0, *point)] == volume[there]


def test_names_of_written_fields_are_unique(brains: Path) -> None:
    writer, data = FieldWriter(), ready(brains, "predict")
    batches = [*data.predict_dataloader()]
    assert len({writer._own(pair_ids(batch, 0, ""), 1)[0] for batch in batches}) == len(batches) == 10
    assert len({own[0] for own in own_names(data.pair_ids("test")).values()}) == 10


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"plane": "frontal"}, "plane is 'frontal', expected one of sagittal, coronal, axial"),
        ({"slices": (5, 4)}, r"slices is \[5, 4\], expected the first and the last index"),
        ({"slices": (-1, 4)}, r"slices is \[-1, 4\], expected the first and the last index"),
        ({"slices": (0, 10)}, r"slices is \[0, 10\], expected indices from 0 to 9: .*0001_0000\.nii\.gz has 10 voxels"),
        ({"every": 0}, "every is 0, expected an integer of at least 1"),
        ({"plane": None, "slices": (0, 1)}, r"slices is \(0, 1\) and every 1, expected a plane"),
        ({"plane": None, "every": 2}, "slices is None and every 2, expected a plane"),
        ({"flips": (2,)}, r"flips \(2,\), expected the two axes of a slice"),
        ({"crop": (4, 4, 4)}, r"crop is \(4, 4, 4\) and flips \(\), expected the two axes of a slice"),
    ],
)
def test_settings_are_checked(brains: Path, settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ready(brains, **settings)


def test_cases_must_agree_in_the_axis_and_its_size(tmp_path: Path) -> None:
    for i in range(1, 7):
        # the last two are a pair of their own, so nothing but the plane asks for one grid
        write_case(tmp_path, i, (6, 8, 9) if i > 4 else SHAPE)
    hold_out(tmp_path)
    text = r"0005_0000\.nii\.gz has 9 coronal slices along axis 2, expected 10 along axis 2 as in .*0001_0000\.nii\.gz"
    with pytest.raises(ValueError, match=text):
        ready(tmp_path, "fit")
    assert len(ids(ready(tmp_path, "test").test_dataloader())) == 9
    for i in (5, 6):
        write_case(tmp_path, i, (6, 10, 8), AFFINE[:, [0, 2, 1, 3]])
    with pytest.raises(ValueError, match=r"has 10 coronal slices along axis 1, expected 10 along axis 2 as in"):
        ready(tmp_path, "fit")


def test_slices_need_volumes_whose_affine_shows_the_plane(tmp_path: Path) -> None:
    for i in range(1, 5):
        write_case(tmp_path, i, (6, 8))
    with pytest.raises(ValueError, match=r"0001_0000\.nii\.gz has two axes, expected a volume to cut into coronal"):
        ready(tmp_path, "fit")
    tilted = np.array([[2.0, 0, 0, 0], [0, 1.5, -1.5, 0], [0, 1.5, 1.5, 0], [0, 0, 0, 1]])
    for i in range(1, 5):
        write_case(tmp_path, i, SHAPE, tilted)
    assert len(ids(ready(tmp_path, "test", plane="sagittal").test_dataloader())) == 6
    with pytest.raises(ValueError, match=r"expected one array axis within 45 degrees of superior-inferior to cut"):
        ready(tmp_path, "fit", plane="axial")


def test_small_labels_do_not_count() -> None:
    fixed = torch.zeros(1, 1, 12, 12, dtype=torch.int16)
    moving = fixed.clone()
    fixed[..., 0:4, 0:4], moving[..., 1:5, 0:4] = 1, 1
    fixed[..., 6:8, 0:2], moving[..., 6:12, 0:2] = 2, 2  # 4 and 12 voxels
    fixed[..., 0:3, 8:11], moving[..., 0:3, 8:11] = 3, 3  # 9 and 9
    pair = Pair(fixed=fixed.float(), moving=moving.float(), fixed_label=fixed, moving_label=moving)
    still = torch.zeros(1, 2, 12, 12)
    expected = {1: [0.75, 0.5, 1], 5: [0.75, 1], 9: [0.75, 1], 10: [0.75]}
    for least, dice in expected.items():
        row, labels = score_pair(still, pair, ScoreOptions(min_voxels=least))
        assert [label["dice"] for label in labels] == pytest.approx(dice)
        assert row["dice"] == row["dice_identity"] == pytest.approx(np.mean(dice))
    assert score_pair(still, pair, ScoreOptions())[0]["hd"] == pytest.approx((1 + 4 + 0) / 3)
    assert score_pair(still, pair, ScoreOptions(min_voxels=5))[0]["hd"] == pytest.approx(0.5)
    row, labels = score_pair(still, pair, ScoreOptions(min_voxels=17))
    assert not labels and np.isnan(float(row["dice"])) and np.isnan(float(row["hd95"]))
    with pytest.raises(ValueError, match="min_voxels must be at least 1, not 0"):
        RegistrationScores(min_voxels=0)


class Identity(LightningModule):
    """Displaces nothing."""

    def test_step(self, pair: Pair, index: int) -> dict[str, torch.Tensor]:
        return {"displacement": torch.zeros(len(pair["fixed"]), 2, *pair["fixed"].shape[2:])}


def plain_dice(fixed: np.ndarray, moving: np.ndarray, least: int) -> float:
    """Mean over the labels that have `least` pixels in both."""
    scores = []
    for label in range(1, int(fixed.max()) + 1):
        one, two = fixed == label, moving == label
        if min(one.sum(), two.sum()) >= least:
            scores.append(2 * (one & two).sum() / (one.sum() + two.sum()))
    return float(np.mean(scores))


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_real_coronal_slices_before_registration(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "brains_2mm"
    module = Learn2Reg(str(root), plane="coronal", slices=(40, 75), every=7, batch_size=6)
    scores = RegistrationScores(surface=False, min_voxels=10, print_table=False)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, callbacks=[scores]
    )
    found = trainer.test(Identity(), module, verbose=False)[0]
    people = {i: stored(root, "labels", f"SynthSegBrain_{i:04d}_0000") for i in (13, 14, 15, 16)}
    expected = {
        f"SynthSegBrain_{i:04d}_0000_s{k:03d},SynthSegBrain_{j:04d}_0000_s{k:03d}": plain_dice(
            people[i][:, :, k], people[j][:, :, k], 10
        )
        for i, j in permutations(people, 2)
        for k in range(40, 76, 7)
    }
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        rows = {f"{row['fixed_id']},{row['moving_id']}": float(row["dice_identity"]) for row in csv.DictReader(file)}
    assert len(rows) == 72 and rows == pytest.approx(expected)
    assert found["test/dice_identity"] == found["test/dice"] == pytest.approx(0.6117, abs=5e-4)
    assert next(iter(cast(DataLoader, module.test_dataloader())))["fixed"].shape == (6, 1, 80, 96)
