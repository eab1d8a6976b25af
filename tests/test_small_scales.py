"""A10: grids of one or two voxels are convolved in float32 on CPUs, and no gradient reads memory that nobody wrote.

oneDNN's bfloat16 convolutions for CPUs with AVX512-BF16 read uninitialised memory there. Other CPUs cannot show it: the
tests of the gradients would fail on one that can, those of the number types on every CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from poison import poisoned
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight, conv3d_weight
from torch.nn.modules.module import register_module_forward_hook

from dio_lightning.features import LKU, LKUE, UNet, UNetE
from dio_lightning.networks import CNN, RecurrentUNet, VxmUNet
from dio_lightning.networks.blocks import conv

pytestmark = pytest.mark.usefixtures("bfloat16")

NETWORKS: dict[str, Callable[[int, str], nn.Module]] = {
    "CNN": lambda d, precision: CNN(2, d, None, 8, 3, precision),  # type: ignore[arg-type]
    "VxmUNet": lambda d, precision: VxmUNet(2, d, None, (8, 8), (8, 8), (8,), precision),  # type: ignore[arg-type]
    "RecurrentUNet": lambda d, precision: Twice(
        RecurrentUNet(VxmUNet(2, d, None, (8, 8), (8, 8), (8,), precision))  # type: ignore[arg-type]
    ),
    "UNet": lambda d, precision: UNet(2, 8, (2, 1), d, (8, 8, 16), precision=precision),  # type: ignore[arg-type]
    "LKU": lambda d, precision: LKU(2, 8, (2, 1), d, 8, 3, precision=precision),  # type: ignore[arg-type]
    "UNetE": lambda d, precision: UNetE(2, 8, (2, 1), d, (8, 8), precision=precision),  # type: ignore[arg-type]
    "LKUE": lambda d, precision: LKUE(2, 8, (2, 1), d, 8, precision=precision),  # type: ignore[arg-type]
}
# one axis short, or all: the deepest scale is shorter still
SIZES = [*((8, n) for n in (1, 2, 3, 4)), (3, 3), *((6, n, 7) for n in (1, 2, 3, 4)), (2, 2, 2), (4, 3, 3)]


class Twice(nn.Module):
    """A recurrent network with its memory in use."""

    def __init__(self, network: RecurrentUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        field, memory = self.network(x)
        return field + self.network(x, memory)[0]


def total(output: Tensor | list[Tensor]) -> Tensor:
    """A loss of everything that a network gives."""
    outputs = output if isinstance(output, list) else [output]
    return torch.stack([x.square().mean() + x.mean() for x in outputs]).sum()


def built(name: str, d: int, precision: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name](d, precision)
    for parameter in network.parameters():
        # heads start next to zero, where nothing would reach the layers below
        if parameter.ndim > 1 and float(parameter.detach().std()) < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    return network


Uses = dict[nn.Conv2d | nn.Conv3d, list[tuple[Tensor, Tensor]]]


@contextmanager
def recorded() -> Iterator[Uses]:
    """Input and gradient of the output of every use of a convolution."""
    uses: Uses = {}

    def note(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            x = arguments[0].detach().clone()
            output.register_hook(lambda gradient: uses.setdefault(module, []).append((x, gradient.clone())))

    hook = register_module_forward_hook(note)
    try:
        yield uses
    finally:
        hook.remove()


def of_weight(layer: nn.Conv2d | nn.Conv3d, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a convolution's weight by its definition, in float64."""
    function = {4: conv2d_weight, 5: conv3d_weight}[x.ndim]
    padding = [width // 2 for width in layer.kernel_size]
    return function(x.double(), layer.weight.shape, gradient.double(), layer.stride, padding)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_gradient_of_a_weight_has_read_what_was_in_free_memory(name, size, precision) -> None:
    """Each is that of float64, from what the layer was given, to what rounding may do: 2^-9 a number, three of them."""
    network = built(name, len(size), precision)
    with recorded() as uses, poisoned():
        total(network(torch.rand(1, 2, *size))).backward()
    assert len(uses) == sum(isinstance(module, nn.Conv2d | nn.Conv3d) for module in network.modules())
    for layer, seen in uses.items():
        found, exact = layer.weight.grad, torch.stack([of_weight(layer, *use) for use in seen]).sum(0)
        assert found is not None and bool(found.isfinite().all())
        size_of_terms = torch.stack([of_weight(layer, x.abs(), g.abs()) for x, g in seen]).sum(0)
        assert bool(((found - exact).abs() <= 2**-7 * size_of_terms + 1e-12).all())


@pytest.mark.parametrize("size", [*SIZES, (16, 16), (12, 12, 12)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_small_grids_are_convolved_in_float32_and_others_in_bfloat16(name, size) -> None:
    seen: list[tuple[int, int, torch.dtype]] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            extents = [*arguments[0].shape[2:], *output.shape[2:]]
            seen.append((min(extents), max(module.kernel_size), output.dtype))

    hook = register_module_forward_hook(note)
    try:
        built(name, len(size), "bfloat16")(torch.rand(1, 2, *size))
    finally:
        hook.remove()
    assert seen
    for extent, kernel, dtype in seen:
        assert dtype == (torch.float32 if extent < max(3, kernel) else torch.bfloat16), (extent, kernel)


@pytest.mark.parametrize("d", [2, 3])
def test_the_callers_autocast_is_guarded_too_and_a_layer_in_bfloat16_stays_one(d) -> None:
    layer, small, large = conv(d, 2, 4), torch.rand(1, 2, *[2] * d), torch.rand(1, 2, *[5] * d)
    expected = layer(small)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(small).dtype == torch.float32 and layer(large).dtype == torch.bfloat16
        assert torch.equal(layer(small), expected)
    halved = conv(d, 2, 4).to(torch.bfloat16)
    assert halved(small.bfloat16()).dtype == halved(large.bfloat16()).dtype == torch.bfloat16
    assert layer.double()(small.double()).dtype == torch.float64


def test_the_poison_reaches_what_is_read_before_it_was_written() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned():
        assert bool(torch.empty(1000).isnan().all())
    assert torch.are_deterministic_algorithms_enabled() == before
