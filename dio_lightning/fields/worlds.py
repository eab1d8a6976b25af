"""Pairs whose images lie on different grids of one world: where a voxel of the fixed grid is on the moving one."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from dio_lightning.fields.grid import identity, sample
from dio_lightning.fields.smoothing import gaussian_average
from dio_lightning.pair import Pair


def fixed_to_moving(pair: Pair) -> Float[Tensor, "b 4 4"] | None:
    """A with y = A x, x in voxels of the fixed grid and y in voxels of the moving one; None where they are one grid.

    Raises:
        ValueError: if the pair says where the moving image lies, but not where the fixed one does.
    """
    moving = pair.get("moving_affine")
    if moving is None:
        return None
    if "affine" not in pair:
        raise ValueError("the pair has a moving_affine but no affine, expected both or none")
    return torch.linalg.solve(moving.double(), pair["affine"].double())


def alike_voxels(pair: Pair) -> Bool[Tensor, "b"]:
    """Where both grids of a pair have the same axes and, to a tenth, the same voxels; sizes and places may differ."""
    matrix, d = fixed_to_moving(pair), pair["fixed"].ndim - 2
    if matrix is None:
        return torch.ones(len(pair["fixed"]), dtype=torch.bool, device=pair["fixed"].device)
    return (matrix[:, :d, :d] - torch.eye(d).to(matrix)).abs().amax((1, 2)) < 0.1


def transport(
    u: Float[Tensor, "b d *s"], matrix: Float[Tensor, "b 4 4"] | Float[Tensor, "1 4 4"]
) -> Float[Tensor, "b d *s"]:
    """The displacement v with x + v(x) = A (x + u(x)): from voxels of u's grid to voxels of the one that A leads to."""
    d = u.shape[1]
    matrix, at = matrix.to(u.device), identity(u.shape[2:], u)
    columns = matrix[:, :d].to(u.dtype).view(-1, d, 4, *[1] * d)
    points, moved = at + u, columns[:, :, 3]
    # no matrix product: autocast and TF32 would round voxels to three digits
    for axis in range(d):
        moved = moved + columns[:, :, axis] * points[:, axis : axis + 1]
    return moved - at


def on_moving_grid(u: Float[Tensor, "b d *s"], pair: Pair) -> Float[Tensor, "b d *s"]:
    """The displacement that samples the pair's moving image as it is: moving(x + v(x)), with voxels of its own grid.

    u itself where both images lie on one grid.
    """
    matrix = fixed_to_moving(pair)
    return u if matrix is None else transport(u, matrix)


def seen_from(
    image: Shaped[Tensor, "b c *t"],
    matrix: Float[Tensor, "b 4 4"] | Float[Tensor, "1 4 4"],
    size: Sequence[int],
    mode: str = "linear",
    padding: str = "zeros",
) -> Shaped[Tensor, "b c *s"]:
    """The image at A x for every voxel x of a grid of this size; mode and padding are those of `sample`.

    Where an image's voxels are finer it is smoothed before (linear mode), as `downsample` does; each by its own matrix.
    """
    d = image.ndim - 2
    like = image.new_empty(0, dtype=torch.promote_types(image.dtype, torch.float32))
    points = identity(size, like) + transport(like.new_zeros(len(image), d, *size), matrix)
    if mode == "linear":
        image = _averaged(image, matrix[:, :d, :d].norm(dim=2).tolist())
    return sample(image, points, mode, padding)


def _averaged(image: Float[Tensor, "b c *t"], factors: Sequence[Sequence[float]]) -> Float[Tensor, "b c *t"]:
    """Every image smoothed by what its voxels are finer by, a factor an axis; one row of factors is for all images."""
    sigmas = [[0.5 * factor if factor > 1.01 else 0.0 for factor in row] for row in factors]
    if all(row == sigmas[0] for row in sigmas):
        return gaussian_average(image, sigmas[0])
    return torch.cat([gaussian_average(one[None], row) for one, row in zip(image, sigmas, strict=True)])


def moving_points(pair: Pair) -> Float[Tensor, "b d n"]:
    """The pair's moving landmarks in voxels of the fixed grid."""
    points, matrix = pair["moving_points"], fixed_to_moving(pair)  # pyright: ignore[reportTypedDictNotRequiredAccess]
    if matrix is None:
        return points
    d, back = points.shape[1], torch.linalg.inv(matrix)
    return (back[:, :d, :d] @ points.double() + back[:, :d, 3:]).to(points.dtype)


def on_one_grid(pair: Pair) -> Pair:
    """The pair with its moving image on the fixed grid: images linearly, labels and masks by nearest voxel, 0 outside.

    Moving landmarks become voxels of the fixed grid. The pair itself where both images lie on one grid.
    """
    matrix = fixed_to_moving(pair)
    if matrix is None:
        return pair
    size, common = pair["fixed"].shape[2:], pair.copy()
    common["moving"] = seen_from(pair["moving"], matrix, size)
    for key in ("moving_label", "moving_mask"):
        if (integers := pair.get(key)) is not None:
            common[key] = seen_from(integers, matrix, size, mode="nearest")
    if "moving_points" in pair:
        common["moving_points"] = moving_points(pair)
    del common["moving_affine"]
    return common
