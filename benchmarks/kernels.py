"""The fused operator against what a good PyTorch user would write: grid_sample and autograd."""

from collections.abc import Callable

import torch
from timing import Row, Size, Stopwatch, shifted_features
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from dio_lightning.ops import match, match_reference


class Plain:
    """Feature distance by `F.grid_sample`; the identity grid is made once."""

    def __init__(self, size: Size) -> None:
        axes = [torch.linspace(-1, 1, extent) for extent in size]
        self.grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flip(-1)[None]
        self.scale = torch.tensor([2 / (extent - 1) for extent in size]).flip(0)

    def energy(self, fixed: Tensor, moving: Tensor, u: Tensor) -> Tensor:
        """Σ_x of the mean squared difference over channels."""
        points = self.grid + u.movedim(1, -1).flip(-1) * self.scale
        warped = F.grid_sample(moving, points, padding_mode="border", align_corners=True)
        return (warped - fixed).square().mean(1).sum()

    def match(self, fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Value and displacement gradient."""
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            value = self.energy(fixed, moving, u)
        return value.detach()[None], torch.autograd.grad(value, u)[0]

    def graph(self, fixed: Tensor, moving: Tensor, u: Tensor) -> tuple[list[Tensor], Tensor]:
        """Both feature maps as leaves, and the displacement gradient with a graph back to them."""
        leaves = [fixed.detach().requires_grad_(), moving.detach().requires_grad_()]
        u = u.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(*leaves, u), u, create_graph=True)
        return leaves, slope


def value_rows(size: Size, channels: int, watch: Stopwatch) -> list[Row]:
    """Value and gradient; the plain path is given whichever memory format it likes better."""
    fixed, moving, u = _half_way(size, channels)
    first = fixed.contiguous(), moving.contiguous()
    plain = Plain(size)
    results: dict[str, tuple[Tensor, Tensor]] = {}

    def run(name: str, function: Callable[..., tuple[Tensor, Tensor]], *inputs: Tensor) -> Callable[[], None]:
        def call() -> None:
            results[name] = function(*inputs)

        return call

    calls = {
        "plain, channels first": run("plain", plain.match, *first, u),
        "plain, channels last": run("plain, last", plain.match, fixed, moving, u),
        "reference": run("reference", match_reference.match, *first, u),
        "fused": run("fused", match, fixed, moving, u),
    }
    with torch.no_grad():
        seconds = watch.best(calls)
    for name in ("reference", "fused"):
        # where a point meets a voxel to the last bit, either side's slope is right: compare what is typical
        difference = (results[name][1] - results["plain"][1]).abs().flatten()
        assert difference.median() < 1e-4 * results["plain"][1].std(), f"{name} does not compute the gradient"
        assert_close(results[name][0], results["plain"][0], rtol=1e-3, atol=0.0)
    return _rows("value and gradient", seconds)


def adjoint_rows(size: Size, channels: int, watch: Stopwatch) -> list[Row]:
    """Gradients of ⟨w, ρ⟩ with respect to both feature maps; for the plain path only the double backward is timed."""
    fixed, moving, u = _half_way(size, channels)
    first = fixed.contiguous(), moving.contiguous()
    of_value, of_gradient = u.new_zeros(1), torch.randn(u.shape, generator=torch.Generator().manual_seed(1))
    calls: dict[str, Callable[[], object]] = {}
    if _differentiates_twice():
        leaves, slope = Plain(size).graph(*first, u)
        calls["plain"] = lambda: torch.autograd.grad(slope, leaves, of_gradient, retain_graph=True)
    calls["reference"] = lambda: match_reference.match_adjoint(*first, u, of_value, of_gradient)
    calls["fused"] = lambda: torch.ops.dio.match_adjoint(fixed, moving, u, of_value, of_gradient)
    return _rows("feature adjoint", watch.best(calls))


def _half_way(size: Size, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features and half of the displacement that aligns them: at the whole of it there would be nothing to compute."""
    fixed, moving, u = shifted_features(size, channels)
    return fixed, moving, u / 2


def _differentiates_twice() -> bool:
    """Whether this torch has the second derivative of 3-D grid_sample (from 2.12 on)."""
    try:
        leaves, slope = Plain((2, 2, 2)).graph(
            torch.rand(1, 1, 2, 2, 2), torch.rand(1, 1, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)
        )
        torch.autograd.grad(slope.sum(), leaves)
    except RuntimeError:
        return False
    return True


def _rows(what: str, seconds: dict[str, float]) -> list[Row]:
    """Ratios say how many times faster than the fastest plain path (before torch 2.12: than the reference)."""
    plain = min([value for name, value in seconds.items() if name.startswith("plain")] or [seconds["reference"]])
    return [Row(f"{what}: {name}", value, plain / value) for name, value in seconds.items()]
