"""Five transformations and five terms at test time: one set of trained weights, no retraining, each does what it asks.

The features come from a network that was trained elsewhere, or from a random one in a checkpoint; either way from one
file, whose weights no solve may touch.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dio_lightning.features import UNet
from dio_lightning.fields import blocks, gaussian_smooth, identity, jacobian_determinant, sample, warp
from dio_lightning.implicit import Adam, Never
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses import LNCC, Bending, LabelPrompt, LandmarkPrompt, Term, TotalVariation
from dio_lightning.metrics import dice_per_label, warp_label
from dio_lightning.modules import DIO
from dio_lightning.pair import Pair
from dio_lightning.transformations import (
    Affine,
    BSpline,
    Diffeomorphism,
    FreeForm,
    StationaryVelocity,
    Transformation,
)
from dio_lightning.updates import Descent

SIZE = (48, 40)
MODELS = [FreeForm(), Diffeomorphism(), StationaryVelocity(4), BSpline(3), Affine()]
TERMS: list[Term] = [
    LNCC(5),
    Bending(1.0),
    TotalVariation(weight=5.0),
    LabelPrompt([2], 5.0),
    LandmarkPrompt(),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "features.pt"
    torch.save(module(FreeForm(), Descent()).state_dict(), path)
    return path


def module(model: Transformation, update: Descent) -> DIO:
    features = UNet(spatial_dims=2, channels=4, levels=(2, 1), widths=(8, 8), residual=True)
    return DIO(features, OptimizerLayer([25, 20], update, Adam(0.2), model, stop=Never(), field_sigma=0.0))


def pair() -> Pair:
    """An image that is moved by a bump and a shift; of its discs the features hardly see the second."""
    generator = torch.Generator().manual_seed(1)
    x = identity(SIZE, torch.zeros(1))
    texture = gaussian_smooth(torch.rand((1, 1, *SIZE), generator=generator), 1.5)
    texture = (texture - texture.amin()) / (texture.amax() - texture.amin())
    labels = torch.zeros(1, 1, *SIZE, dtype=torch.int16)
    labels[(x - torch.tensor([16.0, 28.0]).view(1, 2, 1, 1)).norm(dim=1, keepdim=True) < 7] = 1
    labels[(x - torch.tensor([32.0, 14.0]).view(1, 2, 1, 1)).norm(dim=1, keepdim=True) < 5] = 2
    u = 1.5 * torch.exp(-(x - 20.0).square().sum(1, keepdim=True) / 150).expand(1, 2, *SIZE)
    fixed = warp(texture, u)
    # the second disc and the landmarks have moved in a way that the image does not show
    moved = warp_label(labels, u + torch.where(x[:, :1] > 24, 2.0, 0.0))
    points = torch.tensor([[[12.0, 22.0, 30.0], [12.0, 20.0, 26.0]]])
    return Pair(
        fixed=fixed,
        moving=texture,
        fixed_label=moved,
        moving_label=labels,
        fixed_points=points,
        moving_points=points + sample(u, points) + torch.tensor([[[1.5], [-1.5]]]),
    )


def asked(term: Term, u: Tensor, pair: Pair) -> float:
    """What a term asks for, smaller is better, by other means than the term where there are any."""
    if isinstance(term, LabelPrompt):
        assert "fixed_label" in pair and "moving_label" in pair
        return 1 - float(dice_per_label(pair["fixed_label"], warp_label(pair["moving_label"], u))[0, 1])
    if isinstance(term, LandmarkPrompt):
        assert "fixed_points" in pair and "moving_points" in pair
        p = pair["fixed_points"]
        return float((p + sample(u, p) - pair["moving_points"]).norm(dim=1).mean())
    if isinstance(term, Bending):
        return float(sum(u.diff(n=2, dim=axis).square().mean() for axis in (2, 3)))
    level = Level(pair["fixed"], pair["moving"], blocks(SIZE, 1), pair)
    return float(term.value(level, u))


@pytest.mark.parametrize("term", TERMS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_a_term_brings_what_it_asks_for_by_any_transformation(checkpoint: Path, model, term) -> None:
    both, images = pair(), {}
    for name, update in (("without", Descent()), ("with", Descent(terms=[term]))):
        dio = module(model, update)
        before = torch.load(checkpoint, weights_only=True)
        dio.load_state_dict(before)
        with torch.no_grad():
            images[name] = dio.register(both)
        assert all(torch.equal(value, before[key]) for key, value in dio.state_dict().items())
    without, better = (asked(term, images[name], both) for name in ("without", "with"))
    if isinstance(model, Affine) and isinstance(term, Bending):
        assert max(without, better) < 1e-8  # nothing bends
    else:
        # an affine map has few ways of obeying
        assert better < (0.98 if isinstance(model, Affine) else 0.9) * without
    for u in images.values():
        assert bool(u.isfinite().all())
        if not (isinstance(model, Affine) and isinstance(term, LabelPrompt | LandmarkPrompt)):
            assert (warp(both["moving"], u) - both["fixed"]).norm() < (both["moving"] - both["fixed"]).norm()
        if isinstance(model, Diffeomorphism | StationaryVelocity):
            assert float((jacobian_determinant(u) <= 0).float().mean()) < 0.005
