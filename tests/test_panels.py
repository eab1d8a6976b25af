"""Pictures stand upright whatever the order of the axes, and show what the deformation does."""

from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from dio_lightning.callbacks import Panels
from dio_lightning.fields import gaussian_smooth
from dio_lightning.pictures import Upright, cut, draw
from dio_lightning.pictures.overlays import checkerboard, grid_lines, outlines
from dio_lightning.scores.pairs import score_pair
from dio_lightning.scores.registered import ScoreOptions

SIZE = (12, 15, 18)
SPACING = (1.0, 2.0, 3.0)


def ras_batch():
    u = torch.cat([gaussian_smooth(torch.randn(1, 1, *SIZE), 2.0) for _ in SIZE], dim=1) * 20
    label = torch.zeros(1, 1, *SIZE, dtype=torch.int16)
    label[..., 2:6, 3:8, 10:16] = 1
    images = {name: gaussian_smooth(torch.rand(1, 1, *SIZE), 1.0) for name in ("fixed", "moving")}
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    ids = {"fixed_id": ["case_0003_0000"], "moving_id": ["case_0004_0000"]}
    return {**images, "fixed_label": label, "affine": affine[None], **ids}, u


def reoriented(batch, u, codes):
    """The same anatomy, stored with other axes."""
    turn = ornt_transform(io_orientation(batch["affine"][0].numpy()), axcodes2ornt(codes))

    def moved(x):
        return torch.tensor(apply_orientation(x[0, 0].numpy(), turn).copy())[None, None]

    fields = torch.empty(1, 3, *moved(u[:, :1]).shape[2:])
    for old, (new, flip) in enumerate(turn.astype(int)):
        fields[:, new] = moved(u[:, old : old + 1])[:, 0] * flip
    affine = batch["affine"][0].numpy() @ inv_ornt_aff(turn, SIZE)
    images = {name: moved(batch[name]) for name in ("fixed", "moving", "fixed_label")}
    return {**images, "affine": torch.tensor(affine)[None]}, fields


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("L", "I", "A"), ("S", "L", "A"), ("P", "S", "R")], ids="".join)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_picture_does_not_depend_on_how_the_image_is_stored(codes, axis):
    batch, u = ras_batch()
    plane, other = cut(batch, u, 0, axis), cut(*reoriented(batch, u, codes), 0, axis)
    assert (plane.sides, plane.aspect) == (other.sides, other.aspect)
    for name, image in plane.images.items():
        np.testing.assert_allclose(other.images[name], image, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(other.points, plane.points, atol=2e-5)


def test_a_coronal_slice_has_right_and_top_where_it_says_and_the_voxels_shape():
    batch, u = ras_batch()
    plane = cut(batch, u, 0, 1)
    assert plane.sides == ("L", "R", "I", "S")
    assert plane.aspect == SPACING[2] / SPACING[0]
    # the middle of the label along the axis is 5
    np.testing.assert_array_equal(plane.images["fixed"], batch["fixed"][0, 0, :, 5].numpy())


def test_points_are_where_the_displacement_takes_them():
    batch, _ = ras_batch()
    u = torch.zeros(1, 3, *SIZE)
    u[:, 0], u[:, 2] = 1.5, -2.0
    grid = np.stack(np.meshgrid(np.arange(12), np.arange(18), indexing="ij"))
    plane = cut(batch, u, 0, 1)
    np.testing.assert_allclose(plane.points, grid + np.array([1.5, -2.0])[:, None, None])
    np.testing.assert_allclose(plane.images["determinant"], 1.0)


def test_a_2d_pair_is_its_own_slice():
    fixed = torch.rand(1, 1, 10, 14)
    plane = cut({"fixed": fixed, "moving": fixed}, torch.zeros(1, 2, 10, 14), 0, 1)
    np.testing.assert_allclose(plane.images["warped"], fixed[0, 0].numpy(), atol=1e-5)
    assert plane.sides == ("", "", "", "")


def test_folds_are_counted_in_the_title_and_yellow():
    batch, _ = ras_batch()
    u = torch.zeros(1, 3, *SIZE)
    u[:, 0] = -2 * torch.arange(SIZE[0]).view(-1, 1, 1)
    figure = draw(cut(batch, u, 0, 1), "all folded")
    axis = next(a for a in figure.axes if "folded" in a.get_title())
    assert "100 %" in axis.get_title()
    shown = axis.images[0]
    np.testing.assert_allclose(shown.cmap(shown.norm(shown.get_array().data))[0, 0], [1, 1, 0, 1])


def test_panels_are_written_for_the_first_pairs_only(tmp_path):
    batch, u = ras_batch()
    trainer = SimpleNamespace(default_root_dir=tmp_path, is_global_zero=True, fast_dev_run=False)
    panels = Panels(pairs=1)
    for index, fixed in enumerate(("case_0003_0000", "case_0005_0000")):
        outputs = {"displacement": u}
        panels.on_test_batch_end(trainer, SimpleNamespace(), outputs, {**batch, "fixed_id": [fixed]}, index)
    assert [file.name for file in (tmp_path / "panels").iterdir()] == ["0003_0004.png"]
    picture = matplotlib.image.imread(tmp_path / "panels" / "0003_0004.png")
    assert picture.shape[1] > 1000 and picture.std() > 0.05


def test_both_differences_have_one_scale_and_panels_the_shape_of_the_body():
    batch, u = ras_batch()
    figure = draw(cut(batch, u, 0, 1), "pair")
    axes = {axis.get_title(): axis for axis in figure.axes}
    before, after = (axes[name].images[0] for name in ("moving − fixed, before", "warped − fixed, after"))
    assert before.get_clim() == after.get_clim() and before.cmap.name == after.cmap.name
    for axis in (axes["fixed"], axes["grid, displacement (mm)"]):
        # a voxel is as high by its width as it is in the body
        axis.apply_aspect()
        box = axis.transData.transform([[0, 0], [1, 1]])
        assert np.divide(*(box[1] - box[0])[::-1]) == pytest.approx(SPACING[2] / SPACING[0], rel=0.02)


def test_a_checkerboard_has_tiles_of_both_images():
    batch, u = ras_batch()
    plane = cut({**batch, "fixed": torch.zeros(1, 1, *SIZE), "moving": torch.ones(1, 1, *SIZE)}, 0 * u, 0, 1)
    plane.images["moving"][0, 0] = 0
    board = checkerboard(plane)
    edge = SIZE[2] * SPACING[2] / 8
    tiles = [(np.arange(n) * s // edge).astype(int) for n, s in ((SIZE[0], SPACING[0]), (SIZE[2], SPACING[2]))]
    np.testing.assert_array_equal(board, (tiles[0][:, None] + tiles[1]) % 2)


def test_outlines_run_around_labels_and_stay_on_the_warped_ones():
    batch, _ = ras_batch()
    u = torch.zeros(1, 3, *SIZE)
    u[:, 0] = 2.0  # voxels to the right, so that the warped label lies 2 to the left of the moving one
    plane = cut({**batch, "moving_label": batch["fixed_label"]}, u, 0, 1)
    for name, shift in (("fixed", 0), ("moving", 0), ("warped", -2)):
        (line,) = outlines(plane, name)
        box = [*line.min(0), *line.max(0)]
        # the label has voxels 2 to 5 and 10 to 15 of this plane: its edge is halfway to the next ones
        assert box == pytest.approx([1.5 + shift, 9.5, 5.5 + shift, 15.5]), name
    # and all grid lines lie 2 to the right of where they would be at rest
    still = grid_lines(cut(batch, 0 * u, 0, 1))
    assert all(np.allclose(a - b, [2, 0]) for a, b in zip(grid_lines(plane), still, strict=True)) and len(still) > 15


def test_without_labels_what_is_bright_is_outlined():
    image = torch.zeros(1, 1, 20, 20)
    image[..., 5:15, 8:12] = 1.0
    plane = cut({"fixed": image, "moving": image}, torch.zeros(1, 2, 20, 20), 0, 1)
    (line,) = outlines(plane, "fixed")
    assert [*line.min(0), *line.max(0)] == pytest.approx([4.5, 7.5, 14.5, 11.5], abs=0.1)


def test_dice_of_a_picture_is_the_score_of_its_pair():
    batch, u = ras_batch()
    batch = {**batch, "moving_label": batch["fixed_label"].roll(1, 2)}
    row, _ = score_pair(u, batch, ScoreOptions(surface=False))
    assert Upright.of(batch, u).dice == (pytest.approx(row["dice_identity"]), pytest.approx(row["dice"]))


@pytest.mark.parametrize("arguments", [{"pairs": -1}, {"axis": 3}, {"every": -1}])
def test_wrong_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="Panels"):
        Panels(**arguments)
