"""OASIS and NLST as downloaded: who is trained on, who is tested, in which pairs; scores of half resolution."""

from pathlib import Path

import pytest
import torch
from miniature import SHAPE, change_json, image, listed, nlst, oasis
from torch.testing import assert_close

from data_modules import NLST, OASIS, Learn2Reg
from data_modules.layout import CasePair
from dio_lightning.fields import identity, resize
from dio_lightning.implicit import Solution
from dio_lightning.losses import at_size
from dio_lightning.metrics import tre
from dio_lightning.modules import RegistrationModule


def numbers(pairs: list[CasePair]) -> list[tuple[int, int]]:
    return [(int(fixed.id.split("_")[1]), int(moving.id.split("_")[1])) for fixed, moving in pairs]


def subjects(module: Learn2Reg) -> list[int]:
    """Those that training draws from, in every ordered pair of two."""
    assert not module.layout.train
    return [int(case.id.split("_")[1]) for case in module.layout.cases]


def touch(root: Path, task: str, count: int, modalities: int) -> None:
    """Empty files: a layout opens no image."""
    (root / "imagesTr").mkdir()
    for i in range(1, count + 1):
        for modality in range(modalities):
            (root / image(i, modality, task)).touch()


def test_oasis_papers_split(tmp_path: Path) -> None:
    touch(tmp_path, "OASIS", 414, 1)
    module = OASIS(str(tmp_path), split="paper")
    assert subjects(module) == [*range(1, 301)] and len(module.pairs("train")) == 300 * 299
    assert module.pairs_per_epoch() == 300
    assert numbers(module.pairs("val")) == [(i, i + 1) for i in range(301, 330)]
    assert numbers(module.pairs("test")) == [(i, i + 1) for i in range(331, 414)]


def test_oasis_challenges_split_without_json(tmp_path: Path) -> None:
    touch(tmp_path, "OASIS", 414, 1)
    module = OASIS(str(tmp_path))
    assert subjects(module) == [*range(1, 395)]
    assert numbers(module.pairs("val")) == numbers(module.pairs("test")) == [(i, i + 1) for i in range(395, 414)]


def test_oasis_challenges_split_from_the_json(tmp_path: Path) -> None:
    module = OASIS(str(oasis(tmp_path)))
    module.setup()
    assert subjects(module) == [1, 2, 3, 4]
    assert numbers(module.pairs("val")) == numbers(module.pairs("test")) == [(5, 6), (6, 7), (7, 8)]
    batch = next(iter(module.train_dataloader()))
    assert {"fixed_label", "fixed_mask"} <= batch.keys() and batch["fixed"].shape == (1, 1, *SHAPE)
    assert 0 < batch["fixed"].min() and batch["fixed"].max() < 1, "intensities in [0, 1] are left as they are"
    assert module.num_labels == 35 and module.label_names[1] == "structure 1"
    unlabelled = OASIS(str(tmp_path), test_split="registration_test")
    unlabelled.setup("predict")
    batch = next(iter(unlabelled.predict_dataloader()))
    assert batch["fixed_id"] == ["OASIS_0009_0000"] and "fixed_label" not in batch


def test_oasis_papers_split_of_a_small_folder(tmp_path: Path) -> None:
    oasis(tmp_path)
    with pytest.raises(ValueError, match=r"has 8 subjects, expected 414 for split='paper' \(300 / 30 / 84\): set spl"):
        OASIS(str(tmp_path), split="paper").setup()
    module = OASIS(str(tmp_path), split="paper", split_sizes=(3, 2, 3))
    module.setup()
    assert subjects(module) == [1, 2, 3] and len(module.pairs("train")) == 6
    assert numbers(module.pairs("val")) == [(4, 5)] and numbers(module.pairs("test")) == [(6, 7), (7, 8)]


def test_a_small_folder_has_nobody_left_for_the_challenge(tmp_path: Path) -> None:
    touch(tmp_path, "OASIS", 20, 1)
    with pytest.raises(ValueError, match="has 0 subjects beside those of its validation pairs, expected at least 2"):
        OASIS(str(tmp_path)).setup()


@pytest.mark.parametrize("given", [True, False])
def test_nlst_papers_split(tmp_path: Path, given: bool) -> None:
    touch(tmp_path, "NLST", 210, 2)
    if given:
        pairs = [(image(i, 0, "NLST"), image(i, 1, "NLST")) for i in range(1, 211)]
        content = {"training_paired_images": listed(*pairs), "registration_val": listed(*pairs[100:110])}
        (tmp_path / "NLST_dataset.json").write_text("{}")
        change_json(tmp_path, "NLST", **content)
    paper = NLST(str(tmp_path), split="paper")
    others = [*range(1, 101), *range(111, 211)]
    assert numbers(paper.pairs("train")) == [(i, i) for i in others[:170]]
    assert numbers(paper.pairs("val")) == [(i, i) for i in range(101, 111)]
    assert numbers(paper.pairs("test")) == [(i, i) for i in range(181, 211)]
    assert all(f.id.endswith("0000") and m.id.endswith("0001") for f, m in paper.pairs("train"))
    challenge = NLST(str(tmp_path))
    assert numbers(challenge.pairs("train")) == [(i, i) for i in others]
    assert numbers(challenge.pairs("val")) == numbers(challenge.pairs("test")) == numbers(paper.pairs("val"))


def test_nlst_as_published(tmp_path: Path) -> None:
    module = NLST(str(nlst(tmp_path)), normalise="window")
    module.setup()
    assert numbers(module.pairs("train")) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert numbers(module.pairs("val")) == numbers(module.pairs("test")) == [(101, 101), (102, 102)]
    batch = next(iter(module.val_dataloader()))
    assert batch["fixed_points"].shape == batch["moving_points"].shape == (1, 3, 5)
    assert batch["fixed"].min() == 0 and batch["fixed"].max() == 1
    assert (batch["fixed"][batch["fixed_mask"] == 0] == 0).all(), "air outside of the lungs"
    whole = NLST(str(tmp_path), mask_images=False)
    whole.setup("validate")
    unmasked = next(iter(whole.val_dataloader()))["fixed"]
    assert unmasked[batch["fixed_mask"] == 0].max() > 0.9
    paper = NLST(str(tmp_path), split="paper", split_sizes=(3, 2, 1))
    assert numbers(paper.pairs("train")) == [(1, 1), (2, 2), (3, 3)] and numbers(paper.pairs("test")) == [(4, 4)]
    with pytest.raises(ValueError, match="has 4 pairs beside 2 for validation, expected 200 beside 10 for split='pa"):
        NLST(str(tmp_path), split="paper").setup()


@pytest.mark.parametrize("preset", [OASIS, NLST])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"split": "all"}, "split is 'all', expected"),
        ({"split": "paper", "test_split": "a"}, "test_split is 'a', expected it with split='challenge' alone"),
        ({"split_sizes": (1, 2, 3)}, r"split_sizes is \(1, 2, 3\), expected three numbers of at least"),
        ({"split": "paper", "split_sizes": (0, 2, 3)}, "expected three numbers of at least"),
        ({"batch_size": 0}, "batch_size is 0, expected an integer of at least 1"),
    ],
)
def test_settings_are_checked(preset: type[Learn2Reg], settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        preset("anywhere", **settings)


class Known(RegistrationModule):
    """Answers with a given displacement of the full grid, found on the working grid; keeps what it was shown."""

    def __init__(self, u: torch.Tensor, resolution: float) -> None:
        super().__init__(resolution=resolution)
        self.u, self.shown = u, []

    def forward(self, fixed: torch.Tensor, moving: torch.Tensor) -> list[Solution]:
        self.shown.append(tuple(fixed.shape[2:]))
        u = resize(self.u, fixed.shape[2:])
        return [Solution(u, *(torch.zeros(1) for _ in range(4)))]


def test_half_resolution_is_scored_on_the_full_grid_in_mm(tmp_path: Path) -> None:
    module = NLST(str(nlst(tmp_path)))
    module.setup("validate")
    pair = next(iter(module.val_dataloader()))
    x = identity(SHAPE, pair["fixed"])
    matrix = torch.tensor([[0.1, 0.02, 0.0], [0.0, -0.1, 0.03], [0.05, 0.0, 0.08]])
    u = torch.einsum("ij,bj...->bi...", matrix, x) + torch.tensor([0.5, -1.0, 0.25]).view(1, 3, 1, 1, 1)
    p, q, spacing = pair["fixed_points"], pair["moving_points"], pair["spacing"]
    closed = (p + matrix @ p + torch.tensor([0.5, -1.0, 0.25]).view(1, 3, 1) - q) * spacing[:, :, None]
    half = Known(u, resolution=2.0)
    assert_close(tre(half.register(pair), p, q, spacing), closed.norm(dim=1), rtol=1e-4, atol=1e-4)
    assert half.shown == [(4, 4, 5)]
    small = at_size(pair, (4, 4, 5))
    found = tre(resize(u, (4, 4, 5)), small["fixed_points"], small["moving_points"], small["spacing"])
    assert_close(found, closed.norm(dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.real
def test_presets_on_real_folders(data_root: Path) -> None:
    brains = OASIS(str(data_root / "brains_2mm"), split="paper", split_sizes=(8, 2, 2), normalise="max")
    assert [len(brains.pairs(split)) for split in ("train", "val", "test")] == [56, 1, 1]
    challenge = OASIS(str(data_root / "brains_2mm"), normalise="max")
    assert len(challenge.layout.cases) == 10 and len(challenge.pairs("test")) == 2


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*the same pairs for training and validation")
def test_the_lung_pair_is_an_nlst_folder(data_root: Path) -> None:
    module = NLST(str(data_root / "lung"))
    module.setup()
    assert numbers(module.pairs("train")) == numbers(module.pairs("test")) == [(1, 1), (2, 2)]
    batch = next(iter(module.test_dataloader()))
    zero = torch.zeros(1, 3, *batch["fixed"].shape[2:])
    found = tre(zero, batch["fixed_points"], batch["moving_points"], batch["spacing"])
    assert_close(found.mean(), torch.tensor(5.63), atol=0.01, rtol=0)
