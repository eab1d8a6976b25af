"""Linear interpolation on CUDA: a program takes a block of points, and all channels with the same cells and weights.

The gradient of the image is scattered by atomic additions, as that of `grid_sample` is: the order of the additions, and
so the last digits, differ from run to run. Values and gradients of points need none.
"""

import torch
from torch import Tensor

from dio_lightning.ops.grid_triton import jit, on, place, precision, share, strides, tl, unordered, volume, wide, write

BLOCK = 128
"""Points of a program."""


@jit
def _weigh(position, extent, missing, ZEROS: tl.constexpr, WIDE: tl.constexpr):  # noqa: ANN001, ANN202
    """Of an axis: lower corner, step to the upper one, and the weights of both; as `sampling_kernels._weigh`."""
    number = position.dtype
    last = (extent - 1).to(number)
    finite = tl.abs(position) < float("inf")
    p = tl.where(finite, position, 0.0)
    lowest, highest = 0.0, last
    if ZEROS:
        lowest, highest = -2.0, last + 2
    p = tl.where(p < lowest, lowest, p)
    p = tl.where(p > highest, highest, p)
    low = tl.minimum(tl.maximum(p.to(tl.int32), 0), tl.maximum(extent - 2, 0))
    beyond = p - low.to(number)
    step = tl.minimum(extent - 1, 1)
    lower = tl.where(finite, tl.maximum(1 - tl.abs(beyond), 0.0), missing)
    upper = tl.where(finite, tl.maximum(1 - tl.abs(beyond - 1), 0.0) * step.to(number), missing)
    if WIDE:
        low = low.to(tl.int64)
    return low, step, lower, upper


@jit
def _rise(position, low, extent, ZEROS: tl.constexpr):  # noqa: ANN001, ANN202
    """Of an axis: the slopes of both weights, at a whole voxel those of the cell above; 0 where clamped."""
    number = position.dtype
    last = (extent - 1).to(number)
    if ZEROS:
        moves = (position > -1) & (position < last + 1)
    else:
        moves = (position > 0) & (position < last)
    beyond = tl.where(moves, position, 0.0) - low.to(number)
    below, above = (beyond < 0).to(number), (beyond >= 1).to(number)
    inside = 1 - below - above
    upper = (inside - above) * tl.minimum(extent - 1, 1).to(number)
    return tl.where(moves, below - inside, 0.0), tl.where(moves, upper, 0.0)


@jit
def _points(  # noqa: ANN202
    points, sample, n, inside, total, t1, t2, scale,  # noqa: ANN001
    D: tl.constexpr, RELATIVE: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """Where in the image the points, times `scale`, lie along three axes; a plane's first one is 0."""
    at = points + sample * D * total + n
    i, j, k = place(n, t1, t2)
    x = (n * 0).to(NUMBER)
    if D == 3:
        x = tl.load(at, inside, 0.0).to(NUMBER) * scale
        at += total
    y, z = tl.load(at, inside, 0.0).to(NUMBER) * scale, tl.load(at + total, inside, 0.0).to(NUMBER) * scale
    if RELATIVE:
        y, z = y + j.to(NUMBER), z + k.to(NUMBER)
        if D == 3:
            x += i.to(NUMBER)
    return x, y, z


@jit
def _plane(at, step1, step2, a1, b1, a2, b2, inside):  # noqa: ANN001, ANN202
    """Of a plane of a cell: the sum of its corners, weighted along both axes."""
    x00 = tl.load(at, inside, 0.0).to(a1.dtype)
    x01 = tl.load(at + step2, inside, 0.0).to(a1.dtype)
    x10 = tl.load(at + step1, inside, 0.0).to(a1.dtype)
    x11 = tl.load(at + step1 + step2, inside, 0.0).to(a1.dtype)
    return a1 * (a2 * x00 + b2 * x01) + b1 * (a2 * x10 + b2 * x11)


@jit(do_not_specialize=["blocks", "total", "s0", "s1", "s2", "t1", "t2"])
def _forward(  # noqa: ANN202
    image, points, factor, out, blocks, total, s0, s1, s2, t1, t2, channels, ib, i0, i1, i2, ic,  # noqa: ANN001
    D: tl.constexpr, ZEROS: tl.constexpr, RELATIVE: tl.constexpr, ADDED: tl.constexpr, NUMBER: tl.constexpr,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Values (b, c, total) at the points; NaN at those that are not finite. ADDED multiplies and adds the points."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside = n < total
    scale = 1.0
    if ADDED:
        scale = tl.load(factor + sample)
    x, y, z = _points(points, sample, n, inside, total, t1, t2, scale, D, RELATIVE, NUMBER)
    low0, step0, a0, b0 = _weigh(x, s0, float("nan"), ZEROS, WIDE)
    low1, step1, a1, b1 = _weigh(y, s1, float("nan"), ZEROS, WIDE)
    low2, step2, a2, b2 = _weigh(z, s2, float("nan"), ZEROS, WIDE)
    at = image + sample * ib + (low0 * i0 + low1 * i1 + low2 * i2)
    to, step = out + sample * channels * total + n, points + sample * channels * total + n
    for _ in range(0, channels):
        value = _plane(at, step1 * i1, step2 * i2, a1, b1, a2, b2, inside)
        if D == 3:
            value = a0 * value + b0 * _plane(at + step0 * i0, step1 * i1, step2 * i2, a1, b1, a2, b2, inside)
        if ADDED:
            value += scale * tl.load(step, inside, 0.0)
            step += total
        tl.store(to, value, inside)
        at += ic
        to += total


def interpolate(image: Tensor, points: Tensor, padding: str, relative: bool) -> Tensor:
    """See `dio_lightning.ops.sampling.interpolate`; computed in float32, in float64 where image or points are that."""
    return _interpolated(image, points, None, padding, relative)


def compose(u: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    """Of fields of one grid and one precision; see `dio_lightning.ops.composition.compose`."""
    return _interpolated(u, v, factor.detach().contiguous(), "border", True)


def _interpolated(image: Tensor, points: Tensor, factor: Tensor | None, padding: str, relative: bool) -> Tensor:
    image, points = image.detach(), points.detach().contiguous()
    (b, d, *t), c = points.shape, image.shape[1]
    total = points.shape[2:].numel()
    out, blocks = image.new_empty(b, c, *t), -(-total // BLOCK)
    with on(points):
        _forward[(b * blocks,)](
            *(image, points, points if factor is None else factor, out, blocks, total),
            *(*volume(image), *volume(points)[1:], c, *strides(image), d, padding == "zeros", relative),
            *(factor is not None, precision(image, points)[1], BLOCK, wide(image, out, values=max(c, 3))),
        )
    return out


@jit
def _sides(at, step1, step2, a1, b1, a2, b2, l1, u1, l2, u2, inside):  # noqa: ANN001, ANN202
    """Of a plane of a cell: the weighted sum of its corners, and its slopes along both axes."""
    x00 = tl.load(at, inside, 0.0).to(a1.dtype)
    x01 = tl.load(at + step2, inside, 0.0).to(a1.dtype)
    x10 = tl.load(at + step1, inside, 0.0).to(a1.dtype)
    x11 = tl.load(at + step1 + step2, inside, 0.0).to(a1.dtype)
    lower, upper = a2 * x00 + b2 * x01, a2 * x10 + b2 * x11
    return a1 * lower + b1 * upper, l1 * lower + u1 * upper, a1 * (l2 * x00 + u2 * x01) + b1 * (l2 * x10 + u2 * x11)


@jit
def _spread(to, step1, step2, a1, b1, a2, b2, share, inside):  # noqa: ANN001, ANN202
    """Adds a plane's share of a gradient to its corners; a corner that weighs nothing is left alone."""
    w00, w01, w10, w11 = a1 * a2, a1 * b2, b1 * a2, b1 * b2
    tl.atomic_add(to, share * w00, inside & (w00 != 0), sem="relaxed")
    tl.atomic_add(to + step2, share * w01, inside & (w01 != 0), sem="relaxed")
    tl.atomic_add(to + step1, share * w10, inside & (w10 != 0), sem="relaxed")
    tl.atomic_add(to + step1 + step2, share * w11, inside & (w11 != 0), sem="relaxed")


@jit(do_not_specialize=["blocks", "total", "s0", "s1", "s2", "t1", "t2"])
def _backward(  # noqa: ANN202
    gradient, image, points, of_image, of_points, blocks, total, s0, s1, s2, t1, t2, channels, images,  # noqa: ANN001
    ib, i0, i1, i2, ic,  # noqa: ANN001
    D: tl.constexpr, IMAGE: tl.constexpr, POINTS: tl.constexpr, ZEROS: tl.constexpr, RELATIVE: tl.constexpr,
    NUMBER: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients with respect to image (IMAGE) and points (POINTS), for a gradient (b, c, total) at the values."""
    sample, n = share(blocks, BLOCK, WIDE)
    inside = n < total
    x, y, z = _points(points, sample, n, inside, total, t1, t2, 1.0, D, RELATIVE, NUMBER)
    low0, step0, a0, b0 = _weigh(x, s0, 0.0, ZEROS, WIDE)
    low1, step1, a1, b1 = _weigh(y, s1, 0.0, ZEROS, WIDE)
    low2, step2, a2, b2 = _weigh(z, s2, 0.0, ZEROS, WIDE)
    l0, u0 = _rise(x, low0, s0, ZEROS)
    l1, u1 = _rise(y, low1, s1, ZEROS)
    l2, u2 = _rise(z, low2, s2, ZEROS)
    at = image + sample * ib + (low0 * i0 + low1 * i1 + low2 * i2)
    voxels = s0.to(tl.int64) * s1 * s2
    to = of_image + (sample % images) * channels * voxels + ((low0 * s1 + low1) * s2 + low2)
    source = gradient + sample * channels * total + n
    of_x = tl.zeros([BLOCK], NUMBER)
    of_y, of_z = of_x, of_x
    for _ in range(0, channels):
        g = tl.load(source, inside, 0.0).to(NUMBER)
        if POINTS:
            near, near1, near2 = _sides(at, step1 * i1, step2 * i2, a1, b1, a2, b2, l1, u1, l2, u2, inside)
            if D == 3:
                far, far1, far2 = _sides(
                    at + step0 * i0, step1 * i1, step2 * i2, a1, b1, a2, b2, l1, u1, l2, u2, inside
                )
                of_x += g * (l0 * near + u0 * far)
                near1, near2 = a0 * near1 + b0 * far1, a0 * near2 + b0 * far2
            of_y += g * near1
            of_z += g * near2
        if IMAGE:
            _spread(to, step1 * s2, step2, a1, b1, a2, b2, g * a0, inside & (a0 != 0))
            if D == 3:
                _spread(to + step0 * s1 * s2, step1 * s2, step2, a1, b1, a2, b2, g * b0, inside & (b0 != 0))
        at += ic
        to += voxels
        source += total
    if POINTS:
        write(of_points + sample * D * total + n, total, of_x, of_y, of_z, inside, D)


def backward(
    gradient: Tensor, image: Tensor, points: Tensor, padding: str, relative: bool, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to image and points; what is not needed is empty, points that are not finite give 0."""
    g, image, points = gradient.detach().contiguous(), image.detach(), points.detach().contiguous()
    (b, d, *_), (images, c), (kept, number) = points.shape, image.shape[:2], precision(image, points)
    if needs[0]:
        unordered("the gradient of an interpolated image", points)
    total = points.shape[2:].numel()
    blocks = -(-total // BLOCK)
    of_image = torch.zeros(image.shape if needs[0] else 0, dtype=kept, device=image.device)
    of_points = torch.empty_like(points) if needs[1] else points.new_empty(0)
    with on(points):
        _backward[(b * blocks,)](
            *(g, image, points, of_image, of_points),
            *(blocks, total, *volume(image), *volume(points)[1:], c, images, *strides(image)),
            *(d, *needs, padding == "zeros", relative, number, BLOCK, wide(image, g, values=max(c, 3))),
        )
    return of_image.to(image.dtype), of_points
