"""What `register` may be given besides two images: masks, landmarks, terms, a transform to start from."""

import nibabel as nib
import numpy as np
import pytest
import torch
from scans import SPACING, affine_of, moved, scene, turned
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from dio_lightning.implicit import Adam
from dio_lightning.layers import OptimizerLayer
from dio_lightning.losses import LNCC, LabelPrompt, LandmarkPrompt, TotalVariation
from dio_lightning.modules import Refinement, VoxelMorph
from dio_lightning.networks import VxmUNet
from dio_lightning.registration import Registration, register
from dio_lightning.registration.deformable import local_correlation
from dio_lightning.registration.landmark_start import rigid_fit
from dio_lightning.transformations import Diffeomorphism, FreeForm
from dio_lightning.transforms import Affine, Chain, Field, ImageGrid, read_transform
from dio_lightning.updates import ImageDescent

SIZES = [(44, 40), (26, 24, 22)]
every_size = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def bent(image: np.ndarray, strength: float = 1.2) -> np.ndarray:
    """The image under a smooth displacement."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij")).astype(float)
    bend = strength * np.sin(grid[1] / 6)
    return map_coordinates(image, grid + np.stack([bend, *[0 * bend] * (image.ndim - 1)]), order=3, mode="nearest")


def ball(size: tuple[int, ...], radius: float) -> np.ndarray:
    """A blob a third of the way along the first axis."""
    grid = np.meshgrid(*[np.arange(n) for n in size], indexing="ij")
    centre = [n // 3 if axis == 0 else n // 2 for axis, n in enumerate(size)]
    return np.sqrt(sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True))) < radius


def field_of(result: Registration) -> np.ndarray:
    """The displacement (d, *s) of the deformable stage, in mm."""
    return result.transform.links[0].displacement[: len(result.fixed.grid.size)].numpy()  # type: ignore[union-attr]


def deformed(fixed: np.ndarray, moving: np.ndarray, **options) -> Registration:
    affine = affine_of(fixed.shape)
    return register(fixed, moving, fixed_affine=affine, moving_affine=affine, **{"stages": ("deformable",), **options})


@pytest.mark.parametrize(("size", "share"), [((44, 40), 0.3), ((34, 32, 32), 0.9)], ids=["2d", "3d"])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_lesion_that_is_cut_out_pulls_at_nothing(size, share, side) -> None:
    """A bright ball in one image only: with its mask the field is that without the ball, and nearer to the truth."""
    fixed, lesion = scene(size), ball(size, 4)
    images, mask = {"fixed": fixed, "moving": bent(fixed)}, {f"{side}_mask": ~lesion}
    cut = field_of(deformed(**images, **mask))
    images[side] = np.where(lesion, 400.0, images[side])
    pulled, held = (field_of(deformed(**images, **options)) for options in ({}, mask))
    # where the moving image is placed, a coordinate is rounded, and 1e-7 of a neighbour comes with it
    np.testing.assert_allclose(held, cut, atol=1e-3)
    truth = np.zeros_like(held)
    truth[0] = -1.2 * SPACING * np.sin(np.arange(size[1]) / 6).reshape(-1, *[1] * (len(size) - 2))
    errors = [np.linalg.norm(u - truth, axis=0)[ball(size, 5)].mean() for u in (pulled, held)]
    assert errors[1] < share * errors[0], errors


def test_a_mask_that_holds_all_changes_nothing() -> None:
    fixed = scene(SIZES[0])
    moving = bent(fixed)
    whole = deformed(
        fixed, moving, fixed_mask=np.ones(SIZES[0]), moving_mask=nib.Nifti1Image(np.ones(SIZES[0]), affine_of(SIZES[0]))
    )
    np.testing.assert_allclose(field_of(whole), field_of(deformed(fixed, moving)), atol=0.02 * SPACING)


def test_masks_go_where_the_affine_takes_them() -> None:
    """What lies under the mask of a moving image that is placed first has no say, whatever its values."""
    size = SIZES[0]
    affine, start = affine_of(size), turned(size, 20, 10)
    fixed = scene(size)
    images = {"fixed": fixed, "moving": bent(fixed), "start": Chain([Affine(start)])}
    images["moving_affine"] = start @ affine
    one = register(**images, fixed_affine=affine, moving_mask=~ball(size, 4), stages=("deformable",))
    images["moving"] = np.where(ball(size, 4), 3.0, images["moving"])
    other = register(**images, fixed_affine=affine, moving_mask=~ball(size, 4), stages=("deformable",))
    np.testing.assert_array_equal(field_of(one), field_of(other))


@every_size
def test_linear_stages_leave_out_what_masks_leave_out(size) -> None:
    """Anything may stand in there, of either image; the transform comes back, and a mask that holds all is none."""
    fixed, affine, truth = scene(size), affine_of(size), turned(size, 20, 12)
    images = {"fixed": fixed, "moving": moved(fixed, affine, truth)}
    options = {"fixed_affine": affine, "moving_affine": affine, "stages": ("rigid",)}
    masks = {"fixed_mask": ~ball(size, 4), "moving_mask": ~ball(size, 5)}
    points = np.argwhere(fixed > 20) @ affine[: len(size), : len(size)] + affine[: len(size), 3]

    def matrix(**changes) -> np.ndarray:
        return register(**{**images, **options, **changes}).transform.links[0].matrix  # type: ignore[union-attr]

    without = matrix(**masks)
    images = {side: np.where(masks[f"{side}_mask"], images[side], 500.0) for side in images}
    np.testing.assert_allclose(matrix(**masks), without, atol=1e-3)
    missed = Affine(without).points(points) - Affine(truth).points(points)
    assert np.linalg.norm(missed, axis=1).mean() < 0.25 * SPACING
    if len(size) == 2:
        ones = {side: np.ones(size) for side in masks}
        np.testing.assert_allclose(matrix(**ones), matrix(), atol=1e-3)


def test_a_small_mask_in_a_large_field_of_view_is_enough() -> None:
    """Of the moving image a twentieth counts: what is left is judged by that, not by the field of view."""
    size, large = SIZES[0], (150, 140)
    start = [slice(50, 50 + n) for n in size]
    fixed, moving, mask = (np.zeros(large) for _ in range(3))
    fixed[tuple(start)] = scene(size)
    affine, truth = affine_of(large), turned(large, 12, 8)
    moving = moved(fixed, affine, truth)
    mask = gaussian_filter((moving > 20).astype(float), 1) > 0.1
    assert mask.mean() < 0.07
    result = register(fixed, moving, fixed_affine=affine, moving_affine=affine, stages=("rigid",), moving_mask=mask)
    points = np.argwhere(fixed > 20) @ affine[:2, :2] + affine[:2, 3]
    missed = result.transform.points(points) - Affine(truth).points(points)
    assert np.linalg.norm(missed, axis=1).mean() < 0.5 * SPACING


@every_size
def test_landmarks_meet_though_the_images_say_nothing_of_them(size) -> None:
    """Through an affine that has placed the moving image, in millimetres of each world."""
    d, affine, start = len(size), affine_of(size), turned(size, 20, 10)
    fixed = scene(size)
    place = np.array([[0.35, 0.5, 0.5], [0.6, 0.45, 0.55]])[:, :d] * (np.array(size) - 1)
    p = place @ affine[:d, :d] + affine[:d, 3]
    aim = np.zeros((2, 3))
    aim[:, :d] = p + 1.5 * SPACING * np.array([1, -0.5, 0.5])[:d]
    q = (aim @ start[:3, :3].T + start[:3, 3])[:, :d]
    images = {"fixed_affine": affine, "moving_affine": start @ affine, "start": Affine(start)}
    result = register(
        fixed,
        fixed.copy(),
        **images,
        stages=("deformable",),
        transformation=FreeForm(),
        fixed_points=p,
        moving_points=q,
    )
    missed = np.linalg.norm(result.transform.points(p) - q, axis=1)
    assert (missed < 0.35 * SPACING).all(), missed
    landmarks = result.details["landmarks_mm"]
    assert landmarks["after"] == pytest.approx(missed.mean(), abs=1e-3)
    assert landmarks["before"] == pytest.approx(np.linalg.norm(p - q, axis=1).mean())


def test_a_second_deformable_stage_goes_on_from_the_first_exactly() -> None:
    """Two stages are the first, whose transform is then what the second starts from; from a file too."""
    size = SIZES[0]
    fixed = scene(size)
    moving = bent(fixed, 2.0)
    first = deformed(fixed, moving)
    both = deformed(fixed, moving, stages=("deformable", "deformable"))
    then = deformed(fixed, moving, start=first.transform)
    assert [type(link) for link in both.transform.links] == [Field, Field, Affine]
    points = first.fixed.grid.points().flatten(1).numpy().T
    np.testing.assert_allclose(both.transform.points(points), then.transform.points(points), atol=1e-5)
    errors = [np.abs(np.asarray(result.warp().dataobj) - fixed)[4:-4, 4:-4].mean() for result in (first, both)]
    assert errors[1] <= errors[0] and len(both.details["stages"]) == 2


@pytest.mark.parametrize("order", ["field last", "field first"])
def test_a_field_to_start_from_is_composed_exactly_and_saved_in_two_parts(order, tmp_path) -> None:
    size = SIZES[0]
    fixed, affine = scene(size), affine_of(size)
    shift, push = turned(size, 10, 4), torch.zeros(3, *size, dtype=torch.float64)
    push[0] = 3 * torch.from_numpy(gaussian_filter(np.random.default_rng(0).normal(size=size), 5)) * 20
    chain = [Field(push, affine), Affine(shift)]
    start = Chain(chain if order == "field first" else chain[::-1])
    result = deformed(fixed, fixed.copy(), start=start)
    points = result.fixed.grid.points().flatten(1)
    inner = result.transform.links[0].map(points)
    torch.testing.assert_close(result.transform.map(points), start.map(inner))
    result.save(tmp_path / "out")
    both = Chain([read_transform(tmp_path / "out/displacement.nii.gz"), read_transform(tmp_path / "out/affine.tfm")])
    torch.testing.assert_close(both.map(points)[:2], result.transform.map(points)[:2], atol=1e-2, rtol=0)
    whole = read_transform(tmp_path / "out/transform.h5")
    torch.testing.assert_close(whole.map(points)[:2], result.transform.map(points)[:2], atol=1e-3, rtol=0)


def test_terms_pull_at_the_deformable_stage_and_leave_the_callers_module_alone() -> None:
    fixed = scene(SIZES[0])
    moving, module = bent(fixed, 3.0), local_correlation(SIZES[0])
    rough = field_of(deformed(fixed, moving, model=module))
    stiff = field_of(deformed(fixed, moving, model=module, terms=[TotalVariation(weight=5.0)]))
    roughness = [np.linalg.norm(np.diff(u, n=2, axis=2)[0][fixed[:, 1:-1] > 20]) for u in (rough, stiff)]
    assert roughness[1] < 0.6 * roughness[0]
    update = module.layer.update
    assert isinstance(update, ImageDescent) and update.terms == () and not update.masked
    masked = deformed(fixed, moving, model=module, fixed_mask=~ball(SIZES[0], 4))
    assert not np.allclose(field_of(masked), rough) and not update.masked


def test_a_refinement_leaves_out_what_the_method_leaves_out() -> None:
    """With DIO on learned features it would be the only one to see the images at the finest level."""
    size = SIZES[0]
    fixed, module = scene(size), local_correlation(size)
    module.refine = Refinement(OptimizerLayer([5], ImageDescent(LNCC(5), regularity=0.1), Adam(0.1), Diffeomorphism()))
    fields = [
        field_of(deformed(fixed, np.where(ball(size, 4), value, bent(fixed)), model=module, moving_mask=~ball(size, 4)))
        for value in (0.0, 400.0)
    ]
    np.testing.assert_allclose(*fields, atol=1e-3)
    assert not module.refine.layer.update.masked  # type: ignore[union-attr]


SQUARE = {"fixed": scene((16, 16)), "moving": scene((16, 16))}
PLACES = np.array([[3.0, 4.0], [8.0, 9.0]])
HALF = np.arange(16)[:, None] * np.ones(16) > 7


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"fixed_mask": np.zeros((16, 16))}, "is 0 everywhere"),
        ({"fixed_mask": np.ones((16, 15))}, "the mask of the fixed image lies on another grid than the fixed image"),
        ({"moving_mask": nib.Nifti1Image(np.ones((16, 16)), 2 * np.eye(4))}, "lies on another grid|last row"),
        ({"fixed": np.where(HALF, 3.0, SQUARE["fixed"]), "fixed_mask": HALF}, "is 3 wherever the mask"),
        ({"fixed_mask": HALF, "moving_mask": ~HALF}, "no voxel counts in both images"),
        ({"fixed_points": PLACES}, "landmarks of one image alone"),
        ({"fixed_points": PLACES, "moving_points": PLACES[:1]}, "2 fixed and 1 moving landmarks"),
        ({"fixed_points": PLACES[:0], "moving_points": PLACES[:0]}, "one at least"),
        ({"fixed_points": PLACES, "moving_points": PLACES + 9}, "1 landmarks lie beside the moving image.*number 2"),
        ({"fixed_points": PLACES * np.nan, "moving_points": PLACES}, "NaN or infinite"),
        ({"fixed_points": np.ones(3), "moving_points": PLACES}, "expected one row"),
        ({"fixed_points": PLACES, "moving_points": PLACES, "stages": ("rigid",)}, "landmarks is for the deformable"),
        ({"terms": [LandmarkPrompt()]}, "LandmarkPrompt needs the landmarks of both"),
        ({"terms": [LabelPrompt()]}, "LabelPrompt needs the label maps of both"),
        ({"stages": ("deformable", "rigid", "deformable")}, "deformable ones last"),
        (
            {"start": Field(torch.zeros(3, 16, 16), np.eye(4)), "stages": ("affine", "deformable")},
            "no affine stage can follow",
        ),
    ],
)
def test_what_cannot_be_is_said(arguments, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        register(**({**SQUARE, "stages": ("deformable",)} | arguments))


def test_a_method_that_takes_no_masks_says_so() -> None:
    model = VoxelMorph(VxmUNet(2, 2))
    with pytest.raises(ValueError, match="VoxelMorph takes no masks"):
        register(**SQUARE, stages=("deformable",), model=model, fixed_mask=HALF)


@every_size
def test_a_rigid_fit_is_scipys_and_says_nothing_of_too_few(size) -> None:
    """Of landmarks with noise; in the plane, the angle in closed form."""
    d, generator = len(size), np.random.default_rng(0)
    grid, truth = ImageGrid(size, affine_of(size)), turned(size, 40, 12)
    p = np.zeros((3, 7))
    p[:d] = generator.uniform(-40, 40, (d, 7))
    q = truth[:3, :3] @ p + truth[:3, 3:]
    q[:d] += generator.normal(size=(d, 7))
    matrix = rigid_fit(torch.from_numpy(p), torch.from_numpy(q), grid)
    a, b = (x - x.mean(1, keepdims=True) for x in (p, q))
    if d == 3:
        expected = Rotation.align_vectors(b.T, a.T)[0].as_matrix()
    else:
        angle = np.arctan2((a[0] * b[1] - a[1] * b[0]).sum(), (a * b).sum())
        expected = Rotation.from_euler("z", angle).as_matrix()
    np.testing.assert_allclose(matrix[:3, :3], expected, atol=1e-7)
    np.testing.assert_allclose(matrix[:3, :3] @ p.mean(1) + matrix[:3, 3], q.mean(1))
    line = np.outer([1.0, 0.5, 0.0], np.arange(4))
    few = line[:, :1] if d == 2 else line
    assert rigid_fit(torch.from_numpy(few), torch.from_numpy(few), grid) is None
    assert rigid_fit(torch.from_numpy(p[:, :1]), torch.from_numpy(p[:, :1]), grid) is None


def test_linear_stages_start_from_where_landmarks_meet() -> None:
    """Upside down, where no other start leads."""
    size = SIZES[0]
    fixed, affine, truth = scene(size), affine_of(size), turned(size, 170, 8)
    p = np.array([[-30.0, 10.0], [20.0, -16.0], [12.0, 30.0]])
    images = {"fixed": fixed, "moving": moved(fixed, affine, truth), "fixed_affine": affine, "moving_affine": affine}
    result = register(
        **images, stages=("rigid", "deformable"), fixed_points=p, moving_points=Affine(truth).points(p) + 1.0
    )
    points = np.argwhere(fixed > 20) @ affine[:2, :2] + affine[:2, 3]
    missed = Chain(result.transform.links[1:]).points(points) - Affine(truth).points(points)
    assert np.linalg.norm(missed, axis=1).mean() < 0.25 * SPACING
