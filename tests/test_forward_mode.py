"""Forward mode: operators whose kernels know no tangents refuse them, and never drop them without a word."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from dio_lightning import ops
from dio_lightning.fields import compose, gaussian_smooth, warp

U = torch.rand(1, 3, 4, 5, 6)
OPERATORS: dict[str, Callable[[Tensor], object]] = {
    "match, fixed": lambda x: ops.match(x, U, U),
    "match, moving": lambda x: ops.match(U, x, U),
    "match, u": lambda x: ops.match(U, U, x),
    "match_blocks": lambda x: ops.match_blocks(U, U, x),
    "warp, image": lambda x: warp(x, U),
    "warp, u": lambda x: warp(U, x),
    "compose": lambda x: compose(U, x),
    "smoothing": lambda x: gaussian_smooth(x, 1.0),
    "squared_differences": ops.squared_differences,
    "determinants": ops.determinants,
    "shortfall": lambda x: ops.shortfall(x, 0.1),
    "local_correlation": lambda x: ops.local_correlation(U, x, 3),
    "joint_histogram": lambda x: ops.joint_histogram(x[:, :1], U[:, :1], 8),
    "mutual_information": lambda x: ops.mutual_information(U[:, :1], x[:, :1], 8),
    "adam_step": lambda x: ops.adam_step(x, U.clone(), U.clone(), torch.ones(1), None, 0.5, 0.9, 1e-8),
    "largest_square": ops.largest_square,
    "preimages": lambda x: ops.preimages(x[0], torch.ones(3, 2)),
}


@pytest.mark.parametrize("choice", ["numba", "reference"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_tangent_is_refused(monkeypatch, name, mode, choice) -> None:
    monkeypatch.setenv("DIO_OPS", choice)
    with mode(), forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.rand_like(U), torch.rand_like(U))
        with pytest.raises(NotImplementedError, match="has no derivative in forward mode"):
            OPERATORS[name](dual)
        OPERATORS[name](U)
