"""Black and white: the percentiles, and what an image has whose percentiles are equal."""

import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms.intensity.dictionary import ScaleIntensityRangePercentilesd
from monai.transforms.utility.dictionary import Lambdad
from torch.testing import assert_close

from data_modules import PairsCSV
from dio_lightning.intensities import between, limits
from dio_lightning.registration.scan import Scan

SIZE = (48, 48, 48)


def vessels(background: float = 0.0) -> np.ndarray:
    """0.35 % of the voxels are above the background."""
    image = np.full(SIZE, background, np.float32)
    image[20:28, 20:28, 20:26] += np.random.default_rng(0).random((8, 8, 6), np.float32) * 1000 + 100
    return image


def holes() -> np.ndarray:
    """0.35 % of the voxels are below all others."""
    return 1200 - vessels()


def pair_of(root, *images: np.ndarray, **options) -> PairsCSV:
    for name, image in zip("ab", images, strict=True):
        nib.save(nib.Nifti1Image(image, np.diag([2.0, 2, 2, 1])), root / f"{name}.nii.gz")
    (root / "p.csv").write_text("fixed,moving\na.nii.gz,b.nii.gz\n")
    return PairsCSV(str(root / "p.csv"), cache=False, **options)


def batch_of(data: PairsCSV) -> dict:
    data.setup("test")
    return next(iter(data.test_dataloader()))  # type: ignore[return-value]


def test_limits_are_the_percentiles_or_the_extremes():
    values = np.random.default_rng(0).normal(size=10_000)
    assert limits(values) == pytest.approx(tuple(np.percentile(values, [0.5, 99.5])))
    low = np.percentile(values, 0.5)
    assert limits(values, foreground=True) == pytest.approx((low, np.percentile(values[values > low], 99.5)))
    few = np.r_[np.zeros(999), 7.0]
    assert limits(few) == (0, 7) and limits(few, foreground=True) == (0, 7)
    many = np.r_[np.zeros(4), np.full(996, 7.0)]
    assert limits(many) == (0, 7) and limits(many, foreground=True) == (0, 7)
    assert limits(np.full(9, 3.0)) == (3, 3)


def test_between_two_limits_an_image_fills_the_unit_interval():
    image = torch.tensor([-1.0, 0, 1, 2, 5])
    assert between(image, 0, 4).tolist() == [0, 0, 0.25, 0.5, 1]
    assert between(image, 2, 2).tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("background", [0.0, -300.0])
def test_an_image_of_few_voxels_is_normalised_by_its_extremes(tmp_path, background):
    image = vessels(background)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Divide by zero")
        batch = batch_of(pair_of(tmp_path, image, 1200 - image, normalise="percentile"))
    for side, values in (("fixed", image), ("moving", 1200 - image)):
        expected = (values - values.min()) / np.ptp(values)
        assert_close(batch[side][0, 0], torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_other_images_are_normalised_as_monai_does(tmp_path):
    """Of more than a million voxels, whose percentiles MONAI takes by NumPy, as we do of any."""
    images = [np.random.default_rng(i).gamma(2.0, 100.0, (102, 102, 102)).astype(np.float32) for i in range(2)]
    batch = batch_of(pair_of(tmp_path, *images, normalise="percentile"))
    theirs = ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True)
    for side, image in zip(("fixed", "moving"), images, strict=True):
        expected = theirs({"image": torch.from_numpy(image)[None]})["image"]
        assert_close(batch[side][0], expected.as_tensor(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalise", ["max", "percentile"])
def test_an_image_that_its_preparation_made_constant_is_zero(tmp_path, normalise):
    class Flat(PairsCSV):
        def preparation(self):
            return [Lambdad("image", torch.ones_like)]

    pair_of(tmp_path, vessels(), holes())
    data = Flat(str(tmp_path / "p.csv"), cache=False, normalise=normalise)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Divide by zero")
        batch = batch_of(data)
    assert not batch["fixed"].any() and not batch["moving"].any()


def test_check_says_which_values_become_black_and_white(tmp_path):
    found = pair_of(tmp_path, vessels(), holes(), normalise="percentile").check().findings
    notes = [one for one in found if one.severity == "note" and "`percentile` takes its least value" in one.sentence]
    assert len(notes) == 2
    found = pair_of(tmp_path, vessels(), holes(), normalise="none").check().findings
    assert sum("is not normalised" in one.sentence for one in found) == 2


def test_a_window_that_holds_the_few_voxels_is_no_empty_one(tmp_path):
    """The percentiles of a vessel map are its background: the window starts there."""
    batch = batch_of(pair_of(tmp_path, vessels(), vessels(), normalise="window", clip=(0, 2000)))
    assert_close(batch["fixed"][0, 0], torch.from_numpy(vessels() / 2000), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"spans 0 to 1\d+(\.\d+)?, all outside of clip \[2000, 3000\]"):
        batch_of(pair_of(tmp_path, vessels(), vessels(), normalise="window", clip=(2000, 3000)))


def test_scans_take_the_same_limits():
    for image in (vessels(), holes()):
        low, high = limits(image, foreground=True)
        assert low < high
        scan = Scan.of(image).normalised[0, 0]
        assert_close(scan, torch.from_numpy(((image - low) / (high - low)).clip(0, 1)), atol=1e-6, rtol=0)
        assert scan.min() == 0 and scan.max() == 1
