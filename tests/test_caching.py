"""What is prepared once is what would be prepared now: caches in memory and on disk, and small labels."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from monai.transforms.croppad.dictionary import SpatialCropd
from monai.transforms.intensity.dictionary import RandGaussianNoised, ScaleIntensityd
from monai.transforms.spatial.dictionary import Resized, Spacingd
from monai.transforms.transform import Transform
from monai.transforms.utility.dictionary import Lambdad
from torch import Tensor
from torch.testing import assert_close

from data_modules import Learn2Reg
from data_modules.base import Sample
from data_modules.checking.findings import Findings
from data_modules.checking.headers import Asked
from data_modules.layout import Case
from data_modules.preparation.caching import cache_folder
from data_modules.preparation.describing import recipe
from data_modules.preparation.subjects import Subjects

SHAPE = (6, 7, 8)
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
MODES = ("none", "memory", "disk")
Mode = Literal["none", "memory", "disk"]


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)  # pyright: ignore[reportPrivateImportUsage]
    return path


def write_case(root: Path, i: int, shape: Sequence[int] = SHAPE, suffix: str = ".nii") -> Case:
    """Uncompressed, so that other values are as many bytes; label 3 has 4 voxels in case 2, 20 elsewhere."""
    rng, name = np.random.default_rng(i), f"Mini_{i:04d}_0000"
    label = rng.integers(0, 3, shape).astype(np.uint8)
    label.flat[: 4 if i == 2 else 20] = 3
    points = root / f"keypointsTr/{name}.csv"
    points.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(points, rng.uniform(1, 5, (4, len(shape))), delimiter=",", fmt="%.3f")
    return Case(
        write(root / f"imagesTr/{name}{suffix}", rng.integers(0, 200, shape).astype(np.uint8)),
        write(root / f"labelsTr/{name}{suffix}", label),
        write(root / f"masksTr/{name}{suffix}", (rng.random(shape) < 0.5).astype(np.uint8)),
        points,
    )


ASKED = {"normalise", "clip", "labels", "mask_images", "common_grid"}


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, Case]:
    return write_case(tmp_path / "data", 1), write_case(tmp_path / "data", 2)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Subjects]:
    """Subjects with a disk cache of this test."""

    def make(cache: Any = "disk", **options: Any) -> Subjects:
        asked = {"normalise": "max"} | {name: options.pop(name) for name in ASKED & options.keys()}
        return Subjects(Asked(**asked), cache, **{"cache_dir": str(tmp_path / "cache")} | options)

    return make


def stored(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("*"))


def files(case: Case) -> tuple[Path, Path, Path, Path]:
    assert case.label and case.mask and case.keypoints
    return case.image, case.label, case.mask, case.keypoints


def unread(subjects: Subjects) -> Subjects:
    """Subjects that would fail if they read a file."""
    subjects.read = None  # type: ignore[assignment]
    return subjects


def equal(one: Sample, two: Sample) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, Tensor):
            assert value.dtype == two[key].dtype
            assert_close(value, two[key], rtol=0, atol=0)
        else:
            assert value == two[key]


def test_all_caches_give_the_same_samples(cases: tuple[Case, Case], made: Callable[..., Subjects]) -> None:
    options = {"mask_images": True, "extra": [Resized(["image", "label", "mask"], (5, 6, 7), mode="nearest")]}
    samples = []
    for cache in (*MODES, "disk", True, False):
        subjects = made(cache, **options)
        if cache not in ("none", False):
            subjects.fill([cases], Findings(), progress=False)
            subjects = unread(subjects)
        samples.append(subjects.pair(*cases))
    for other in samples[1:]:
        equal(samples[0], other)
    assert samples[0]["fixed_label"].dtype == torch.int16 and samples[0]["fixed_mask"].dtype == torch.uint8


def test_what_is_on_disk_is_not_read_again(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path
) -> None:
    made().fill([cases], Findings(), progress=False)
    assert [path.suffix for path in stored(tmp_path)] == [".pt", ".pt"]
    unread(made()).fill([cases], Findings(), progress=False)
    # content has no place: a copy of the data set is found, too
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)
    there = []
    for case in cases:
        image, label, mask, points = (moved / path.relative_to(tmp_path / "data") for path in files(case))
        there.append(Case(image, label, mask, points))
    unread(made()).fill([(there[0], there[1])], Findings(), progress=False)
    assert unread(made())[there[0]]["image"].shape == (1, *SHAPE)
    assert len(stored(tmp_path)) == 2


def replace_unseen(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Other bytes, as many, with the same time of modification."""
    before, status = path.read_bytes(), path.stat()
    after = change(before)
    assert len(after) == len(before) and after != before
    path.write_bytes(after)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flipped(content: bytes) -> bytes:
    """The last voxel of a NIfTI file, 1 where it was not and 0 where it was."""
    return content[:-1] + bytes([int(content[-1] != 1)])


@pytest.mark.parametrize("kind", ["image", "label", "mask", "keypoints"])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_replaced_file_is_seen(
    cases: tuple[Case, Case], made: Callable[..., Subjects], kind: str, cache: str
) -> None:
    subjects = made(cache, normalise="none")
    subjects.fill([cases], Findings(), progress=False)
    before = {key: value.clone() for key, value in subjects[cases[0]].items()}
    if kind == "keypoints":
        replace_unseen(cases[0].keypoints, lambda c: c.replace(b"1", b"2").replace(b"3", b"2"))  # type: ignore[arg-type]
    else:
        replace_unseen(getattr(cases[0], kind), flipped)
    key = {"keypoints": "points"}.get(kind, kind)
    fresh = made("none", normalise="none")[cases[0]][key]
    assert not torch.equal(fresh, before[key])
    for other in (subjects, made(cache, normalise="none")):
        other.fill([cases], Findings(), progress=False)
        assert_close(other[cases[0]][key], fresh, rtol=0, atol=0)


OPTIONS: list[dict[str, Any]] = [
    {"normalise": "percentile"},
    {"normalise": "none"},
    {"clip": (10, 100)},
    {"clip": (10, 101)},
    {"normalise": "window", "clip": (10, 100)},
    {"labels": {1: 1}},
    {"labels": {1: 1, 2: 2}},
    {"mask_images": True},
    {"extra": [ScaleIntensityd("image", minv=0, maxv=2)]},
    {"extra": [ScaleIntensityd("image", minv=0, maxv=3)]},
    {"extra": [SpatialCropd(["image", "label", "mask"], roi_start=(0, 0, 0), roi_end=(6, 7, 8))]},
    {"extra": [SpatialCropd(["image", "label", "mask"], roi_start=(0, 0, 0), roi_end=(6, 7, 7))]},
]


def test_every_option_has_a_cache_of_its_own(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path
) -> None:
    case = cases[0]
    case.keypoints.write_text("1,1,1\n")  # type: ignore[union-attr]
    for options in [{}, *OPTIONS]:
        made(**options)[case]
    assert len(stored(tmp_path)) == len(OPTIONS) + 1
    for options in [{}, *OPTIONS]:
        expected = made("none", **options)[case]
        for key, value in unread(made(**options))[case].items():
            assert_close(value, expected[key], rtol=0, atol=0)


class Plus(Transform):
    """A transform of the user's own."""

    def __init__(self, amount: Any) -> None:
        self.amount = amount

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**data, "image": data["image"] + self.amount}


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_a_description_tells_parameters_and_code_apart() -> None:
    arrays = [np.zeros(3), np.zeros(3, np.float32), np.zeros((3, 1)), torch.zeros(4), np.array([0, 0, 1.0])]
    values = [1, 1.0, "1", True, None, [1], {"a": 1}, {"a": 2}, {1, 2}, double, Plus, Path("a"), torch.float32, *arrays]
    texts = [recipe(Plus(value)) for value in values]
    assert len(set(texts)) == len(values) and texts == [recipe(Plus(value)) for value in values]
    assert "return 2 * x" in recipe(Lambdad("image", double))
    spacing = {recipe(Spacingd(["image"], (1, 1, 1), mode=mode)) for mode in ("nearest", "bilinear")}
    assert len(spacing) == 2


def loop() -> list:
    found: list = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (Lambdad("image", lambda x: x), "is a lambda or local function"),
        (Plus(object()), "a object cannot be described"),
        (Plus(loop()), "refers to itself"),
        (Plus(np.array([None])), "cannot be described, expected numbers"),
        (RandGaussianNoised("image"), "RandGaussianNoised is random"),
    ],
)
def test_what_cannot_be_told_apart_is_not_stored(
    made: Callable[..., Subjects], extra: Transform, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        made(extra=[extra])


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_cut_off_cache_file_is_made_again(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path, keep: float
) -> None:
    made().fill([cases], Findings(), progress=False)
    whole = stored(tmp_path)[0].read_bytes()
    stored(tmp_path)[0].write_bytes(whole[: int(keep if keep in (0, 1, 100) else keep * len(whole))])
    with pytest.warns(UserWarning, match=r"\.pt cannot be read and is made again"):
        made().fill([cases], Findings(), progress=False)
    equal(unread(made()).pair(*cases), made("none").pair(*cases))


def test_a_cache_file_deleted_while_in_use_is_made_again(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path
) -> None:
    subjects = made()
    subjects.fill([cases], Findings(), progress=False)
    held = subjects[cases[0]]["image"]
    for path in stored(tmp_path):
        path.unlink()
    equal(subjects.pair(*cases), made("none").pair(*cases))
    assert_close(held, subjects[cases[0]]["image"])
    assert len(stored(tmp_path)) == 2


def test_what_changes_while_it_is_read_is_not_stored(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path
) -> None:
    subjects = made()
    read = subjects.read

    def slow(*arguments: Any) -> object:
        replace_unseen(cases[0].image, flipped)
        return read(*arguments)

    subjects.read = slow  # type: ignore[assignment]
    subjects[cases[0]]
    assert stored(tmp_path) == []


def test_a_file_is_whole_or_absent(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half of it")
        assert not [p for p in stored(tmp_path) if p.suffix == ".pt"]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"the disk cache .* cannot be written .*No space left.* set cache_dir"):
        made().fill([cases], Findings(), progress=False)
    assert stored(tmp_path) == []


def test_processes_may_write_the_same_case(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path
) -> None:
    subjects = made()
    processes = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            status = 1
            try:
                for _ in range(5):
                    made().fill([cases], Findings(), progress=False)
                    # also what another process is about to move into place
                    for path in stored(tmp_path)[:1]:
                        path.unlink(missing_ok=True)
                status = 0
            finally:
                os._exit(status)
        processes.append(child)
    assert [os.waitpid(child, 0)[1] for child in processes] == [0, 0, 0]
    subjects.fill([cases], Findings(), progress=False)
    assert len(stored(tmp_path)) == 2
    equal(unread(made()).pair(*cases), made("none").pair(*cases))


def test_a_folder_that_cannot_be_written_is_one_sentence(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the disk cache .*file/cache cannot be written .*: set cache_dir") as caught:
        made(cache_dir=str(tmp_path / "file/cache")).fill([cases], Findings(), progress=False)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_filled_folder_may_be_read_only(
    cases: tuple[Case, Case], made: Callable[..., Subjects], tmp_path: Path
) -> None:
    made().fill([cases], Findings(), progress=False)
    (tmp_path / "cache").chmod(0o500)
    unread(made()).fill([cases], Findings(), progress=False)
    with pytest.raises(ValueError, match="cannot be written"):
        made(labels={1: 1}).fill([cases], Findings(), progress=False)


def test_the_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "dio-lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache/dio-lightning"
    assert cache_folder("~/x") == tmp_path / "x"


def test_both_files_of_an_analyze_volume_count(made: Callable[..., Subjects], tmp_path: Path) -> None:
    data, affine = np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)
    path = tmp_path / "a.img"
    nib.save(nib.Nifti1Pair(data, affine), path)  # pyright: ignore[reportPrivateImportUsage]
    case = Case(path)
    assert made()[case]["spacing"].tolist() == [1, 1, 1]
    nib.save(nib.Nifti1Pair(data, 2 * affine), path)  # pyright: ignore[reportPrivateImportUsage]
    assert made()[case]["spacing"].tolist() == [2, 2, 2]


def test_masked_images_are_0_outside_of_the_mask(cases: tuple[Case, Case], made: Callable[..., Subjects]) -> None:
    plain, masked = made("none")[cases[0]], made("none", mask_images=True)[cases[0]]
    assert_close(masked["image"], plain["image"] * plain["mask"], rtol=0, atol=0)
    with pytest.raises(ValueError, match="has no mask, expected one for mask_images"):
        made("none", mask_images=True)[Case(cases[0].image)]


@pytest.mark.parametrize("cache", MODES)
def test_extra_transforms_move_grid_and_landmarks(
    cases: tuple[Case, Case], made: Callable[..., Subjects], cache: str
) -> None:
    keys = ["image", "label", "mask"]
    extra = [
        SpatialCropd(keys, roi_start=(0, 1, 0), roi_end=(6, 7, 8)),
        Spacingd(keys, (1.0, 1.0, 4.0), mode=["bilinear", "nearest", "nearest"]),
    ]
    plain, other = made("none")[cases[0]], made(cache, extra=extra)[cases[0]]
    assert_close(other["spacing"], torch.tensor([1.0, 1.0, 4.0]))
    assert_close(other["affine"][:3, :3].abs(), torch.diag(torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64)))
    world = [case["affine"][:3, :3] @ case["points"].double() + case["affine"][:3, 3:] for case in (plain, other)]
    assert_close(world[0], world[1], atol=1e-5, rtol=0)
    assert other["label"].shape == other["image"].shape != plain["image"].shape
    cut = [SpatialCropd(keys, roi_start=(0, 0, 0), roi_end=(2, 2, 2))]
    with pytest.raises(ValueError, match=r"Mini_0001_0000\.csv row \d lies outside of the prepared image"):
        made(cache, extra=cut)[cases[0]]


@pytest.mark.parametrize("cache", MODES)
def test_cases_on_two_grids(tmp_path: Path, made: Callable[..., Subjects], cache: str) -> None:
    fixed, moving = write_case(tmp_path, 1), write_case(tmp_path, 2, (7, 7, 9))
    sample = made(cache, common_grid=False).pair(fixed, moving)
    assert sample["moving_affine"].dtype == torch.float64 and sample["moving"].shape == (1, 7, 7, 9)
    assert_close(sample["moving_affine"], torch.from_numpy(AFFINE))
    assert "moving_affine" not in made(cache, common_grid=False).pair(fixed, fixed)
    with pytest.raises(ValueError, match=r"lies on another grid \(7x7x9\) than .* \(6x7x8\) once prepared"):
        made(cache).pair(fixed, moving)


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    """Six subjects without a JSON: cases 1 to 4 are drawn, 5 and 6 are for validation and test."""
    for i in range(1, 7):
        write_case(tmp_path / "data", i)
    return tmp_path / "data"


def module(root: Path, **options: Any) -> Learn2Reg:
    return Learn2Reg(str(root), cache_dir=str(root.parent / "cache"), **options)


def add_label(root: Path, i: int, label: int, voxels: int) -> None:
    path = root / f"labelsTr/Mini_{i:04d}_0000.nii"
    data = np.asarray(nib.load(path).dataobj).copy()  # type: ignore[attr-defined]
    data.flat[-voxels:] = label
    write(path, data)


@pytest.mark.parametrize("cache", MODES)
def test_labels_that_are_small_in_a_held_out_case_become_background(brains: Path, cache: Mode) -> None:
    for i in (1, 5, 6):
        add_label(brains, i, 9, voxels=30 if i != 6 else 5)
    add_label(brains, 2, 12, voxels=40)
    large = module(brains, cache=cache, min_voxels=20)
    large.setup("fit")
    # label 3 has 4 voxels in case 2, which is trained on; 9 has 5 in case 6; 12 is in no held-out case
    assert large.subjects.kept == [1, 2, 3] and large.num_labels == 3
    plain = module(brains, cache="none")
    for case in [*large.layout.cases, *large.layout.val[0]]:
        label = plain.subjects[case]["label"]
        assert_close(large.subjects[case]["label"], torch.where(label > 3, 0, label), rtol=0, atol=0)
    batch = next(iter(large.val_dataloader()))
    assert batch["fixed_label"].unique().tolist() == [0, 1, 2, 3]


def test_small_labels_are_told_and_must_leave_one(brains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_label(brains, 5, 9, voxels=30)
    told: list[str] = []
    monkeypatch.setattr("data_modules.volumes.rank_zero_info", told.append)
    module(brains, min_voxels=25, labels=[1, 2, 9]).setup("validate")
    assert told[-1] == "data: labels [9] are background, with fewer than 25 voxels"
    with pytest.raises(ValueError, match="no label has 10000 voxels in each of 4 cases, expected a lower min_voxels"):
        module(brains, min_voxels=10000).setup("validate")
    with pytest.raises(ValueError, match="min_voxels is -1"):
        module(brains, min_voxels=-1)


class Still(LightningModule):
    """Does nothing with validation batches."""

    def validation_step(self, batch: object) -> None:
        pass


def test_the_trainer_fills_the_disk_cache_before_any_process_sets_up(
    brains: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(brains, cache="disk", num_workers=0)
    calls: list[tuple[str, int]] = []
    setup = data.setup

    def noted(stage: str | None = None) -> None:
        setup(stage)
        calls.append((str(stage), len(stored(brains.parent))))

    monkeypatch.setattr(data, "setup", noted)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=brains.parent)
    trainer.validate(Still(), data, verbose=False)
    # once by prepare_data, in one process of the node, once by every process
    assert [(stage.rpartition(".")[2].lower(), count) for stage, count in calls] == [("validating", 2)] * 2 or [
        (stage, count) for stage, count in calls
    ] == [("validate", 2)] * 2
    other = module(brains, cache="disk")
    unread(other.subjects)
    other.setup("validate")
    assert next(iter(other.val_dataloader()))["fixed"].shape == (1, 1, *SHAPE)


@pytest.mark.parametrize("workers", [0, 2])
def test_slices_and_loader_processes_read_the_disk_cache(brains: Path, workers: int) -> None:
    data = module(brains, cache="disk", plane="axial", num_workers=workers)
    data.setup("validate")
    unread(data.subjects)
    slices = [batch["fixed"] for batch in data.val_dataloader()]
    whole = data.subjects[data.layout.val[0][0]]["image"]
    assert_close(torch.cat([s[0, 0, None] for s in slices]), whole[0].permute(2, 0, 1), rtol=0, atol=0)


def test_configs_may_say_true_false_or_a_word(brains: Path) -> None:
    assert [module(brains, cache=cache).cache for cache in (True, False, "disk")] == ["memory", "none", "disk"]
    with pytest.raises(ValueError, match="cache is 'ram', expected 'memory', 'disk', 'none', true or false"):
        module(brains, cache="ram")
