"""Similarity losses of a warped and a fixed image; smaller is better."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from dio_lightning.pair import full_precision

Image = Float[Tensor, "b c *s"]


class SSD(nn.Module):
    """Mean squared difference, as a scalar."""

    def forward(self, warped: Image, fixed: Image) -> Float[Tensor, ""]:
        """Mean over batch, channels and voxels, in float32."""
        return (full_precision(warped) - full_precision(fixed)).square().mean()


class LNCC(nn.Module):
    """1 - local normalised cross-correlation, in [0, 1] (signed: [0, 2]).

    Over windows of `window`^d voxels, zero outside the image: cross = Σab - ΣaΣb / window^d, likewise the variances
    (at least 1e-5); cc = cross² / (var_a var_b + 1e-5), or signed cross / √(var_a var_b + 1e-5). A window where an
    image is constant counts as uncorrelated, cc = 0.

    Args:
        window: odd edge length in voxels.
        signed: keep the sign of the correlation, so that inverted contrast is penalised.

    Raises:
        ValueError: if the window is even or below 3.
    """

    def __init__(self, window: int = 7, signed: bool = False) -> None:
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3 voxels, not {window}.")
        self.window, self.signed = window, signed

    def forward(self, warped: Image, fixed: Image) -> Float[Tensor, ""]:
        """Mean over batch, channels and voxels, in float32 (bfloat16 variances would cancel)."""
        with torch.autocast(warped.device.type, enabled=False):
            a, b = full_precision(warped), full_precision(fixed)
            sum_a, sum_b, sum_aa, sum_bb, sum_ab = (self._box(x) for x in (a, b, a * a, b * b, a * b))
            count = self.window ** (a.ndim - 2)
            cross = sum_ab - sum_a * sum_b / count
            var_a = (sum_aa - sum_a * sum_a / count).clamp(min=1e-5)
            var_b = (sum_bb - sum_b * sum_b / count).clamp(min=1e-5)
            product = var_a * var_b + 1e-5
            return 1 - (cross * product.rsqrt() if self.signed else cross * cross / product).mean()

    def _box(self, x: Tensor) -> Tensor:
        return _BoxSum.apply(x, self.window)


class _BoxSum(Function):
    """Sum over a centred window with zeros outside: a symmetric operator, so its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: int) -> Tensor:  # noqa: ANN401
        ctx.window = window
        for axis in range(2, x.ndim):
            x = _window_sum(x, axis, window // 2)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _BoxSum.apply(gradients[0], ctx.window), None


def _window_sum(x: Tensor, axis: int, radius: int) -> Tensor:
    size, total = x.shape[axis], x.clone()
    for shift in range(1, min(radius, size - 1) + 1):
        total.narrow(axis, shift, size - shift).add_(x.narrow(axis, 0, size - shift))
        total.narrow(axis, 0, size - shift).add_(x.narrow(axis, shift, size - shift))
    return total
