"""The landmark term against the target registration error, finite differences and a known shift."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.testing import assert_close

from dio_lightning.losses import Landmarks, Objective, at_size
from dio_lightning.metrics import tre
from dio_lightning.pair import Pair

SPACING = {2: [2.0, 0.5], 3: [2.0, 0.5, 5.0]}


def points(size: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Landmarks anywhere in the grid."""
    generator = torch.Generator().manual_seed(seed)
    last = torch.tensor(size, dtype=torch.float64)[:, None] - 1
    return torch.rand(2, len(size), count, dtype=torch.float64, generator=generator) * last


def landmarks(size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return points(size, 7, 0), points(size, 7, 1), torch.tensor([SPACING[len(size)]] * 2, dtype=torch.float64)


@pytest.mark.parametrize("size", [(9, 12), (9, 7, 11)], ids=str)
def test_in_mm_it_is_the_target_registration_error(size: tuple[int, ...]) -> None:
    u = torch.randn(2, len(size), *size, dtype=torch.float64)
    fixed, moving, spacing = landmarks(size)
    assert_close(Landmarks("mm")(u, fixed, moving, spacing), tre(u, fixed, moving, spacing).mean(), atol=1e-3, rtol=0)
    unit = torch.ones_like(spacing)
    assert_close(Landmarks("voxels")(u, fixed, moving), tre(u, fixed, moving, unit).mean(), atol=1e-3, rtol=0)


def test_its_gradient_is_that_of_finite_differences() -> None:
    size = (5, 4, 6)
    u = torch.randn(2, 3, *size, dtype=torch.float64).requires_grad_()
    fixed, moving, spacing = landmarks(size)
    assert gradcheck(lambda u: Landmarks()(u, fixed, moving, spacing), u)


def test_where_landmarks_agree_loss_and_gradient_are_zero() -> None:
    u = torch.zeros(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    at, _, spacing = landmarks((6, 7))
    loss = Landmarks()(u, at, at, spacing)
    assert loss.item() == 0
    assert_close(grad(loss, u)[0], torch.zeros_like(u))


def test_descent_on_it_finds_a_shift() -> None:
    u = torch.zeros(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    fixed = points((6, 7), 40, 0)
    optimizer = torch.optim.Adam([u], 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        Landmarks("voxels")(u, fixed, fixed + torch.tensor([[1.0], [-2.0]], dtype=torch.float64)).backward()
        optimizer.step()
    found = tre(u.detach(), fixed, fixed + torch.tensor([[1.0], [-2.0]]), torch.ones(2, 2))
    assert found.mean() < 0.3


def pair(size: tuple[int, ...] = (17, 21)) -> Pair:
    fixed, moving, spacing = landmarks(size)
    images = torch.rand(2, 2, 1, *size)
    return {
        "fixed": images[0], "moving": images[1], "fixed_points": fixed.float(), "moving_points": moving.float(),
        "spacing": spacing.float(),
    }  # fmt: skip


def test_the_objective_weighs_it_and_follows_the_grid_of_a_level() -> None:
    objective, data = Objective(landmarks=Landmarks("mm"), landmarks_weight=0.5), pair()
    full = objective(data, torch.zeros(2, 2, 17, 21))
    assert list(full) == ["loss", "landmarks"]
    assert_close(full["loss"], 0.5 * full["landmarks"])
    level = at_size(data, (9, 11))
    assert_close(objective(level, torch.zeros(2, 2, 9, 11))["landmarks"], full["landmarks"])
    # the same shift in millimetres, in voxels of either grid
    shift = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    assert_close(
        objective(level, shift / 2 + torch.zeros(2, 2, 9, 11))["landmarks"],
        objective(data, shift + torch.zeros(2, 2, 17, 21))["landmarks"],
    )


def test_what_is_missing_is_said_in_one_sentence() -> None:
    u, data = torch.zeros(2, 2, 17, 21), pair()
    bare: Pair = {"fixed": data["fixed"], "moving": data["moving"]}
    with pytest.raises(ValueError, match="no fixed_points"):
        Objective(landmarks=Landmarks())(bare, u)
    with pytest.raises(ValueError, match="no spacing"):
        Landmarks("mm")(u, *landmarks((17, 21))[:2])
    with pytest.raises(ValueError, match="7 fixed and 6 moving"):
        Landmarks("voxels")(u, points((17, 21), 7, 0), points((17, 21), 6, 0))
    with pytest.raises(ValueError, match="at least one"):
        Landmarks("voxels")(u, points((17, 21), 0, 0), points((17, 21), 0, 0))
    # with signatures checked, another unit does not reach the function's own error
    with pytest.raises((ValueError, TypeCheckError), match="unit"):
        Landmarks("cm")  # pyright: ignore[reportArgumentType]
