"""Data modules: folders in Learn2Reg's layout, every check's sentence, synthetic truth, seeded loaders."""

import json
import os
import pickle
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from miniature import AFFINE, SHAPE, image, listed, write, write_case, write_json, write_points
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from data_modules import Learn2Reg, SyntheticPairs
from data_modules.base import collate
from data_modules.drawing import PairSampler
from data_modules.sources.synthetic import generator
from dio_lightning.fields import jacobian_determinant, warp
from dio_lightning.pair import Pair


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    """Unpaired subjects as in OASIS: `training` lists everybody, validation and test are pairs of them."""
    for i in range(1, 8):
        write_case(tmp_path, f"Mini_{i:04d}_0000")
    entries = [{"image": image(i), "label": image(i).replace("images", "labels")} for i in range(1, 8)]
    write_json(
        tmp_path,
        pairings="unpaired",
        labels={"0": {"0": "background", "1": "cortex", "3": "ventricle"}},
        training=entries,
        training_paired_images=[],
        registration_val=listed((image(5), image(6))),
        registration_test=listed((image(7), image(6)), (image(6), image(7))),
    )
    return tmp_path


@pytest.fixture
def lungs(tmp_path: Path) -> Path:
    """Listed pairs with landmarks as in NLST; the JSON gives the landmarks an image's extension."""
    entries = []
    for i in (1, 2):
        for modality in (0, 1):
            write_case(tmp_path, f"Mini_{i:04d}_{modality:04d}", points=5)
            path = image(i, modality)
            entries.append({"image": path, "keypoints": path.replace("images", "keypoints")})
    write_json(
        tmp_path,
        pairings="paired",
        training=entries,
        training_paired_images=listed((image(1), image(1, 1))),
        registration_val=listed((image(2), image(2, 1))),
    )
    return tmp_path


def ids(loader: DataLoader) -> list[tuple[str, str]]:
    return [pair for batch in loader for pair in zip(batch["fixed_id"], batch["moving_id"], strict=True)]


def ready(root: Path, stage: str | None = "fit", **settings: object) -> Learn2Reg:
    module = Learn2Reg(str(root), **settings)  # type: ignore[arg-type]
    module.setup(stage)
    return module


def sentences(root: Path, stage: str | None = None, error: type[Exception] = ValueError, **settings: object) -> str:
    with pytest.raises(error) as caught:
        ready(root, stage, **settings)
    return str(caught.value)


def test_a_batch_has_every_key_of_the_contract(lungs: Path) -> None:
    batch = next(iter(ready(lungs, normalise="window", clip=(0, 100)).train_dataloader()))
    for side in ("fixed", "moving"):
        assert batch[side].shape == (1, 1, *SHAPE) and batch[side].dtype == torch.float32
        assert batch[side].min() == 0 and batch[side].max() == 1
        assert batch[f"{side}_label"].shape == (1, 1, *SHAPE) and batch[f"{side}_label"].dtype == torch.int16
        assert batch[f"{side}_mask"].shape == (1, 1, *SHAPE) and batch[f"{side}_mask"].dtype == torch.uint8
        assert batch[f"{side}_points"].shape == (1, 3, 5) and batch[f"{side}_points"].dtype == torch.float32
    assert_close(batch["spacing"], torch.tensor([[2.0, 2.0, 3.0]]))
    assert_close(batch["affine"], torch.from_numpy(AFFINE)[None])
    assert (batch["fixed_id"], batch["moving_id"]) == (["Mini_0001_0000"], ["Mini_0001_0001"])
    rows = np.loadtxt(lungs / "keypointsTr/Mini_0001_0001.csv", delimiter=",")
    assert_close(batch["moving_points"][0].T.double(), torch.from_numpy(rows), atol=1e-4, rtol=0)


def test_storage_order_and_labels_are_kept(brains: Path) -> None:
    batch = next(iter(ready(brains, "test", normalise="none").test_dataloader()))
    stored = np.asarray(nib.load(brains / "imagesTr/Mini_0007_0000.nii.gz").dataobj)  # type: ignore[attr-defined]
    assert_close(batch["fixed"][0, 0], torch.from_numpy(stored).float())
    stored = np.asarray(nib.load(brains / "labelsTr/Mini_0007_0000.nii.gz").dataobj)  # type: ignore[attr-defined]
    assert_close(batch["fixed_label"][0, 0], torch.from_numpy(stored).short())
    kept = next(iter(ready(brains, "test", labels=[1, 3]).test_dataloader()))["fixed_label"]
    assert kept.unique().tolist() == [0, 1, 3]
    assert_close(kept[0, 0], torch.from_numpy(np.where(stored == 2, 0, stored)).short())


@pytest.mark.parametrize("normalise", ["max", "percentile"])
def test_intensities_fill_the_unit_interval(brains: Path, normalise: str) -> None:
    fixed = next(iter(ready(brains, "validate", normalise=normalise).val_dataloader()))["fixed"]
    assert_close(torch.stack([fixed.min(), fixed.max()]), torch.tensor([0.0, 1.0]))


def test_unpaired_training_never_draws_held_out_subjects(brains: Path) -> None:
    module = ready(brains, pairing="all")
    drawn = ids(module.train_dataloader())
    assert len(drawn) == len(set(drawn)) == 12 and all(fixed != moving for fixed, moving in drawn)
    assert {case for pair in drawn for case in pair} == {f"Mini_{i:04d}_0000" for i in (1, 2, 3, 4)}
    assert ids(module.val_dataloader()) == [("Mini_0005_0000", "Mini_0006_0000")]
    assert ids(ready(brains, "test").test_dataloader()) == ids(ready(brains, "predict").predict_dataloader())
    assert len(Learn2Reg(str(brains)).train_dataloader()) == 4
    assert len(Learn2Reg(str(brains), pairing="ordered").train_dataloader()) == 3
    assert len(Learn2Reg(str(brains), steps_per_epoch=20, batch_size=2).train_dataloader()) == 20


def test_names_and_numbers_come_from_the_json(brains: Path) -> None:
    module = Learn2Reg(str(brains))
    assert module.spatial_dims == 3 and module.num_labels == 3
    assert module.label_names == {0: "background", 1: "cortex", 3: "ventricle"}
    assert Learn2Reg(str(brains), labels=[1]).label_names == {0: "background", 1: "cortex"}
    assert Learn2Reg(str(brains), labels=[1]).num_labels == 1


def test_without_test_pairs_the_validation_pairs_are_tested(lungs: Path) -> None:
    assert ids(ready(lungs, "test").test_dataloader()) == [("Mini_0002_0000", "Mini_0002_0001")]


def test_another_key_may_hold_the_test_pairs(brains: Path) -> None:
    content = json.loads((brains / "Mini_dataset.json").read_text())
    write_json(brains, **content | {"domains": {"t2": listed((image(1), image(2)))}})
    assert ids(ready(brains, "test", test_split="domains/t2").test_dataloader()) == [
        ("Mini_0001_0000", "Mini_0002_0000")
    ]
    text = sentences(brains, test_split="domains/t1")
    assert "no pairs under 'domains/t1', expected one of" in text and "'domains/t2'" in text


def test_a_folder_without_json_unpaired(tmp_path: Path) -> None:
    for i in range(1, 7):
        write_case(tmp_path, f"Mini_{i:04d}_0000")
    module = ready(tmp_path, None)
    assert ids(module.val_dataloader()) == [("Mini_0003_0000", "Mini_0004_0000")]
    assert ids(module.test_dataloader()) == [("Mini_0005_0000", "Mini_0006_0000")]
    assert {c.id for pair in module.pairs("train") for c in pair} == {f"Mini_{i:04d}_0000" for i in (1, 2)}
    assert module.num_labels == 3 and module.label_names == {}


def test_a_folder_without_json_paired(tmp_path: Path) -> None:
    for i in range(1, 4):
        for modality in (0, 1):
            write_case(tmp_path, f"Mini_{i:04d}_{modality:04d}", points=4)
    module = ready(tmp_path)
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    for i, loader in enumerate(loaders, start=1):
        assert ids(loader) == [(f"Mini_{i:04d}_0000", f"Mini_{i:04d}_0001")]


def test_missing_keys_are_filled_from_file_names(brains: Path) -> None:
    write_json(brains, registration_val=listed((image(1), image(2))))
    module = ready(brains)
    assert {case.id for case in module.layout.cases} == {f"Mini_{i:04d}_0000" for i in range(3, 8)}
    assert "fixed_label" in next(iter(module.train_dataloader()))


def test_a_tiny_folder_validates_on_its_training_pairs(tmp_path: Path) -> None:
    write_case(tmp_path, "Mini_0001_0000")
    write_case(tmp_path, "Mini_0001_0001")
    with pytest.warns(UserWarning, match="has the same pairs for training, validation and test: scores are"):
        module = ready(tmp_path)
    assert ids(module.val_dataloader()) == ids(module.train_dataloader())


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1)])
def test_two_dimensional_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for i in range(1, 5):
        write_case(tmp_path, f"Mini_{i:04d}_0000", shape=shape)
        write_points(tmp_path, f"Mini_{i:04d}_0000", np.array([[1.0, 2.0], [7.0, 8.0]]))
    module = ready(tmp_path)
    batch = next(iter(module.train_dataloader()))
    assert module.spatial_dims == 2
    assert batch["fixed"].shape == batch["fixed_label"].shape == (1, 1, 8, 9)
    assert batch["fixed_points"].shape == (1, 2, 2) and batch["affine"].shape == (1, 4, 4)
    assert_close(batch["spacing"], torch.tensor([[2.0, 2.0]]))


def test_uncached_cases_are_checked_when_read(brains: Path) -> None:
    write(brains / "labelsTr/Mini_0005_0000.nii.gz", np.full(SHAPE, -3, np.int16))
    module = ready(brains, "validate", cache=False)
    with pytest.raises(ValueError, match=r"labelsTr/Mini_0005_0000\.nii\.gz has the value -3, expected int"):
        next(iter(module.val_dataloader()))


def test_a_case_is_read_once(brains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready(brains)
    monkeypatch.setattr(module.subjects, "read", None)
    assert len(ids(module.train_dataloader())) == 4 and len(ids(module.val_dataloader())) == 1


def break_image(root: Path) -> None:
    data = np.zeros(SHAPE, np.float32)
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    write(root / image(5), data)


def break_points(root: Path, row: str) -> None:
    lines = ["1.0,1.0,1.0"] * 4
    (root / "keypointsTr/Mini_0002_0001.csv").write_text("\n".join([*lines, row]))


FAILURES = {
    "no image": (
        lambda root: (root / image(5)).unlink(),
        "imagesTr/Mini_0005_0000.nii.gz does not exist, expected the image of a case",
    ),
    "no label": (
        lambda root: (root / "labelsTr/Mini_0002_0000.nii.gz").unlink(),
        "labelsTr/Mini_0002_0000.nii.gz does not exist, expected the label of a case",
    ),
    "not a volume": (
        lambda root: (root / image(5)).write_text("no"),
        "imagesTr/Mini_0005_0000.nii.gz cannot be read",
    ),
    "cut off": (
        lambda root: (root / image(5)).write_bytes((root / image(5)).read_bytes()[:-20]),
        "imagesTr/Mini_0005_0000.nii.gz is cut off (Compressed file ended before",
    ),
    "NaN": (break_image, "Mini_0005_0000.nii.gz has 2 voxels that are NaN or infinite, expected finite intensities"),
    "label shape": (
        lambda root: write(root / "labelsTr/Mini_0005_0000.nii.gz", np.zeros((8, 9, 9), np.uint8)),
        "labelsTr/Mini_0005_0000.nii.gz has shape 8x9x9, expected 8x9x10 as in",
    ),
    "mask affine": (
        lambda root: write(root / "masksTr/Mini_0005_0000.nii.gz", np.ones(SHAPE, np.uint8), np.eye(4)),
        "masksTr/Mini_0005_0000.nii.gz has the affine [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], "
        "[0.0, 0.0, 1.0, 0.0]], expected [[-2.0, 0.0, 0.0, 0.0]",
    ),
    "fraction": (
        lambda root: write(root / "labelsTr/Mini_0005_0000.nii.gz", np.full(SHAPE, 1.5, np.float32)),
        "labelsTr/Mini_0005_0000.nii.gz has the value 1.5, expected integers from 0 to 32767",
    ),
    "empty mask": (
        lambda root: write(root / "masksTr/Mini_0005_0000.nii.gz", np.zeros(SHAPE, np.uint8)),
        "masksTr/Mini_0005_0000.nii.gz is 0 everywhere, expected a mask with voxels above 0",
    ),
    "pair grid": (
        lambda root: write_case(root, "Mini_0006_0000", shape=(8, 9, 11)),
        "imagesTr/Mini_0006_0000.nii.gz has shape 8x9x11, expected 8x9x10 as in",
    ),
    "no mask": (
        lambda root: (root / "masksTr/Mini_0006_0000.nii.gz").unlink(),
        "imagesTr/Mini_0006_0000.nii.gz has no mask, expected one as for Mini_0005_0000 of the same split",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_one_sentence_per_failure(brains: Path, name: str) -> None:
    break_it, sentence = FAILURES[name]
    break_it(brains)
    text = sentences(brains, error=FileNotFoundError if "not exist" in sentence else ValueError)
    assert sentence in text and len(text.splitlines()) <= 2


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            "1.0,1.0,9.5",
            "1 of 5 landmarks outside of the image of 8x9x10 voxels, the first in row 5: (1, 1, 9.5)",
        ),
        (
            "1.0,nan,1.0",
            "1 of 5 landmarks outside of the image of 8x9x10 voxels, the first in row 5: (1, nan, 1)",
        ),
        ("x,y,z", "Mini_0002_0001.csv cannot be read as landmarks"),
        ("", "Mini_0002_0000.csv, with which it is paired"),
    ],
)
def test_landmarks_are_checked(lungs: Path, row: str, sentence: str) -> None:
    break_points(lungs, row)
    assert sentence in sentences(lungs, "validate")
    assert sentence in sentences(lungs, "validate", cache=False)


def test_at_most_five_problems_are_told(brains: Path) -> None:
    for i in range(1, 8):
        (brains / image(i)).unlink()
    lines = sentences(brains, error=FileNotFoundError).splitlines()
    assert len(lines) == 6 and lines[-1] == "and 2 more"


def test_a_folder_must_exist_and_have_one_json(tmp_path: Path) -> None:
    assert "is no folder, expected a Learn2Reg folder" in sentences(tmp_path / "none", error=FileNotFoundError)
    text = sentences(tmp_path, error=FileNotFoundError)
    assert "has no images, expected a *_dataset.json that lists some, or imagesTr with .nii.gz" in text
    assert "does not exist, expected the dataset JSON" in sentences(tmp_path, error=FileNotFoundError, json="a.json")
    write_json(tmp_path)
    (tmp_path / "Other_dataset.json").write_text("[]")
    assert "has 2 dataset files (Mini_dataset.json, Other_dataset.json), expected one" in sentences(tmp_path)
    assert "holds a list, expected an object" in sentences(tmp_path, json="Other_dataset.json")
    (tmp_path / "Other_dataset.json").write_text("{")
    assert "Other_dataset.json is not valid JSON" in sentences(tmp_path, json="Other_dataset.json")
    write_json(tmp_path, registration_val=["x"])
    text = sentences(tmp_path, json="Mini_dataset.json")
    assert "entry 0 of 'registration_val' is 'x', expected the keys 'fixed' and 'moving'" in text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"normalise": "window"}, "normalise='window' needs clip"),
        ({"clip": (5, 1)}, r"clip is \(5, 1\), expected a least value below the largest"),
        ({"labels": [0]}, r"labels is \[0\], expected 'all' or a list"),
        ({"batch_size": 0}, "batch_size is 0, expected an integer of at least 1"),
    ],
)
def test_settings_are_checked(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Learn2Reg("anywhere", **settings)


def test_pairs_of_different_shape_do_not_share_a_batch() -> None:
    samples = [{"fixed": torch.zeros(1, n, 4), "fixed_id": str(n), "moving_id": "m"} for n in (3, 4)]
    with pytest.raises(ValueError, match=r"pairs 3 and 4 cannot share a batch: fixed has shape \(1, 3, 4\) and"):
        collate(samples)


def drawn(seed: int, epoch: int) -> list[int]:
    sampler = PairSampler(cast(Dataset, range(10)), 15, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    assert drawn(0, 1) == drawn(0, 1)
    assert drawn(0, 0) != drawn(0, 1) != drawn(1, 0)
    assert drawn(0, 1) != drawn(1, 1)
    assert len(drawn(0, 0)) == 15 and sorted(drawn(0, 0)[:10]) == list(range(10))


def test_two_ranks_share_the_epoch() -> None:
    one, two = (list(PairSampler(cast(Dataset, range(10)), 5, 3, replicas=2, rank=rank)) for rank in (0, 1))
    assert sorted([*one, *two]) == list(range(10))


def test_two_ranks_test_every_pair(brains: Path) -> None:
    loader = ready(brains, "test").test_dataloader()
    parts = [
        ids(DataLoader(loader.dataset, sampler=DistributedSampler(loader.dataset, 2, rank), collate_fn=collate))
        for rank in (0, 1)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(ids(loader))


class Seen(LightningModule):
    """Notes what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[str] = []

    def training_step(self, pair: Pair, index: int) -> torch.Tensor:
        self.seen += [f"{self.current_epoch} {name}" for name in pair.get("fixed_id", [])]
        return self.weight * pair["fixed"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(epochs: int, folder: Path, checkpoint: str | None = None) -> tuple[Seen, str]:
    module, path = Seen(), str(folder / f"{epochs}.ckpt")
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, SyntheticPairs((16, 16), train_pairs=6), ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(path)
    return module, path


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_sees_what_the_first_would_have_seen(tmp_path: Path) -> None:
    whole, _ = trained(2, tmp_path)
    first, path = trained(1, tmp_path)
    second, _ = trained(2, tmp_path, path)
    assert whole.seen == first.seen + second.seen
    assert [name[2:] for name in whole.seen[:6]] != [name[2:] for name in whole.seen[6:]]


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_travel_to_other_processes(brains: Path, workers: int) -> None:
    module = ready(brains, num_workers=workers)
    assert ids(module.val_dataloader()) == [("Mini_0005_0000", "Mini_0006_0000")]
    copy = pickle.loads(pickle.dumps(module.train_dataloader().dataset))
    assert len(copy) == 12 and copy[3]["fixed_id"] == cast(list, module.train_dataloader().dataset)[3]["fixed_id"]


def test_synthetic_pairs_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """E10: all pairs were kept, however many."""
    data = SyntheticPairs((16, 16), train_pairs=20)
    size = sum(v.nbytes for v in data.draw("train", 0).values() if isinstance(v, torch.Tensor))
    monkeypatch.setattr("data_modules.sources.drawn.KEPT", 3.5 * size)
    pairs = cast(list, data.dataset("train"))
    first = [pairs[index] for index in range(20)]
    again = [pairs[index] for index in range(20)]
    assert sum(a["fixed"] is b["fixed"] for a, b in zip(first, again, strict=True)) == 3
    assert all(torch.equal(a["fixed"], b["fixed"]) for a, b in zip(first, again, strict=True))


@pytest.fixture(params=[(48, 48), (24, 20, 16)], ids=["2d", "3d"])
def synthetic(request: pytest.FixtureRequest) -> SyntheticPairs:
    return SyntheticPairs(request.param, train_pairs=4, val_pairs=3, test_pairs=3)


def test_the_synthetic_displacement_is_the_truth(synthetic: SyntheticPairs) -> None:
    for batch in synthetic.val_dataloader():
        u = batch["displacement"]
        assert torch.equal(warp(batch["moving_label"], u, "nearest"), batch["fixed_label"])
        assert jacobian_determinant(u).min() > 0.2
        assert 0.9 < u.norm(dim=1).square().mean().sqrt() < 3.001
        index = (0, slice(None), *batch["fixed_points"][0].long())
        assert_close(batch["moving_points"][0], batch["fixed_points"][0] + u[index])
        assert 0 < batch["fixed_label"].max() <= synthetic.num_labels == 6


def test_a_synthetic_batch_has_every_key(synthetic: SyntheticPairs) -> None:
    synthetic.batch_size = 3
    batch, d, size = next(iter(synthetic.test_dataloader())), synthetic.spatial_dims, synthetic.size
    for key in ("fixed", "moving", "fixed_label", "moving_label", "fixed_mask", "moving_mask"):
        assert batch[key].shape == (3, 1, *size)
    assert batch["fixed"].min() == 0 and batch["fixed"].max() == 1
    assert batch["fixed_label"].dtype == torch.int16 and batch["fixed_mask"].dtype == torch.uint8
    assert batch["displacement"].shape == (3, d, *size) and batch["fixed_points"].shape == (3, d, 16)
    assert_close(batch["spacing"], torch.ones(3, d))
    assert batch["affine"].shape == (3, 4, 4) and batch["affine"].dtype == torch.float64
    assert batch["fixed_id"] == ["test_0000_0000", "test_0001_0000", "test_0002_0000"]


def test_synthetic_pairs_depend_on_seed_split_and_index_alone() -> None:
    def image_of(seed: int, split: str, index: int) -> torch.Tensor:
        return SyntheticPairs((16, 16), seed=seed).draw(split, index)["moving"]  # type: ignore[arg-type]

    first = image_of(0, "train", 0)
    torch.manual_seed(5)
    assert torch.equal(first, image_of(0, "train", 0))
    for other in [(0, "train", 1), (0, "val", 0), (0, "test", 0), (1, "train", 0)]:
        assert not torch.equal(first, image_of(*other))


def correlation(module: SyntheticPairs) -> float:
    """Mean correlation, inside the body, of the fixed image with the moving one at the true displacement."""
    scores = []
    for batch in module.test_dataloader():
        inside = batch["fixed_mask"] > 0
        values = [batch["fixed"][inside], warp(batch["moving"], batch["displacement"])[inside]]
        scores.append(torch.corrcoef(torch.stack(values))[0, 1])
    return float(torch.stack(scores).mean())


def test_random_contrast_misleads_and_shared_contrast_does_not() -> None:
    assert correlation(SyntheticPairs(contrast="shared", test_pairs=8)) > 0.6
    assert abs(correlation(SyntheticPairs(contrast="random", test_pairs=8))) < 0.4


@pytest.mark.parametrize("settings", [{"size": (8, 48)}, {"size": (16,)}, {"num_labels": 0}, {"smoothness": 0}])
def test_synthetic_settings_are_checked(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"expected two or three extents|at least 1|above 0"):
        SyntheticPairs(**settings)


def test_generators_differ_by_key() -> None:
    assert generator("a", 1).initial_seed() == generator("a", 1).initial_seed() != generator("a", 2).initial_seed()


def real(name: str) -> Path:
    folder = os.environ.get("DIO_DATA")
    if folder is None or not (Path(folder) / name).is_dir():
        pytest.skip(f"DIO_DATA is unset or has no folder {name}")
    return Path(folder) / name


@pytest.mark.real
def test_real_brains() -> None:
    module = ready(real("brains_2mm"), None)
    assert module.num_labels == 35 and module.spatial_dims == 3 and module.label_names[17] == "Left-VentralDC"
    assert [len(module.pairs(split)) for split in ("train", "val", "test")] == [90, 2, 12]
    batch = next(iter(module.train_dataloader()))
    assert batch["fixed"].shape == (1, 1, 80, 96, 112) and batch["fixed_label"].max() == 35
    assert_close(batch["spacing"], torch.full((1, 3), 2.0))


@pytest.mark.real
def test_real_lungs() -> None:
    module = ready(real("lung"), None, normalise="window", clip=(-1000, 500))
    batch = next(iter(module.test_dataloader()))
    error = (batch["fixed_points"] - batch["moving_points"]) * batch["spacing"][:, :, None]
    assert_close(error.norm(dim=1).mean(), torch.tensor(5.63), atol=0.01, rtol=0)
    assert batch["fixed"].max() <= 1 and batch["fixed_mask"].unique().tolist() == [0, 1]
