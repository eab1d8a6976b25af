"""One small problem for every public function: what it returns, and its gradients, on any device and in any precision.

Numbers are drawn in float32 on the CPU and then brought to the device and precision asked for, so that two runs of a
case see the same problem to the last bit. Displacements keep away from whole voxels, where an interpolant has a kink
and either side's slope is right.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dio_lightning import features, fields, implicit, losses, metrics, networks, ops, transformations, updates
from dio_lightning.fields.worlds import transport
from dio_lightning.implicit import fixed_point
from dio_lightning.implicit.batch import dot
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.losses.landmarks import Unit
from dio_lightning.metrics.learn2reg import learn2reg
from dio_lightning.pair import Pair
from dio_lightning.scores.pairs import score_pair
from dio_lightning.scores.registered import ScoreOptions

SIZES = {2: (11, 14), 3: (7, 9, 8)}
BATCH = 2


@dataclass
class Given:
    """The inputs of a case; `leaves` are those that it is differentiated with respect to."""

    d: int
    device: torch.device
    dtype: torch.dtype
    gradients: bool
    leaves: list[Tensor] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def size(self) -> tuple[int, ...]:
        return SIZES[self.d]

    def place(self, x: Tensor, leaf: bool = True) -> Tensor:
        """The tensor on the device; numbers in the precision of the run."""
        x = x.to(self.device, self.dtype) if x.is_floating_point() else x.to(self.device)
        if leaf and self.gradients and x.is_floating_point():
            self.leaves.append(x.requires_grad_())
        return x

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def image(self, channels: int = 1, batch: int = BATCH) -> Tensor:
        """Values in [0, 1], rough."""
        return self.place(self.uniform(batch, channels, *self.size))

    def field(self, low: float = 0.2, high: float = 0.8, batch: int = BATCH) -> Tensor:
        """A displacement whose components are never smaller than `low`, nor larger than `high`, in voxels."""
        sign = torch.where(self.uniform(batch, self.d, *self.size) < 0.5, -1.0, 1.0)
        return self.place(sign * self.uniform(batch, self.d, *self.size, low=low, high=high))

    def smooth_field(self, scale: float = 1.0) -> Tensor:
        """A displacement without folds, constant in sign."""
        rough = self.uniform(BATCH, self.d, *self.size)
        return self.place(scale * (0.3 + 0.4 * fields.gaussian_smooth(rough, 2.0)))

    def labels(self, largest: int = 4, batch: int = BATCH) -> Tensor:
        """Blocks of labels 0 to `largest`."""
        coarse = torch.randint(0, largest + 1, (batch, 1, *[3] * self.d), generator=self.generator)
        return self.place(fields.resample(coarse, self.size, mode="nearest").short())

    def points(self, n: int = 5, batch: int = BATCH) -> Tensor:
        """Landmarks inside the grid, between voxels."""
        last = torch.tensor(self.size).view(1, -1, 1) - 1.0
        return self.place((0.5 + self.uniform(batch, self.d, n) * (last - 1)).floor() + 0.37)

    def spacing(self, batch: int = BATCH) -> Tensor:
        return self.place(torch.tensor([1.5, 1.0, 2.0])[: self.d].expand(batch, -1).clone(), leaf=False)

    def affine(self, batch: int = BATCH, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        """Voxel to world, float64 in every run, as pairs have it."""
        matrix = scale * torch.eye(4, dtype=torch.float64)
        matrix[:3, 3], matrix[3, 3], matrix[0, 1] = offset, 1.0, 0.04
        return matrix.expand(batch, 4, 4).clone().to(self.device)

    def module(self, module: nn.Module, dtype: torch.dtype | None = None) -> Any:
        """A module whose weights are leaves; no weight is zero, so that every gradient says something."""
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=self.generator)
                parameter += 0.05 * noise.to(parameter)
        module = module.to(self.device, dtype or self.dtype)
        self.leaves += [p for p in module.parameters() if self.gradients]
        return module

    def pair(self, batch: int = 1, two_grids: bool = False) -> Pair:
        """A pair that has everything."""
        pair: Pair = {
            "fixed": self.image(batch=batch),
            "moving": self.image(batch=batch),
            "fixed_label": self.labels(batch=batch),
            "moving_label": self.labels(batch=batch),
            "fixed_mask": self.place(torch.ones(batch, 1, *self.size, dtype=torch.uint8)),
            "moving_mask": self.labels(1, batch).to(torch.uint8),
            "fixed_points": self.points(batch=batch),
            "moving_points": self.points(batch=batch),
            "spacing": self.spacing(batch),
            "affine": self.affine(batch),
        }
        return {**pair, "moving_affine": self.affine(batch, 0.93, 0.21)} if two_grids else pair


@dataclass(frozen=True)
class Case:
    """A function's name (`package.name`, then what distinguishes the case) and a problem for it.

    `tolerance` is relative to the largest entry of each result; `network` says that autocast may round it.
    """

    name: str
    run: Callable[[Given], Any]
    gradients: bool = True
    tolerance: float = 1e-4
    network: bool = False

    @property
    def covers(self) -> str:
        return self.name.split(" ")[0]


def evaluate(
    case: Case, d: int, device: torch.device | str, dtype: torch.dtype, autocast: torch.dtype | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and gradients of a weighted sum of them, as float64 (or integers) on the CPU."""
    torch.manual_seed(0)
    given = Given(d, torch.device(device), dtype, case.gradients)
    kind = given.device.type
    with torch.autocast(kind, autocast) if autocast else nullcontext():
        found = [x for x in tree_leaves(case.run(given)) if x is not None]
    results = [torch.as_tensor(x) for x in found]
    gradients: list[Tensor] = []
    graphs = [x for x in results if x.requires_grad]
    if case.gradients:
        assert graphs and given.leaves, f"{case.name} has nothing to differentiate"
        weights = [torch.rand(x.shape, generator=given.generator).to(x) for x in graphs]
        total = torch.stack([(w * x).sum().double() for w, x in zip(weights, graphs, strict=True)]).sum()
        gradients += torch.autograd.grad(total, given.leaves, allow_unused=True, materialize_grads=True)
    return [_plain(x) for x in results], [_plain(x) for x in gradients]


def _plain(x: Tensor) -> Tensor:
    return x.detach().cpu().double() if x.is_floating_point() else x.detach().cpu()


def cases() -> Iterator[Case]:
    """All of them."""
    for of in (_ops, _fields, _worlds, _losses, _features, _networks, _transformations, _updates, _implicit, _metrics):
        yield from of()


def _ops() -> Iterator[Case]:
    def twice(g: Given) -> Tensor:
        image, points = g.image(2), fields.identity(g.size, g.place(torch.zeros(1), False)) + g.field()
        value = ops.interpolate(image, points)
        return torch.autograd.grad(value.square().sum(), g.leaves, create_graph=True)[0]

    def adam(g: Given) -> tuple[Tensor, ...]:
        r, m, s = g.field(), g.field(), g.field().abs()
        ops.adam_step(r, m, s, g.place(torch.tensor([0.3, 0.2])), None, 0.5, 0.9, 1e-2)
        return r, m, s

    def weighted(g: Given) -> Tensor:
        return ops.weighted_correlation(g.image(), g.image(), g.labels(1).float(), 5).correlation

    yield Case("ops.interpolate", lambda g: ops.interpolate(g.image(2), g.field() + 2.0))
    yield Case("ops.interpolate (zeros)", lambda g: ops.interpolate(g.image(2), g.field() + 2.0, "zeros"))
    yield Case("ops.interpolate (second derivative)", twice)
    yield Case("ops.local_correlation", lambda g: ops.local_correlation(g.image(), g.image(), 5), tolerance=1e-3)
    yield Case("ops.weighted_correlation", weighted, tolerance=1e-3)
    yield Case("ops.joint_histogram", lambda g: ops.joint_histogram(g.image(), g.image(), 6), False)
    yield Case("ops.mutual_information", lambda g: ops.mutual_information(g.image(), g.image(), 6), tolerance=1e-3)
    taps = {2: [(0.6, 0.2), (1.0,)], 3: [(0.6, 0.2), (1.0,), (0.5, 0.2, 0.05)]}
    yield Case("ops.correlate", lambda g: ops.correlate(g.image(2), taps[g.d]))
    yield Case("ops.determinants", lambda g: ops.determinants(g.field()), False)
    yield Case("ops.shortfall", lambda g: ops.shortfall(g.field(0.3, 3.0), 0.1), False)
    yield Case("ops.squared_differences", lambda g: ops.squared_differences(g.field()))
    yield Case("ops.compose", lambda g: ops.compose(g.field(), g.field(), g.place(torch.tensor([0.7, 1.2]))))
    yield Case("ops.largest_square", lambda g: ops.largest_square(g.field()))
    yield Case("ops.residual", lambda g: ops.residual(g.field(), g.field()))
    yield Case("ops.adam_step", adam, False)
    for padding in ("border", "zeros", "centres"):
        near = partial(ops.nearest, padding=padding, relative=True)
        yield Case(f"ops.nearest ({padding})", lambda g, f=near: f(g.labels(), g.field(0.2, 2.3)), False)
    yield Case("ops.label_counts", lambda g: ops.label_counts(g.labels(), 5), False)
    yield Case("ops.overlap_counts", lambda g: ops.overlap_counts(g.labels(), g.labels(), 3), False)
    yield Case("ops.label_sums", lambda g: ops.label_sums(g.labels(), g.labels(), g.field(), 6))
    yield Case("ops.preimages", lambda g: ops.preimages(g.smooth_field()[0], g.points()[0]), False)
    yield Case("ops.group_norm", lambda g: ops.group_norm(g.image(4), 2, *g.image(4)[0].flatten(1)[:, :2].unbind(1)))
    yield Case("ops.variances", lambda g: ops.variances(g.image(3)))
    yield Case("ops.match", lambda g: ops.match(g.image(3), g.image(3), g.field()))
    yield Case("ops.match_blocks", lambda g: ops.match_blocks(g.image(3), g.image(3), g.field()), False)


def _fields() -> Iterator[Case]:
    half = {2: (6, 8), 3: (4, 5, 4)}
    yield Case("fields.identity", lambda g: fields.identity(g.size, g.image()), False)
    for mode, padding in (("linear", "border"), ("linear", "zeros"), ("nearest", "border"), ("nearest", "zeros")):
        sample = partial(fields.sample, mode=mode, padding=padding)
        yield Case(
            f"fields.sample ({mode}, {padding})", lambda g, f=sample: f(g.image(2), g.points()), mode == "linear"
        )
        warp = partial(fields.warp, mode=mode, padding=padding)
        yield Case(f"fields.warp ({mode}, {padding})", lambda g, f=warp: f(g.image(2), g.field()), mode == "linear")
    yield Case("fields.warp (labels)", lambda g: fields.warp(g.labels(), g.field(), "nearest"), False)
    yield Case("fields.resample", lambda g: fields.resample(g.image(2), half[g.d]))
    yield Case("fields.resample (labels)", lambda g: fields.resample(g.labels(), half[g.d], "nearest"), False)
    yield Case("fields.resize", lambda g: fields.resize(g.field(), half[g.d]))
    yield Case("fields.downsample", lambda g: fields.downsample(g.image(), half[g.d]))

    def across(g: Given) -> Tensor:
        old, new = fields.blocks([2 * n - 1 for n in g.size], 2), fields.spanning([2 * n - 1 for n in g.size], g.size)
        return fields.regrid(g.field(), old, new)

    yield Case("fields.average_pool", lambda g: fields.average_pool(g.image(2), 3))
    yield Case("fields.regrid", across)
    yield Case("fields.gaussian_average", lambda g: fields.gaussian_average(g.image(2), 1.3))
    yield Case("fields.gaussian_smooth", lambda g: fields.gaussian_smooth(g.image(2), 1.3))
    yield Case("fields.jacobian", lambda g: fields.jacobian(g.field()))
    yield Case("fields.jacobian_determinant", lambda g: fields.jacobian_determinant(g.field()))
    yield Case("fields.compose", lambda g: fields.compose(g.field(), g.field()))
    yield Case("fields.exponential", lambda g: fields.exponential(g.smooth_field()), tolerance=1e-3)
    yield Case("fields.inverse", lambda g: fields.inverse(g.smooth_field(), rtol=1e-6).value, tolerance=1e-3)


def _worlds() -> Iterator[Case]:
    def seen(g: Given, mode: str) -> Tensor:
        image = g.image() if mode == "linear" else g.labels()
        return fields.seen_from(image, g.affine(scale=0.93, offset=0.21), g.size, mode)

    def two(g: Given) -> dict[str, object]:
        return {**fields.on_one_grid(g.pair(two_grids=True))}

    yield Case("fields.transport", lambda g: transport(g.field(), g.affine(scale=0.93, offset=0.21)))
    yield Case("fields.fixed_to_moving", lambda g: fields.fixed_to_moving(g.pair(two_grids=True)), False)
    yield Case("fields.alike_voxels", lambda g: fields.alike_voxels(g.pair(two_grids=True)), False)
    yield Case("fields.seen_from", lambda g: seen(g, "linear"))
    yield Case("fields.seen_from (labels)", lambda g: seen(g, "nearest"), False)
    yield Case("fields.on_moving_grid", lambda g: fields.on_moving_grid(g.field(batch=1), g.pair(two_grids=True)))
    yield Case("fields.moving_points", lambda g: fields.moving_points(g.pair(two_grids=True)))
    yield Case("fields.on_one_grid", two)


def _losses() -> Iterator[Case]:
    def total(g: Given) -> dict[str, Tensor]:
        objective = losses.Objective(
            losses.LNCC(5),
            label=losses.Dice(4),
            regularity=losses.Diffusion(),
            regularity_weight=0.3,
            landmarks=losses.Landmarks(),
        )
        return objective(g.pair(batch=2), g.field())

    def smaller(g: Given) -> dict[str, object]:
        pair = g.pair(batch=2)
        pair["displacement"] = g.field()
        return {**losses.at_size(pair, {2: (6, 8), 3: (4, 5, 4)}[g.d])}

    def points(g: Given, unit: Unit) -> Tensor:
        return losses.Landmarks(unit)(g.field(), g.points(), g.points(), g.spacing())

    def term(g: Given, of: losses.Term, coarse: bool = False, masked: bool = False) -> object:
        pair = g.pair(batch=2)
        grid = fields.blocks(g.size, 2 if coarse else 1)
        level = Level(g.image(3), g.image(3), None, pair, masked=masked)
        if coarse:
            level = Level(fields.average_pool(level.fixed, 2), fields.average_pool(level.moving, 2), grid, pair)
        corner = (slice(None), slice(None), *map(slice, grid.size))
        return of.slope(level, g.field()[corner])

    def derived(g: Given) -> object:
        return losses.slope_of(lambda u, image: (fields.warp(image, u) ** 2).flatten(1).mean(1), g.field(), g.image())

    terms: dict[str, losses.Term] = {
        "FeatureDistance": losses.FeatureDistance(),
        "SplineDistance": losses.SplineDistance(),
        "FeatureSimilarity": losses.FeatureSimilarity(losses.LNCC(5)),
        "MutualInformation": losses.MutualInformation(9),
        "Bending": losses.Bending(),
        "TotalVariation": losses.TotalVariation(0.1),
        "JacobianPenalty": losses.JacobianPenalty(1.0, 0.1, 0.5),
        "LabelPrompt": losses.LabelPrompt(),
        "LandmarkPrompt": losses.LandmarkPrompt(),
        "SSD": losses.SSD(),
        "Diffusion": losses.Diffusion(),
    }
    for name, of in terms.items():
        yield Case(f"losses.{name} (slope)", partial(term, of=of), tolerance=2e-3)
        yield Case(f"losses.{name} (coarse slope)", partial(term, of=of, coarse=True), tolerance=2e-3)
    yield Case("losses.slope_of", derived)
    yield Case("losses.LNCC", lambda g: losses.LNCC(5)(g.image(), g.image()), tolerance=1e-3)
    yield Case("losses.LNCC (signed)", lambda g: losses.LNCC(7, signed=True)(g.image(), g.image()), tolerance=1e-3)
    yield Case("losses.LNCC (masks)", partial(term, of=losses.LNCC(5), masked=True), tolerance=1e-3)
    yield Case(
        "losses.FeatureDistance (masks)", partial(term, of=losses.FeatureDistance(), masked=True), tolerance=1e-3
    )
    yield Case("losses.SSD", lambda g: losses.SSD()(g.image(2), g.image(2)))
    yield Case("losses.soft_dice", lambda g: losses.soft_dice(g.labels(), g.labels(), g.field()))
    yield Case("losses.Dice", lambda g: losses.Dice(6)(g.labels(), g.labels(), g.field()))
    yield Case(
        "losses.DiceCrossEntropy",
        lambda g: losses.DiceCrossEntropy()(g.image(5).mul(4).log_softmax(1), g.labels()),
        tolerance=1e-3,
    )
    yield Case("losses.diffusion", lambda g: losses.diffusion(g.field(), "mean"))
    yield Case("losses.Diffusion", lambda g: losses.Diffusion()(g.field()))
    yield Case("losses.inverse_consistency", lambda g: losses.inverse_consistency(g.field(), g.field()))
    yield Case("losses.folding", lambda g: losses.folding(g.field(0.3, 3.0)))
    yield Case("losses.Folding", lambda g: losses.Folding()(g.field(0.3, 3.0)))
    yield Case("losses.Landmarks", lambda g: points(g, "mm"))
    yield Case("losses.Landmarks (voxels)", lambda g: points(g, "voxels"))
    yield Case("losses.Objective", total, tolerance=1e-3)
    yield Case("losses.at_size", smaller)


def _features() -> Iterator[Case]:
    kinds = {"UNet": features.UNet, "UNetE": features.UNetE, "LKU": features.LKU, "LKUE": features.LKUE}
    small = {"UNet": {"widths": (8, 8, 16)}, "UNetE": {"widths": (8, 8, 16)}, "LKU": {"width": 4, "scales": 3}}

    def network(g: Given, name: str, residual: bool) -> list[Tensor]:
        options = small.get(name, {"width": 4})
        return g.module(kinds[name](channels=4, spatial_dims=g.d, residual=residual, **options))(g.image())

    def described(g: Given) -> list[Tensor]:
        descriptor = features.MIND((1,), g.d)
        inside = features.UNet(descriptor.channels, 4, (2, 1), g.d, (8, 8))
        # a descriptor leaves its pyramid in float32, so the network behind it never sees anything else
        return g.module(features.Described(descriptor, inside), torch.float32)(g.image())

    def joined(g: Given) -> list[Tensor]:
        return features.Joined([features.LocalContrast((2, 1)), features.GradientMagnitude((2, 1))], [1.0, 0.5])(
            g.image()
        )

    def started(g: Given) -> list[Tensor]:
        descriptor = features.LocalContrast((2, 1))
        inside = features.UNet(2, 4, (2, 1), g.d, (8, 8), residual=True, intensity_scale=[1.0, 2.0])
        return g.module(features.Described(descriptor, inside), torch.float32)(g.image())

    for name in ("local_contrast", "gradient_magnitude"):
        yield Case(f"features.{name}", lambda g, name=name: getattr(features, name)(g.image()), tolerance=1e-3)
    for kind in (features.LocalContrast, features.GradientMagnitude):
        yield Case(f"features.{kind.__name__}", lambda g, kind=kind: kind()(g.image()), tolerance=1e-3)

    def probable(g: Given) -> list[Tensor]:
        inside = features.UNet(1, 4, (2, 1), g.d, (8, 8))
        # features leave the network in float32, so its image and the classifiers see nothing else
        return g.module(features.Posteriors(inside, 3, g.d), torch.float32)(g.image().float())

    yield Case("features.Posteriors", probable, tolerance=3e-3, network=True)
    yield Case("features.Joined", joined, tolerance=1e-3)
    yield Case("features.Described (residual)", started, tolerance=3e-3, network=True)
    yield Case("features.Intensity", lambda g: features.Intensity()(g.image()))
    yield Case("features.mind", lambda g: features.mind(g.image()), tolerance=1e-3)
    yield Case("features.MIND", lambda g: features.MIND(spatial_dims=g.d)(g.image()), tolerance=1e-3)
    yield Case("features.Described", described, tolerance=3e-3, network=True)
    for name in kinds:
        plain, added = partial(network, name=name, residual=False), partial(network, name=name, residual=True)
        yield Case(f"features.{name}", plain, tolerance=3e-3, network=True)
        yield Case(f"features.{name} (residual)", added, tolerance=3e-3, network=True)


def _networks() -> Iterator[Case]:
    def recurrent(g: Given) -> list[Tensor]:
        cell = g.module(networks.RecurrentUNet(networks.VxmUNet(2, g.d, encoder=(8, 8), decoder=(8, 8), final=(8,))))
        first, memory = cell(g.image(2))
        return [first, cell(g.image(2), memory)[0]]

    def gru(g: Given) -> Tensor:
        cell = g.module(networks.ConvGRU(g.d, 4))
        return cell(g.image(4), cell(g.image(4), None))

    yield Case("networks.CNN", lambda g: g.module(networks.CNN(2, g.d, width=8))(g.image(2)), True, 1e-3, True)
    yield Case("networks.VxmUNet", lambda g: g.module(networks.VxmUNet(2, g.d))(g.image(2)), True, 1e-3, True)
    yield Case("networks.ConvGRU", gru, tolerance=1e-3, network=True)
    yield Case("networks.RecurrentUNet", recurrent, tolerance=1e-3, network=True)


MODELS: dict[str, transformations.Transformation] = {
    "FreeForm": transformations.FreeForm(),
    "Diffeomorphism": transformations.Diffeomorphism(),
    "StationaryVelocity": transformations.StationaryVelocity(4),
    "Affine": transformations.Affine(),
    "BSpline": transformations.BSpline(3),
}


def _parameters(g: Given, model: transformations.Transformation) -> Tensor:
    """Parameters of a model that move every point, and none by whole voxels."""
    if isinstance(model, transformations.Affine):
        return g.place(0.3 + 0.2 * g.uniform(BATCH, g.d, g.d + 1))
    if isinstance(model, transformations.BSpline):
        control = model.initial(torch.zeros(BATCH, 1, *g.size)).shape
        return g.place(0.2 + 0.6 * g.uniform(*control))
    return g.smooth_field()


def _transformations() -> Iterator[Case]:
    def all_of(g: Given, model: transformations.Transformation) -> list[Tensor]:
        z, step = _parameters(g, model), _parameters(g, model)
        other = [n + 3 for n in g.size]
        return [
            model.displacement(z, g.size),
            model.retract(z, step),
            model.smooth(step, 1.0),
            model.resize(z, g.size, other),
            model.gradient(z, g.size, lambda u: u.square()),
            model.initial(z.new_zeros(BATCH, 1, *g.size)),
        ]

    def fitted(g: Given) -> Tensor:
        return transformations.BSpline(3).parameters(g.smooth_field())

    yield Case("transformations.BSpline (of a displacement)", fitted, tolerance=1e-3)
    for name, model in MODELS.items():
        yield Case(f"transformations.{name}", partial(all_of, model=model), tolerance=1e-3)


def _updates() -> Iterator[Case]:
    def on(g: Given, rule: updates.UpdateRule, model: transformations.Transformation, channels: int = 3) -> Tensor:
        fixed, moving = g.image(channels), g.image(channels)
        return rule.on(Level(fixed, moving), model)(_parameters(g, model))

    def learned(g: Given, similarity: nn.Module | None) -> Tensor:
        network = networks.CNN(g.d + 2, g.d, width=8)
        step = updates.SimilarityStep(network, similarity) if similarity else updates.LearnedStep(network, leak=0.1)
        return g.module(step).on(Level(g.image(), g.image()), MODELS["FreeForm"])(g.smooth_field())

    def per_level(g: Given) -> Tensor:
        rule = g.module(updates.PerLevel([updates.LearnedStep(networks.CNN(g.d + 2, g.d, width=8))]))
        return rule.on(Level(g.image(), g.image()), MODELS["FreeForm"])(g.smooth_field())

    def slope(g: Given) -> Tensor:
        return updates.similarity_slope(losses.LNCC(5), g.image(), g.image(), g.field(), normalise=True)

    for name, model in MODELS.items():
        rule = updates.Descent(regularity=0.2)
        yield Case(f"updates.Descent ({name})", partial(on, rule=rule, model=model), tolerance=1e-3)
    plain = MODELS["FreeForm"]
    yield Case(
        "updates.Descent (mean)", partial(on, rule=updates.Descent(normalise=False), model=plain), tolerance=1e-3
    )
    yield Case("updates.GaussNewton", partial(on, rule=updates.GaussNewton(), model=plain), tolerance=1e-3)
    more = updates.Descent(terms=[losses.SSD(0.5), losses.TotalVariation(weight=0.2)])
    yield Case("updates.Descent (terms)", partial(on, rule=more, model=plain, channels=1), tolerance=2e-3)
    image = updates.ImageDescent(losses.LNCC(5), regularity=0.2)
    yield Case("updates.ImageDescent", partial(on, rule=image, model=plain, channels=1), tolerance=2e-3)
    yield Case("updates.LearnedStep", partial(learned, similarity=None), tolerance=1e-3, network=True)
    yield Case("updates.PerLevel", per_level, tolerance=1e-3, network=True)
    yield Case("updates.SimilarityStep", partial(learned, similarity=losses.SSD()), tolerance=1e-3, network=True)
    yield Case("updates.similarity_slope", slope, tolerance=2e-3)

    def solve(g: Given, model: transformations.Transformation, update: updates.UpdateRule) -> Tensor:
        layer = OptimizerLayer((4,), update, transformation=model, stop=implicit.Never())
        if isinstance(update, updates.GaussNewton):
            layer.solver = implicit.Picard()
        return layer.solve(layer.problem(Level(g.image(3), g.image(3))), _parameters(g, model), 4).value

    for name, model in MODELS.items():
        yield Case(f"layers.OptimizerLayer ({name})", partial(solve, model=model, update=updates.Descent()), True, 1e-2)
    newton = partial(solve, model=plain, update=updates.GaussNewton())
    yield Case("layers.OptimizerLayer (GaussNewton)", newton, tolerance=1e-2)


class _Contraction:
    """f(z) = tanh(S z / 2 + c), and an energy that falls."""

    def __init__(self, c: Tensor) -> None:
        self.c, self.energy = c, None

    def __call__(self, z: Tensor) -> Tensor:
        fz = torch.tanh(0.5 * fields.gaussian_smooth(z, 1.0) + self.c)
        self.energy = (fz - z).detach().square().flatten(1).sum(1)
        return fz


def _implicit() -> Iterator[Case]:
    def point(g: Given, **options: Any) -> Tensor:
        c = g.image(2)
        return fixed_point(_Contraction(c), torch.zeros_like(c), **options).value

    def steps(g: Given, stop: implicit.StopRule) -> list[Tensor]:
        c = g.image(2)
        # few steps: a rule that judges rounding errors stops when it likes
        found = fixed_point(_Contraction(c), torch.zeros_like(c), stop=stop, max_steps=12)
        return [found.value, found.steps, found.converged, found.failed]

    def linear(g: Given, symmetric: bool = False) -> Tensor:
        v = g.image(2)
        matrix = lambda w: w - 0.5 * fields.gaussian_smooth(w, 1.0)  # noqa: E731
        if symmetric:
            return implicit.conjugate_gradients(matrix, v, rtol=1e-6, max_steps=40)[0]
        return implicit.gmres(matrix, v, rtol=1e-6, max_steps=40, restart=20)[0]

    def stability(g: Given, radius: bool) -> Tensor:
        z, update = g.image(2), _Contraction(g.image(2))
        if radius:
            return implicit.spectral_radius(update, z, 30, torch.Generator().manual_seed(1))
        probe = g.place(g.uniform(BATCH, 2, *g.size), leaf=False)
        return implicit.jacobian_energy(z, update(z), probe)

    def pieces(g: Given) -> Tensor:
        x = g.image()
        return implicit.piecewise_sum(((x * k).square().mean() for k in (1.0, 2.0)), [x])

    solvers = {
        "Picard": implicit.Picard(0.1),
        "Anderson": implicit.Anderson(),
        "Broyden": implicit.Broyden(),
        "GradientDescent": implicit.GradientDescent(0.7),
    }
    adjoints = {
        "UnrolledAdjoint": implicit.UnrolledAdjoint(),
        "PhantomAdjoint": implicit.PhantomAdjoint(3, 0.2, checkpointed=True),
        "ImplicitAdjoint": implicit.ImplicitAdjoint(rtol=1e-5),
    }
    tight = {"stop": implicit.Residual(1e-6), "max_steps": 40}
    for name, solver in solvers.items():
        yield Case(f"implicit.{name}", partial(point, solver=solver, **tight), tolerance=1e-3)
    adam = {"solver": implicit.Adam(), "stop": implicit.Never(), "max_steps": 8}
    yield Case("implicit.Adam", partial(point, **adam), tolerance=1e-3)
    for name, adjoint in adjoints.items():
        yield Case(f"implicit.{name}", partial(point, adjoint=adjoint, **tight), tolerance=1e-3)
    yield Case("implicit.fixed_point", partial(point, max_steps=20), tolerance=1e-3)
    for rule in (implicit.Never(), implicit.Residual(1e-3), implicit.Stagnation(0.99, 2)):
        yield Case(f"implicit.{type(rule).__name__}", partial(steps, stop=rule), tolerance=1e-3)
    yield Case("implicit.batch.dot", lambda g: dot(g.field(), g.field()))
    yield Case("implicit.gmres", linear, gradients=False, tolerance=1e-3)
    yield Case("implicit.conjugate_gradients", partial(linear, symmetric=True), gradients=False, tolerance=1e-3)
    yield Case("implicit.jacobian_energy", partial(stability, radius=False), tolerance=1e-3)
    yield Case("implicit.spectral_radius", partial(stability, radius=True), gradients=False, tolerance=3e-2)
    yield Case("implicit.piecewise_sum", pieces)


def _metrics() -> Iterator[Case]:
    def warped(g: Given, mode: Any) -> Tensor:
        return metrics.warp_label(g.labels(), g.field(), mode)

    def error(g: Given, order: Any) -> Tensor:
        return metrics.tre(g.field(), g.points(), g.points(), g.spacing(), order)

    def surface(g: Given) -> Any:
        return metrics.hausdorff_per_label(g.labels(), g.labels(), g.spacing(), [1, 2, 3, 4, 5])

    def regular(g: Given, function: Any) -> Any:
        mask = (g.labels(1) > 0).to(torch.uint8)
        return [function(g.field(0.2, 2.0), 1), function(g.field(0.2, 2.0), 2, mask)]

    def scores(g: Given, two_grids: bool) -> Any:
        return score_pair(g.field(batch=1), g.pair(two_grids=two_grids), ScoreOptions(masked=True))

    yield Case("metrics.tre", partial(error, order=1), gradients=False)
    yield Case("metrics.tre (cubic)", partial(error, order=3), gradients=False)
    yield Case("metrics.warp_label", partial(warped, mode="nearest"), gradients=False)
    yield Case("metrics.warp_label (linear)", partial(warped, mode="linear"), gradients=False)
    yield Case("metrics.dice_per_label", lambda g: metrics.dice_per_label(g.labels(), g.labels()), gradients=False)
    yield Case("metrics.dice_linear", lambda g: metrics.dice_linear(g.labels(), g.labels(), g.field()), gradients=False)
    yield Case("metrics.label_sizes", lambda g: metrics.label_sizes(g.labels(), 5), gradients=False)
    yield Case("metrics.hausdorff_per_label", surface, gradients=False)
    for name in ("folds", "sdlogj", "std_logj", "regularity"):
        yield Case(f"metrics.{name}", partial(regular, function=getattr(metrics, name)), gradients=False)
    yield Case("metrics.learn2reg", lambda g: learn2reg(g.field(batch=1), g.pair(), True), gradients=False)
    for two_grids in (False, True):
        name = "callbacks.score_pair" + (" (two grids)" if two_grids else "")
        yield Case(name, partial(scores, two_grids=two_grids), gradients=False)
