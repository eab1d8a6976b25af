"""The solver on features of full size: one iteration, and a whole coarse-to-fine registration."""

from collections.abc import Callable

import torch
from timing import Row, Size, Stopwatch, shifted_features

from dio_lightning.features.base import average_pool
from dio_lightning.implicit import Adam, Never, Picard
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.networks.blocks import channels_last
from dio_lightning.transformations import Diffeomorphism, FreeForm, Transformation
from dio_lightning.updates import Descent, GaussNewton

MODELS: dict[str, Transformation] = {"free-form": FreeForm(), "diffeomorphic": Diffeomorphism()}
LEVELS = (4, 2, 1)


def iteration_rows(size: Size, channels: int, watch: Stopwatch, steps: int) -> list[Row]:
    """Seconds of one of `steps` iterations, what is done once a solve included."""
    fixed, moving, u = shifted_features(size, channels)
    zero, level = torch.zeros_like(u), Level(fixed, moving)
    calls: dict[str, Callable[[], object]] = {}
    for name, model in MODELS.items():
        for method in ("Adam", "Gauss-Newton"):
            layer = _layer(method, model, (steps,))
            calls[f"iteration: {name} {method}"] = lambda layer=layer: layer.solve(layer.problem(level), zero, steps)
    with torch.no_grad():
        seconds = watch.best(calls)
    return [Row(name, value / steps) for name, value in seconds.items()]


def registration_rows(size: Size, channels: int, watch: Stopwatch, adam: Size, gauss_newton: Size) -> list[Row]:
    """Seconds of a registration on given pyramids (levels 4, 2, 1), every iteration taken."""
    fixed, moving, _ = shifted_features(size, channels)
    pyramids = [[channels_last(average_pool(x, level)) for level in LEVELS] for x in (fixed, moving)]
    calls: dict[str, Callable[[], object]] = {}
    for method, iterations in (("Adam", adam), ("Gauss-Newton", gauss_newton)):
        layer = _layer(method, FreeForm(), iterations)
        name = f"registration 4-2-1: {method} {'/'.join(map(str, iterations))}"
        calls[name] = lambda layer=layer: layer(*pyramids)
    with torch.no_grad():
        seconds = watch.best(calls)
    return [Row(name, value) for name, value in seconds.items()]


def _layer(method: str, model: Transformation, iterations: Size) -> OptimizerLayer:
    update, solver = (Descent(), Adam()) if method == "Adam" else (GaussNewton(), Picard())
    return OptimizerLayer(iterations, update, solver, model, stop=Never())
