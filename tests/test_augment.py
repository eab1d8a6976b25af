"""Augmented pairs stay pairs: what matched before matches after, and labels and landmarks follow their image."""

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from scipy.ndimage import affine_transform, map_coordinates
from torch.testing import assert_close

from data_modules import Learn2Reg, SyntheticPairs
from data_modules.augment import (
    Augmented,
    Crop,
    Flip,
    RandomAffine,
    RandomAnisotropy,
    RandomContrast,
    RandomDeformation,
    RandomIntensity,
    Swap,
    cropped,
    flipped,
)
from data_modules.augment.affine import moved
from data_modules.augment.grids import mirrored_labels
from dio_lightning.cli import main
from dio_lightning.fields import warp

NAMES = {
    0: "background",
    1: "Left-Putamen",
    2: "Brain-Stem",
    3: "Right-Putamen",
    4: "ctx-lh-insula",
    5: "ctx-rh-insula",
}
MILD = {"degrees": 8.0, "scale": (0.95, 1.1), "translate": 0.03, "shear": 0.05}
EVERY = [
    Flip([0, 1]),
    RandomAffine(**MILD, separate=True),
    RandomIntensity(probability=1.0),
    RandomAnisotropy(probability=1.0),
    RandomContrast(probability=1.0),
    RandomDeformation((1.0, 1.0), (4.0, 4.0), probability=1.0),
    Swap(),
    Crop([10, 10]),
]


@pytest.fixture(params=[(24, 20), (14, 12, 16)], ids=["2d", "3d"])
def sample(request):
    pairs = SyntheticPairs(size=request.param, amplitude=1.5, train_pairs=1).dataset("train")
    found = pairs[0]
    return found | {"affine": found.get("affine", torch.eye(4, dtype=torch.float64))}


class One(torch.utils.data.Dataset):
    def __init__(self, sample):
        self.sample = sample

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.sample


def agreement(sample) -> float:
    """Share of inner voxels whose label the true displacement finds in the moving image."""
    warped = warp(sample["moving_label"][None], sample["displacement"][None], mode="nearest")[0]
    inner = (slice(None), *[slice(3, -3)] * (warped.ndim - 1))
    return float((warped == sample["fixed_label"])[inner].float().mean())


def world(sample, key):
    d = sample["fixed"].ndim - 1
    points = sample[key].double()
    return sample["affine"][:d, :d] @ points + sample["affine"][:d, 3:]


def smooth(size, phase=0.0):
    """A smooth image (1, *size), so that interpolation errs little."""
    axes = np.meshgrid(*[np.arange(n) / 6 for n in size], indexing="ij")
    return torch.tensor(sum(np.sin(x + phase + i) for i, x in enumerate(axes)), dtype=torch.float32)[None]


def same(one, two) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert_close(two[key], value, rtol=1e-6, atol=1e-6) if isinstance(value, torch.Tensor) else None


@pytest.mark.parametrize("change", [lambda s: cropped(s, 0, 2, 10), lambda s: flipped(s, 0), lambda s: flipped(s, 1)])
def test_truth_and_landmarks_follow(sample, change):
    changed = change(sample)
    # nearest voxels of points half-way between two may differ after a flip
    assert agreement(sample) == 1 and agreement(changed) > 0.995
    for key in ("fixed_points", "moving_points"):
        assert_close(world(changed, key), world(sample, key), atol=1e-4, rtol=0)


def test_a_flip_undoes_itself(sample):
    same(sample, flipped(flipped(sample, 0), 0))


def test_random_crops_have_their_size_and_both_flips_occur(sample):
    d = sample["fixed"].ndim - 1
    augmented = Augmented(One(sample), [Crop([8] * (d - 1) + [99]), Flip([0])])
    drawn = [augmented[0] for _ in range(20)]
    assert {tuple(s["fixed"].shape) for s in drawn} == {(1, *[8] * (d - 1), sample["fixed"].shape[-1])}
    assert {bool(s["affine"][0, 0] < 0) for s in drawn} == {True, False}
    assert len({float(s["affine"][0, 3]) for s in drawn}) > 2


def brain(d: int, axis: int):
    """A left half of label 1, a right half of 3 and a middle of 2, larger on the left; left is low along `axis`."""
    label = torch.full([6] * d, 2, dtype=torch.int16).movedim(axis, 0)
    label[:2], label[-1:], label[2, 1:] = 1, 3, 0
    label = label.movedim(0, axis)[None].contiguous()
    affine = torch.eye(4, dtype=torch.float64)
    affine[[0, axis]] = affine[[axis, 0]]
    image = label.float() / 3
    pair = {"fixed": image, "moving": image, "fixed_label": label, "moving_label": label, "affine": affine}
    return pair | {"spacing": torch.ones(d), "fixed_id": "a", "moving_id": "b"}


@pytest.mark.parametrize(("d", "axis"), [(2, 0), (2, 1), (3, 0), (3, 2)])
def test_a_flip_exchanges_sides_across_the_left_right_axis_only(d, axis):
    pair, flip = brain(d, axis), Flip(range(d), 1.0, "names").named(NAMES)
    whole = flip(pair)
    expected = pair["fixed_label"].flip(*range(1, d + 1))
    expected = torch.where(expected == 1, 3, torch.where(expected == 3, 1, expected)).short()
    for key in ("fixed_label", "moving_label"):
        assert torch.equal(whole[key], expected) and whole[key].dtype == torch.int16
        along = whole[key].movedim(1 + axis, 1)
        assert (along[:, 0] == 1).all() and (along[:, -1] == 3).all(), "a left structure keeps its side and label"
    assert torch.equal(whole["fixed"], pair["fixed"].flip(*range(1, d + 1)))
    other = Flip([(axis + 1) % d], 1.0, {3: 1})(pair)
    assert torch.equal(other["fixed_label"], pair["fixed_label"].flip(1 + (axis + 1) % d))


def test_names_pair_labels_of_two_sides_or_say_what_is_missing():
    assert mirrored_labels(NAMES) == {1: 3, 4: 5}
    with pytest.raises(ValueError, match="label 1 is 'Left-Putamen' and no label is 'right-putamen'"):
        Flip(swap_labels="names").named({1: "Left-Putamen"})
    with pytest.raises(ValueError, match="no label has left or right in its name"):
        Flip(swap_labels="names").named({1: "Cleft", 2: "Alright"})


def test_grids_of_their_own_are_flipped_along_the_same_direction_and_cropped_apart():
    pair = brain(3, 0)
    turned = {key: pair[key].movedim(1, 3)[..., :5] for key in ("moving", "moving_label")}
    moving_affine = pair["affine"][:, [1, 2, 0, 3]]
    whole = Flip([0], 1.0, {1: 3})(pair | turned | {"moving_affine": moving_affine})
    assert (whole["fixed_label"][:, 0] == 1).all()
    assert torch.equal(whole["moving"], turned["moving"].flip(3))
    assert torch.equal(whole["moving_affine"][:, 2], -moving_affine[:, 2]) and whole["moving_affine"][0, 3] == 4
    assert cropped(pair | turned | {"moving_affine": moving_affine}, 0, 1, 2)["moving"].shape == (1, 6, 6, 5)


def motion(d: int) -> torch.Tensor:
    """A rotation with scaling, shear and shift, (4, 4)."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[0.95, 0.2], [-0.15, 1.08]])
    matrix[:d, 3] = torch.tensor([1.3, -0.7, 0.4])[:d]
    return matrix


def test_an_affine_agrees_with_scipy_and_simpleitk(sample):
    d, image = sample["fixed"].ndim - 1, smooth(sample["fixed"].shape[1:])
    matrix = motion(d)
    found = moved(sample | {"fixed": image}, matrix, matrix)
    back = matrix.inverse().numpy()
    expected = affine_transform(image[0].numpy(), back[:d, :d], back[:d, 3], order=1)
    inside = affine_transform(np.ones_like(expected), back[:d, :d], back[:d, 3], order=1, cval=0) == 1
    np.testing.assert_allclose(found["fixed"][0].numpy()[inside], expected[inside], atol=2e-5)
    # SimpleITK counts axes from the last
    order = [*range(d)][::-1]
    transform = SimpleITK.AffineTransform(d)
    transform.SetMatrix(back[:d, :d][np.ix_(order, order)].ravel())
    transform.SetTranslation(back[:d, 3][order])
    label = SimpleITK.GetImageFromArray(sample["fixed_label"][0].numpy())
    seen = SimpleITK.GetArrayFromImage(SimpleITK.Resample(label, transform, SimpleITK.sitkNearestNeighbor, 0))
    assert (seen == found["fixed_label"][0].numpy())[inside].mean() > 0.99
    assert found["fixed_label"].dtype == torch.int16
    assert set(found["fixed_label"].unique().tolist()) <= {0, *sample["fixed_label"].unique().tolist()}


@pytest.mark.parametrize("separate", [False, True])
def test_landmarks_and_truth_follow_an_affine(sample, separate):
    d, size = sample["fixed"].ndim - 1, sample["fixed"].shape[1:]
    pair = sample | {"moving": smooth(size), "spacing": torch.tensor([1.0, 1.5, 3.0])[:d]}
    pair["fixed"] = warp(pair["moving"][None], pair["displacement"][None])[0]
    found = RandomAffine(**MILD, separate=separate)(pair)
    assert torch.equal(found["affine"], pair["affine"])
    motions, last = [], np.array(size)[:, None] - 1
    for side in ("fixed", "moving"):
        before, after = pair[f"{side}_points"].numpy(), found[f"{side}_points"].numpy()
        inside = ((np.minimum(before, after) > 1.5) & (np.maximum(before, after) < last - 1.5)).all(0)
        assert inside.sum() > 3 and np.abs(after - before).max() > 0.3
        value = map_coordinates(pair[side][0].numpy(), before, order=1)
        there = map_coordinates(found[side][0].numpy(), after, order=1)
        np.testing.assert_allclose(there[inside], value[inside], atol=0.03)
        ones = np.ones_like(before[:1])
        motions.append(np.linalg.lstsq(np.vstack([before, ones]).T, after.T, rcond=None)[0])
    assert np.allclose(*motions, atol=1e-3) != separate
    inner = (0, *[slice(4, -4)] * d)
    warped = warp(found["moving"][None], found["displacement"][None])[0]
    assert (warped - found["fixed"]).abs()[inner].quantile(0.95) < 0.03


def test_a_rotation_turns_in_millimetres_about_the_centre():
    image = torch.zeros(1, 21, 11)
    image[:, 18, 5] = 1  # 8 mm from the centre along the axis of 1 mm, which is 4 voxels of 2 mm along the other
    pair = {"fixed": image, "moving": image, "spacing": torch.tensor([1.0, 2.0])}
    pair["fixed_points"] = torch.tensor([[18.0], [5.0]])
    found = RandomAffine(degrees=180.0)(pair)["fixed_points"][:, 0] - torch.tensor([10.0, 5.0])
    assert_close((found * pair["spacing"]).norm(), torch.tensor(8.0))


def test_a_moving_image_on_its_own_grid_moves_alike():
    size, other = (20, 22), (14, 26)
    pair = {"fixed": smooth(size), "moving": smooth(other), "affine": torch.eye(4, dtype=torch.float64)}
    pair["moving_affine"] = torch.diag(torch.tensor([2.0, 0.5, 1.0, 1.0], dtype=torch.float64))
    points = torch.tensor([[6.0, 9.0, 12.0], [5.0, 8.0, 6.0]])
    pair |= {"fixed_points": points, "moving_points": points * torch.tensor([[0.5], [2.0]])}
    found = RandomAffine(degrees=10.0, translate=0.05)(pair)
    assert_close(found["moving_points"] * torch.tensor([[2.0], [0.5]]), found["fixed_points"])
    value = map_coordinates(pair["moving"][0].numpy(), pair["moving_points"].numpy(), order=3)
    there = map_coordinates(found["moving"][0].numpy(), found["moving_points"].numpy(), order=3)
    np.testing.assert_allclose(there, value, atol=0.05)


IDENTITIES = [
    Flip([0, 1], 0.0),
    Flip([]),
    RandomAffine(),
    RandomAffine(**MILD, probability=0.0),
    RandomIntensity(bias=0.0, gamma=(1.0, 1.0), noise=0.0, probability=1.0),
    RandomIntensity(probability=0.0),
    RandomAnisotropy((1.0, 1.0), 1.0),
    RandomAnisotropy(probability=0.0),
    Swap(0.0),
    Crop([99, 99, 99]),
]


@pytest.mark.parametrize("step", IDENTITIES, ids=lambda s: type(s).__name__)
def test_identity_changes_nothing(sample, step):
    found = step(sample)
    assert_close(found["fixed"], sample["fixed"], atol=2e-6, rtol=0)
    same(
        {k: v for k, v in sample.items() if k not in ("fixed", "moving")},
        {k: found[k] for k in sample if k not in ("fixed", "moving")},
    )


@pytest.mark.parametrize("step", EVERY, ids=lambda s: type(s).__name__)
def test_a_seed_repeats_a_change_and_the_pair_itself_stays(sample, step):
    kept = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}
    drawn = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        np.random.seed(seed + len(drawn))
        drawn.append(step(sample))
    same(drawn[0], drawn[1])
    assert any(not torch.equal(drawn[0]["fixed"], other["fixed"]) for other in drawn[2:])
    same(kept, sample)
    assert all(drawn[0][key].dtype == kept[key].dtype for key in kept if isinstance(kept[key], torch.Tensor))
    assert all(type(value) is type(kept[key]) for key, value in drawn[0].items())


@pytest.mark.parametrize("step", [RandomIntensity(probability=1.0), RandomAnisotropy(probability=1.0)])
def test_intensities_alone_change_and_each_image_its_own_way(sample, step):
    body = sample["fixed_label"] > 0
    image = torch.where(body, 0.2 + 0.8 * sample["fixed"], 0.0)
    pair = sample | {"fixed": image, "moving": image}
    found = step(pair)
    assert not torch.equal(found["fixed"], image) and not torch.equal(found["fixed"], found["moving"])
    assert 0 <= found["fixed"].min() and found["fixed"].max() <= image.max()
    if isinstance(step, RandomIntensity):
        assert (found["fixed"][~body] == 0).all()
    rest = [key for key in pair if key not in ("fixed", "moving")]
    same({k: pair[k] for k in rest}, {k: found[k] for k in rest})


def test_a_window_of_negative_values_keeps_its_background():
    image = smooth((12, 10)) * 100 - 500
    image[:, :4] = -1000
    found = RandomIntensity(probability=1.0)({"fixed": image, "moving": image})["fixed"]
    assert (found[:, :4] == -1000).all() and found.min() == -1000 and found.max() <= image.max()


def test_thick_slices_blur_one_axis_and_move_nothing():
    ramp = torch.arange(24.0)[:, None].expand(24, 6)[None]
    stripes = (torch.arange(24) % 2).float()[:, None].expand(24, 6)[None].contiguous()
    torch.manual_seed(1)
    for _ in range(4):
        found = RandomAnisotropy((2.0, 2.0), 1.0)({"fixed": ramp, "moving": stripes})
        assert_close(found["fixed"][:, 2:-2], ramp[:, 2:-2])
        level = found["moving"][:, 2:-2]
        assert torch.equal(level, stripes[:, 2:-2]) or bool((level == 0.5).all())


def test_swapping_inverts_the_truth_and_twice_is_nothing(sample):
    swap = Swap(1.0)
    found = swap(sample)
    assert found["fixed_id"] == sample["moving_id"] and torch.equal(found["moving_label"], sample["fixed_label"])
    assert torch.equal(found["fixed_points"], sample["moving_points"]) and agreement(found) > 0.95
    own = {
        "moving_affine": torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64)),
        "spacing": torch.ones(2),
    }
    pair = {k: v for k, v in sample.items() if k != "displacement"} | own
    assert_close(swap(pair)["spacing"][:2], torch.tensor([2.0, 3.0]))
    assert torch.equal(swap(pair)["affine"], own["moving_affine"])
    same(pair | {"spacing": torch.ones(sample["fixed"].ndim - 1)}, swap(swap(pair)))
    with pytest.raises(ValueError, match="expected one grid"):
        swap(sample | own)


def test_wrong_settings_get_one_sentence(sample):
    wrong = {
        "crop is \\[0, 4\\]": lambda: Learn2Reg(root="anywhere", crop=[0, 4]),
        "flips \\[3\\]": lambda: Learn2Reg(root="anywhere", flips=[3]),
        "axes of a flip are \\[3\\]": lambda: Flip([3]),
        "expected axes below": lambda: Flip([2], 1.0)(brain(2, 0)),
        "each once": lambda: Flip(swap_labels={1: 2, 2: 3}),
        "names its labels": lambda: Flip(swap_labels="names")(sample),
        "probability is 2": lambda: Swap(2),
        "scale \\[0, 1\\]": lambda: RandomAffine(scale=(0, 1)),
        "noise -1": lambda: RandomIntensity(noise=-1),
        "factors is \\[0.5, 2\\]": lambda: RandomAnisotropy((0.5, 2)),
        "size of a crop": lambda: Crop([]),
    }
    for sentence, call in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.fixture
def folder(tmp_path):
    """Three toy brains in Learn2Reg's layout."""
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / kind).mkdir()
    label = brain(3, 0)["fixed_label"][0].numpy().astype(np.uint8)
    for i in range(4):
        grain = np.random.default_rng(i).integers(0, 20, label.shape).astype(np.uint8)
        for kind, values in (("imagesTr", 40 * label + grain), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), tmp_path / kind / f"toy_{i}_0000.nii.gz")
    names = {str(k): v for k, v in NAMES.items()}
    (tmp_path / "toy_dataset.json").write_text(json.dumps({"pairings": "unpaired", "labels": names}))
    return tmp_path


def test_a_config_lists_augmentations_by_name(folder, monkeypatch):
    steps = [
        {
            "class_path": "data_modules.augment.Flip",
            "init_args": {"axes": [0], "probability": 1, "swap_labels": "names"},
        },
        {"class_path": "RandomAffine", "init_args": {"degrees": 5, "scale": [0.9, 1.1], "separate": True}},
        {"class_path": "RandomIntensity", "init_args": {"gamma": [0.5, 2]}},
        {"class_path": "RandomAnisotropy", "init_args": {"factors": [2, 3]}},
        {"class_path": "Swap"},
    ]
    data = {"class_path": "data_modules.Learn2Reg", "init_args": {"root": str(folder), "flips": [1], "augment": steps}}
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    model = ["--model", "DIO", "--model.features", "Intensity", "--model.layer", "OptimizerLayer"]
    built = []
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda cli, subcommand: built.append(cli.datamodule))
    main(["fit", *model, "--config", str(folder / "data.yaml"), "--trainer.default_root_dir", str(folder)])
    (data,) = built
    data.setup("fit")
    found = data.augmentations()
    assert found[0] == Flip([0], 1.0, {1: 3, 4: 5}) and found[2].gamma == (0.5, 2) and found[-1] == Flip([1])
    assert [type(step) for step in found] == [Flip, RandomAffine, RandomIntensity, RandomAnisotropy, Swap, Flip]
    assert type(data.dataset("val")[0]["fixed"]) is torch.Tensor and not isinstance(data.dataset("val"), Augmented)
    whole = next(iter(data.train_dataloader()))
    assert whole["fixed"].shape == (1, 1, 6, 6, 6) and whole["fixed_label"].dtype == torch.int16


def test_one_augmentation_needs_no_list_and_names_are_asked_for_in_setup(folder):
    (folder / "toy_dataset.json").write_text(json.dumps({"pairings": "unpaired"}))
    flip = Flip(swap_labels="names")
    with pytest.raises(ValueError, match="no label has left or right"):
        Learn2Reg(root=str(folder), augment=flip).setup("fit")
    Learn2Reg(root=str(folder), augment=flip).setup("test")
    for plane, kept in itertools.product(("sagittal", "coronal"), (True, False)):
        sides = {1: 3} if kept else None
        data = Learn2Reg(root=str(folder), augment=Flip([0], 1.0, sides), plane=plane)
        pair, plain = data.dataset("train")[2], Learn2Reg(root=str(folder), plane=plane).dataset("train")[2]
        across = kept and plane == "coronal"
        swapped = {1: 3, 3: 1} if across else {}
        expected = plain["fixed_label"].flip(1).clone().apply_(lambda x, s=swapped: s.get(int(x), x))
        assert torch.equal(pair["fixed_label"], expected)


@pytest.mark.real
def test_a_mirrored_brain_overlaps_itself_if_sides_are_exchanged(data_root):
    flip = Flip([0], 1.0, "names")
    data = Learn2Reg(root=str(data_root / "brains_2mm"), augment=flip, cache=False)
    (found,) = data.augmentations()
    plain = data.dataset("val")[0]
    putamen = 9
    kept, lost = (step(plain)["fixed_label"] == putamen for step in (found, Flip([0], 1.0)))
    before = plain["fixed_label"] == putamen
    assert len(found.swap_labels) == 16 and found.swap_labels[putamen] == 28
    overlap = [2 * (before & x).sum() / (before.sum() + x.sum()) for x in (kept, lost)]
    assert overlap[0] > 0.6 and overlap[1] == 0
