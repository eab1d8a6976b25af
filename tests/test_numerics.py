"""Right values where floats, grids and units mislead: offsets, single levels, sheared worlds, thin axes."""

import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.testing import assert_close

from data_modules.augment.affine import RandomAffine
from dio_lightning.features import LKU, MIND, FeaturePyramid, Intensity, UNet, mind
from dio_lightning.fields import (
    blocks,
    compose,
    downsample,
    gaussian_smooth,
    identity,
    regrid,
    resample,
    resize,
    sample,
    spanning,
    warp,
)
from dio_lightning.implicit import Adam, Never
from dio_lightning.layers import OptimizerLayer, Record, Run
from dio_lightning.level import Level
from dio_lightning.losses import LNCC, SSD, Landmarks, Objective
from dio_lightning.metrics import element_areas, hausdorff_per_label, tre
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import score_pair
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.transformations import Affine, Diffeomorphism, FreeForm, StationaryVelocity, Transformation
from dio_lightning.updates import Descent, ImageDescent, UpdateRule

SIZES = [(20, 24), (14, 13, 16), (4, 20, 3)]


def textured(size: tuple[int, ...], sigma: float = 2.0, margin: int = 0) -> torch.Tensor:
    """A smooth random image in [0, 1], zero within the margin of the border."""
    image = gaussian_smooth(torch.randn(1, 1, *size), [sigma if n > 4 else 0.0 for n in size], 3.0)
    image = (image - image.min()) / (image.max() - image.min())
    window = torch.zeros_like(image)
    window[(..., *[slice(margin, n - margin) for n in size])] = 1
    return image * gaussian_smooth(window, 1.5, 3.0) if margin else image


# A3


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 1000), (0.01, 1), (2000, -1000), (1, 1e4), (1e3, 1e6)])
def test_local_correlation_is_that_of_float64_whatever_the_offset(size, signed, scale, offset) -> None:
    a = torch.rand(1, 1, *size)
    b = 0.7 * a + 0.1 * torch.rand_like(a)
    a, b = (scale * x + offset for x in (a, b))
    a[..., : size[-1] // 2], b[..., : size[-1] // 4] = offset, offset  # constant regions

    def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The documented formula, window by window: what is summed are differences from the window's own mean."""
        windows = []
        for z in (x, y):
            z = torch.nn.functional.pad(z, [3] * (2 * len(size)))
            for axis in range(len(size)):
                z = z.unfold(2 + axis, 7, 1)
            windows.append(z.flatten(2 + len(size)))
        x, y = (w - w.mean(-1, keepdim=True) for w in windows)
        cross, v, w = (x * y).sum(-1), (x * x).sum(-1).clamp(min=1e-5), (y * y).sum(-1).clamp(min=1e-5)
        return 1 - (cross / (v * w + 1e-5).sqrt() if signed else cross**2 / (v * w + 1e-5)).mean()

    ours = [x.clone().requires_grad_() for x in (a, b)]
    theirs = [x.double().requires_grad_() for x in (a, b)]
    found, expected = LNCC(7, signed)(*ours), plain(*theirs)
    assert abs(found.item() - expected.item()) < 1e-4
    assert 0 <= found.item() <= (2 if signed else 1)
    for mine, right in zip(torch.autograd.grad(found, ours), torch.autograd.grad(expected, theirs), strict=True):
        # a region without any contrast beside one of thousands leaves a rounding in its windows
        assert (mine - right).norm() < (1e-4 if scale <= 1 else 1e-3) * right.norm() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_local_correlation_takes_half_precision(dtype) -> None:
    a, b = torch.rand(2, 1, 1, 12, 14).to(dtype)
    assert_close(LNCC(5)(a, b).double(), LNCC(5)(a.double(), b.double()), atol=1e-4, rtol=0)


def test_both_ways_to_local_correlation_agree() -> None:
    """The compiled loops, and what other devices and second derivatives use."""
    from dio_lightning.ops import correlation

    for size in SIZES:
        a, b = (x.requires_grad_() for x in 50 + torch.rand(2, 2, 2, *size, dtype=torch.float64))
        for signed in (False, True):
            value = correlation._mean(correlation._moments(a, b, 5), signed)
            found = correlation.local_correlation(a, b, 5, signed)
            assert_close(found, value)
            expected = torch.autograd.grad(value, (a, b))
            assert_close(torch.autograd.grad(found, (a, b), retain_graph=True), expected)
            assert_close(torch.autograd.grad(found, (a, b), create_graph=True), expected)
            m = correlation._moments(a, b, 5)
            assert_close(correlation._slope(a, b, m, 5, signed) / a.numel(), expected[0])


@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_descriptors_and_scales_do_not_see_an_offset(offset) -> None:
    """A3, its kind: what squares must subtract first."""
    image = textured((16, 14, 18))
    far = (image * 1000).round() + offset
    assert_close(mind(far), mind(far.double()).float(), atol=1e-4, rtol=1e-4)
    bound = Descent().on(Level(far, far), FreeForm())
    assert_close(bound.scale.double(), far.double().flatten(2).var(dim=2).mean(1), rtol=1e-4, atol=0)


# A4


@pytest.mark.parametrize("size", [(48, 48), (49, 50), (48, 48, 48), (47, 50, 49)], ids=str)
@pytest.mark.parametrize("levels", [(4,), (2,), (4, 2), (4, 2, 1)], ids=str)
def test_every_single_level_finds_a_translation(size, levels) -> None:
    truth = (4, -4, 8)[: len(size)]
    moving = textured(size, 3.0, margin=11)
    fixed = torch.roll(moving, [-t for t in truth], list(range(2, 2 + len(size))))
    layer, means = OptimizerLayer([150] * len(levels), Descent(), Adam(0.1), Affine(), stop=Never()), list[Tensor]()

    def observe(record: Record) -> None:
        if record.level == len(levels) - 1 and record.step > 90:
            means.append(resize(record.displacement, size)[0].flatten(1).mean(1))

    with torch.no_grad():
        DIO(Intensity(levels=levels), layer).register({"fixed": fixed, "moving": moving}, Run(observe=observe))
    # at rest Adam leaps now and then, by about its rate: where it stands after 150 steps is chance, by the last bit
    assert (torch.stack(means).median(0).values - torch.tensor(truth)).abs().max() < 0.08


@pytest.mark.parametrize("size", [(48, 45), (17, 30, 3), (1, 20, 8)], ids=str)
def test_an_affine_map_is_the_same_on_every_grid(size) -> None:
    d = len(size)
    z = torch.randn(1, d, d + 1, dtype=torch.float64)
    z[:, :, :-1] *= torch.tensor([float(n > 8) for n in size])  # what a level of one voxel cannot say
    whole = Affine().displacement(z, size)
    assert blocks(size, 1) == spanning(size, size)
    for factor in (2, 4, 8):
        for grid in (blocks(size, factor), spanning(size, blocks(size, factor).size)):
            there = regrid(whole, spanning(size, size), grid)
            at = grid.matrix()[:d, :d] @ identity(grid.size, z)[0].flatten(1) + grid.matrix()[:d, 3:]
            centre = [2 / max(n - 1, 1) for n in size]
            place = at * torch.tensor(centre)[:, None] - torch.tensor([float(n > 1) for n in size])[:, None]
            closed = (z[0, :, :-1] @ place + z[0, :, -1:]) / torch.tensor(grid.step)[:, None]
            assert_close(there[0].flatten(1), closed)
            if min(grid.size) > 1:
                assert_close(regrid(there, grid, spanning(size, size)), whole)
                small = Affine().regrid(z, spanning(size, size), grid)
                assert_close(Affine().displacement(small, grid.size), there)
                assert_close(Affine().regrid(small, grid, spanning(size, size)), z)


def test_downsampling_leaves_no_dark_frame() -> None:
    """A4, its kind: a frame that both images have holds them where they are."""
    assert_close(downsample(torch.full((1, 1, 20, 17), 3.0), (10, 9)), torch.full((1, 1, 10, 9), 3.0))


# A6

SHEARED = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
SHEARED[0, 1] = 1


def test_millimetres_go_through_a_sheared_affine() -> None:
    offset = torch.tensor([3.0, -2.0, 1.0]).view(1, 3, 1)
    length = (SHEARED[:3, :3] @ offset[0].double()).norm().item()
    p, u = torch.full((1, 3, 1), 4.0), torch.zeros(1, 3, 10, 10, 10)
    pair: Pair = {
        "fixed": torch.rand(1, 1, 10, 10, 10),
        "moving": torch.rand(1, 1, 10, 10, 10),
        "fixed_points": p,
        "moving_points": p + offset,
        "spacing": SHEARED[:3, :3].norm(dim=0).float()[None],
        "affine": SHEARED[None],
    }
    assert length == pytest.approx(6.0)
    assert tre(u, p, p + offset, SHEARED[None]).item() == pytest.approx(length)
    assert Landmarks()(u, p, p + offset, SHEARED[None]).item() == pytest.approx(length, abs=2e-3)
    assert Objective(landmarks=Landmarks())(pair, u)["landmarks"].item() == pytest.approx(length, abs=2e-3)
    assert score_pair(u, pair, ScoreOptions())[0]["tre"] == pytest.approx(length)


def test_surfaces_go_through_the_whole_affine() -> None:
    fixed = torch.zeros(1, 1, 12, 12, 12, dtype=torch.int16)
    fixed[..., 4:7, 4:8, 3:6] = 1
    moved = torch.roll(fixed, (2, -1), (2, 3))
    shift = (SHEARED[:3, :3] @ torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)).norm().item()
    assert hausdorff_per_label(fixed, moved, SHEARED[None], [1])[1].item() <= shift + 1e-9
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    oblique = torch.eye(4, dtype=torch.float64)
    spacing = torch.tensor([[1.5, 0.7, 2.0]], dtype=torch.float64)
    oblique[:3, :3] = turn * spacing
    for label in (fixed, moved):
        assert_close(
            hausdorff_per_label(fixed, label, oblique[None], [1]), hausdorff_per_label(fixed, label, spacing, [1])
        )
    assert element_areas((2.0, 3.0, 5.0)) == pytest.approx(element_areas(((2.0, 0, 0), (0, 3.0, 0), (0, 0, 5.0))))
    # a triangle across a corner of a sheared cell, by the cross product of its sides
    middles = [SHEARED[:3, :3] @ v for v in torch.eye(3, dtype=torch.float64) / 2]
    area = torch.linalg.cross(middles[1] - middles[0], middles[2] - middles[0]).norm().item() / 2
    rows = tuple(tuple(map(float, row)) for row in SHEARED[:3, :3])
    assert element_areas(rows)[1] == pytest.approx(area)


def test_a_random_rotation_of_a_sheared_grid_is_one_in_the_world() -> None:
    """A6, in augmentation."""
    sample = {"fixed": torch.rand(1, 9, 8, 7), "affine": SHEARED, "spacing": SHEARED[:3, :3].norm(dim=0)}
    drawn = RandomAffine(degrees=20)._drawn(sample)[:3, :3]
    world = SHEARED[:3, :3] @ drawn @ SHEARED[:3, :3].inverse()
    assert_close(world @ world.T, torch.eye(3, dtype=torch.float64))
    assert (world - torch.eye(3)).abs().max() > 0.01


# A8, B14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [576073732, 2**53 + 1])
def test_labels_of_any_size_are_gathered(dtype, value) -> None:
    label = torch.full((1, 1, 8, 300), value, dtype=torch.int64)
    label[..., 280:] = 2035
    u = torch.zeros(1, 2, 8, 300, dtype=dtype)
    assert torch.equal(warp(label, u, "nearest"), label)
    assert torch.equal(resample(label, (8, 600), "nearest").unique(), label.unique())
    assert torch.equal(warp(label.short(), u, "nearest"), label.short())
    assert torch.equal(warp(label > 3000, u, "nearest"), label > 3000)


@pytest.mark.parametrize("size", [(9, 12), (7, 9, 8)], ids=str)
def test_nearest_is_scipys(size) -> None:
    image = torch.rand(1, 1, *size)
    points = torch.randint(-4, 4 * max(size), (1, len(size), 500)).double() / 4  # ties among them
    theirs = map_coordinates(image[0, 0].numpy(), points[0].numpy(), order=0, mode="nearest")
    assert_close(sample(image, points, "nearest")[0, 0], torch.from_numpy(theirs))


def test_one_image_goes_with_many_fields_and_types_are_promoted() -> None:
    """B14."""
    image, u = torch.rand(1, 1, 8, 9), torch.randn(3, 2, 8, 9)
    for mode in ("linear", "nearest"):
        assert_close(warp(image, u, mode), torch.cat([warp(image, one, mode) for one in u.split(1)]))
    assert_close(compose(u[:1], u), torch.cat([compose(u[:1], one) for one in u.split(1)]))
    assert warp(image, u.double()).dtype == torch.float64
    assert warp(image.bfloat16(), u.bfloat16()).dtype == torch.bfloat16
    assert warp(image.double(), u).dtype == torch.float64


def test_zeros_lie_outside_an_axis_of_one_voxel() -> None:
    """B14."""
    image = torch.ones(1, 1, 1, 6, requires_grad=True)
    u = torch.zeros(1, 2, 1, 6)
    u[0, 0, 0] = torch.tensor([0, 0.25, -0.75, 1, 2, -3])
    inside = torch.tensor([1, 0.75, 0.25, 0, 0, 0])
    assert_close(warp(image, u, padding="zeros").flatten(), inside)
    assert_close(warp(image, u, "nearest", "zeros").flatten(), torch.tensor([1.0, 1, 0, 0, 0, 0]))


def test_a_field_of_nan_gives_nan_or_0() -> None:
    """B14."""
    u = torch.full((1, 2, 4, 4), torch.nan)
    assert warp(torch.ones(1, 1, 4, 4), u, "nearest").isnan().all()
    assert (warp(torch.ones(1, 1, 4, 4, dtype=torch.int16), u, "nearest") == 0).all()


# A12


RULES: dict[str, UpdateRule] = {
    "match": Descent(),
    "ssd": ImageDescent(SSD()),
    "lncc": ImageDescent(LNCC(5), regularity=0.1),
    "signed": ImageDescent(LNCC(5, signed=True)),
}


@pytest.mark.parametrize("model", [FreeForm(), Diffeomorphism(), StationaryVelocity(4), Affine()], ids=str)
@pytest.mark.parametrize("update", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1000, -500)])
def test_an_image_does_not_move_onto_itself(model: Transformation, update, scale, offset) -> None:
    image = scale * textured((24, 20, 18), margin=4) + offset
    layer = OptimizerLayer([6, 5, 4], update, Adam(0.3), model, stop=Never())
    for features in (Intensity(), MIND()) if isinstance(model, FreeForm) else (Intensity(),):
        with torch.no_grad():
            u = DIO(features, layer).register({"fixed": image, "moving": image.clone()})
        assert u.abs().max() < 1e-3


# B2


@pytest.mark.parametrize("size", [(32, 28, 3), (32, 1, 28), (1, 32, 28), (24, 1)], ids=str)
@pytest.mark.parametrize("kind", ["intensity", "affine", "lncc", "mind", "unet", "lku"])
def test_thin_images_register_and_are_scored(size, kind) -> None:
    d, moving = len(size), textured(size, 3.0)
    shift = [1 if n > 3 else 0 for n in size]
    fixed = warp(moving, torch.tensor(shift).view(1, d, *[1] * d).float().expand(1, d, *size))
    made: dict[str, FeaturePyramid] = {
        "mind": MIND((8, 4, 2, 1), d),
        "unet": UNet(levels=(8, 4, 2, 1), widths=(4, 4, 4, 4), spatial_dims=d, residual=True),
        "lku": LKU(levels=(8, 4, 2, 1), width=4, spatial_dims=d, residual=True),
    }
    update = ImageDescent(LNCC(5)) if kind == "lncc" else Descent()
    layer = OptimizerLayer([30] * 4, update, transformation=Affine() if kind == "affine" else FreeForm())
    with torch.no_grad():
        u = DIO(made.get(kind, Intensity((8, 4, 2, 1))), layer).register({"fixed": fixed, "moving": moving})
    label = torch.ones(1, 1, *size, dtype=torch.int16)
    row, _ = score_pair(
        u, {"fixed": fixed, "moving": moving, "fixed_label": label, "moving_label": label}, ScoreOptions()
    )
    assert {"folds", "std_logj", "dice"} <= set(row) and float(row["folds"]) < 1
    if kind != "mind":  # of one plane MIND sees little
        assert SSD()(warp(moving, u), fixed) < 0.5 * SSD()(moving, fixed)


# D7


CALLS = {
    "intensity": lambda x: Intensity()(x),
    "unet": lambda x: UNet(widths=(4, 4, 4))(x),
    "ssd": lambda x: SSD()(x, x),
    "lncc": lambda x: LNCC()(x, x),
    "warp": lambda x: warp(x, torch.zeros(1, 2, 8, 8)),
    "resample": lambda x: resample(x, (4, 4)),
    "layer": lambda x: OptimizerLayer([1])([x], [x]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_tensor_without_its_batch_gets_one_sentence(call) -> None:
    with pytest.raises(ValueError, match=r"has shape \(1, 8, 8\), expected \(b, c, \*s\)"):
        call(torch.zeros(1, 8, 8))


def test_an_array_gets_one_sentence() -> None:
    with pytest.raises(ValueError, match="the image is of type ndarray, expected a tensor"):
        Intensity()(torch.zeros(1, 1, 8, 8).numpy())


@pytest.mark.parametrize("size", [(34, 32, 30), (28, 26, 24)], ids=str)
def test_few_parameters_are_not_held_back_by_the_noise_of_a_field(size) -> None:
    """A12: windows of little contrast push images that agree all over the field; for an affine model they cancel."""
    axes = torch.meshgrid(*[torch.linspace(-1.25, 1.25, n) for n in size], indexing="ij")
    inside = torch.sigmoid(30 * (0.9 - sum((x * (1 + 0.25 * k)) ** 2 for k, x in enumerate(axes))))
    texture = gaussian_smooth(torch.randn(1, 1, *size), 1.6)
    moving = inside * (0.6 + 0.12 * texture / texture.std()).clamp(0.1, 1)
    u = torch.zeros(1, 3, *size)
    u[:, 0] = 0.6
    layer = OptimizerLayer([60], ImageDescent(LNCC(7), sigma=0.0), Adam(0.1), Affine(), stop=Never(), field_sigma=0.0)
    with torch.no_grad():
        left = (layer([warp(moving, u)], [moving])[-1].value - u)[0].norm(dim=0)
        still = layer([moving], [moving])[-1].value
    assert left[inside > 0.5].mean() < 0.4 and not bool(still.any())
