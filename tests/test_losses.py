"""Losses: closed forms, MONAI and SciPy as references, one-hot Dice, gradients."""

from functools import partial
from typing import Any, cast

import pytest
import torch
from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss
from scipy.ndimage import uniform_filter
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.testing import assert_close

from dio_lightning.fields import warp
from dio_lightning.losses import LNCC, SSD, Dice, Diffusion, Objective, at_size, diffusion, folding, soft_dice
from dio_lightning.pair import Pair

SIZES = [(9, 11), (7, 8, 6)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(*shape: int, count: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, count + 1, shape, generator=generator, dtype=torch.int16)


def test_ssd_is_the_mean_square() -> None:
    assert_close(SSD()(torch.full((2, 1, 3, 4), 5.0), torch.full((2, 1, 3, 4), 2.0)), torch.tensor(9.0))


@pytest.mark.parametrize("window", [5, 7])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lncc_equals_monai(size: tuple[int, ...], window: int) -> None:
    a, b = random(2, 1, *size), random(2, 1, *size, seed=1)
    reference = LocalNormalizedCrossCorrelationLoss(len(size), window, smooth_nr=0.0, smooth_dr=1e-5)
    assert_close(LNCC(window)(a, b), 1 + reference(a, b), atol=1e-5, rtol=1e-4)


def test_signed_lncc_equals_scipy() -> None:
    a, b = random(1, 1, 9, 11, dtype=torch.float64), random(1, 1, 9, 11, seed=1, dtype=torch.float64)
    x, y = a[0, 0].numpy(), b[0, 0].numpy()
    box = partial(uniform_filter, size=5, mode="constant")
    cross = box(x * y) - box(x) * box(y)
    variances = (box(x * x) - box(x) ** 2) * (box(y * y) - box(y) ** 2)
    expected = 1 - (cross * 25 / (variances * 625 + 1e-5) ** 0.5).mean()
    assert_close(LNCC(5, signed=True)(a, b).item(), expected)


def test_lncc_ignores_scale_and_only_the_signed_one_sees_its_sign() -> None:
    a = random(1, 1, 16, 16)
    assert LNCC()(a, a) < 1e-4
    assert LNCC()(-3 * a, a) < 1e-4
    assert LNCC(signed=True)(-3 * a, a) > 2 - 1e-4


def test_lncc_gradient() -> None:
    a, b = (random(1, 1, 6, 7, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1))
    assert gradcheck(LNCC(5), (a, b))
    assert gradcheck(LNCC(5, signed=True), (a, b))


def test_lncc_of_constant_images_is_one_with_finite_gradient() -> None:
    a = torch.full((1, 1, 8, 8), 0.3, requires_grad=True)
    loss = LNCC(3)(a, torch.zeros(1, 1, 8, 8))
    assert_close(loss, torch.tensor(1.0))
    assert grad(loss, a)[0].isfinite().all()


def test_lncc_is_float32_under_autocast() -> None:
    a, b = random(1, 1, 16, 16), random(1, 1, 16, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(LNCC()(a, b), LNCC()(a, b).float())
        inside = LNCC()(a, b)
    assert_close(inside, LNCC()(a, b))


@pytest.mark.parametrize("window", [4, 1])
def test_lncc_refuses_windows_without_a_centre(window: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        LNCC(window)


def one_hot_dice(fixed: Tensor, moving: Tensor, u: Tensor, count: int) -> Tensor:
    classes = torch.arange(1, count + 1).view(1, -1, *[1] * (u.ndim - 2))
    f, m = (fixed == classes).to(u), warp((moving == classes).to(u), u)
    axes = tuple(range(2, u.ndim))
    return (2 * (f * m).sum(axes) + 1e-6) / (f.sum(axes) + m.sum(axes) + 1e-6)


@pytest.mark.parametrize("scale", [0.3, 4.0])
@pytest.mark.parametrize("size", [*SIZES, (1, 7, 8)], ids=str)
def test_soft_dice_equals_warped_one_hot_masks(size: tuple[int, ...], scale: float) -> None:
    fixed, moving = labels(2, 1, *size), labels(2, 1, *size, count=3, seed=1)
    moving[..., :4] = 2  # uniform cells too
    u = ((random(2, len(size), *size) - 0.5) * scale).requires_grad_()
    ours, reference = soft_dice(fixed, moving, u, 5), one_hot_dice(fixed, moving, u, 5)
    weights = random(2, 5, seed=2)
    assert_close(ours, reference, atol=1e-6, rtol=0)
    assert_close(grad((ours * weights).sum(), u), grad((reference * weights).sum(), u), atol=1e-6, rtol=0)


def test_soft_dice_gradient() -> None:
    u = ((random(1, 2, 5, 6, dtype=torch.float64) - 0.5) * 3).requires_grad_()
    assert gradcheck(lambda v: soft_dice(labels(1, 1, 5, 6), labels(1, 1, 5, 6, seed=1), v), (u,))


def test_soft_dice_of_a_half_voxel_step() -> None:
    label = torch.tensor([[0, 1, 1, 1, 0, 0, 0]], dtype=torch.uint8).expand(1, 1, 5, 7)
    u = torch.zeros(1, 2, 5, 7)
    assert_close(soft_dice(label, label, u), torch.ones(1, 1))
    u[:, 1] = 0.5
    assert_close(soft_dice(label, label, u), torch.full((1, 1), 2.5 / 3), atol=1e-6, rtol=0)


def test_dice_averages_over_present_labels_only() -> None:
    label = torch.zeros(2, 1, 6, 6, dtype=torch.int16)
    label[0, 0, :3], label[0, 0, 3:], label[1, 0, 2:] = 1, 3, 1
    u = ((random(2, 2, 6, 6) - 0.5) * 2).requires_grad_()
    scores = soft_dice(label, label, u, 5)
    assert_close(scores[:, [1, 3, 4]], torch.ones(2, 3))
    assert_close(Dice(5)(label, label, u), 1 - (scores[0, 0] + scores[0, 2] + scores[1, 0]) / 3)
    nothing: Tensor = Dice()(torch.zeros_like(label), torch.zeros_like(label), u)
    assert not nothing.any() and not grad(nothing, u)[0].any()


def test_dice_refuses_labels_above_their_number() -> None:
    with pytest.raises(ValueError, match="at most num_labels = 2"):
        soft_dice(labels(1, 1, 5, 5), labels(1, 1, 5, 5), torch.zeros(1, 2, 5, 5), 2)


def linear_field(matrix: Tensor, size: tuple[int, ...]) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    return torch.einsum("ij,j...->i...", matrix, torch.stack(axes))[None]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_diffusion_of_a_linear_field(size: tuple[int, ...]) -> None:
    d = len(size)
    matrix = random(d, d)
    u = linear_field(matrix, size)
    assert_close(diffusion(u), matrix.square().sum())
    assert_close(Diffusion("mean")(u), matrix.square().mean())
    assert_close(diffusion(torch.ones(1, d, *size)), torch.tensor(0.0))
    with pytest.raises((ValueError, TypeError), match="normalisation"):  # TypeError: shapes and types are checked here
        diffusion(u, "voxelmorph")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_folding_sees_only_reversed_orientation(size: tuple[int, ...]) -> None:
    d = len(size)
    flip = torch.zeros(d, d)
    flip[0, 0] = -3.0  # det(I + flip) = -2
    assert_close(folding(linear_field(flip, size)), torch.tensor(2.0))
    assert folding(torch.zeros(1, d, *size)) == 0


def pair(size: tuple[int, ...] = (12, 14)) -> Pair:
    return {
        "fixed": random(1, 1, *size),
        "moving": random(1, 1, *size, seed=1),
        "fixed_label": labels(1, 1, *size),
        "moving_label": labels(1, 1, *size, seed=1),
    }


def test_objective_is_the_weighted_sum_of_its_named_terms() -> None:
    objective = Objective(SSD(), 2.0, Dice(), 3.0, Diffusion(), 0.5)
    u = random(1, 2, 12, 14).requires_grad_()
    terms = objective(pair(), u)
    assert list(terms) == ["loss", "image", "label", "regularity"]
    assert_close(terms["loss"], 2 * terms["image"] + 3 * terms["label"] + 0.5 * terms["regularity"])
    assert grad(terms["loss"], u)[0].isfinite().all()
    assert list(Objective(label=Dice())(pair(), u)) == ["loss", "label"]


def test_objective_says_what_is_missing() -> None:
    bare: Pair = {"fixed": random(1, 1, 5, 5), "moving": random(1, 1, 5, 5)}
    with pytest.raises(ValueError, match="no fixed_label"):
        Objective(label=Dice())(bare, torch.zeros(1, 2, 5, 5))
    with pytest.raises(ValueError, match="at least one"):
        Objective()


def test_at_size_keeps_the_same_map_and_extent() -> None:
    rest = {
        "fixed_points": torch.tensor([[[0.0, 12.0], [0.0, 8.0]]]),
        "spacing": torch.tensor([[2.0, 3.0]]),
        "affine": torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))[None],
        "displacement": torch.ones(1, 2, 13, 9),
    }
    whole = cast(Pair, {**pair((13, 9)), **rest})
    half: dict[str, Any] = dict(at_size(whole, (7, 5)))
    assert half["fixed"].shape == (1, 1, 7, 5)
    assert_close(half["fixed_label"], labels(1, 1, 13, 9)[..., ::2, ::2])
    assert_close(half["fixed_points"], torch.tensor([[[0.0, 6.0], [0.0, 4.0]]]))
    assert_close(half["spacing"], torch.tensor([[4.0, 6.0]]))
    assert_close(half["affine"].diagonal(dim1=1, dim2=2)[0], torch.tensor([4.0, 6.0, 1.0, 1.0], dtype=torch.float64))
    assert_close(half["displacement"], torch.full((1, 2, 7, 5), 0.5))
    assert at_size(whole, (13, 9)) is whole
