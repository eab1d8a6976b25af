"""From two images to a transform: stages in their order, composed exactly."""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dio_lightning.layers import Observer, Run
from dio_lightning.losses import Term
from dio_lightning.modules import RegistrationModule
from dio_lightning.networks.dimension import check_dimension
from dio_lightning.ops import chosen
from dio_lightning.registration.deformable import changed, deform, local_correlation
from dio_lightning.registration.given import Given, Scans, given, masked
from dio_lightning.registration.images import check_dimensions
from dio_lightning.registration.journal import Journal, Parts
from dio_lightning.registration.linear import Kind, align
from dio_lightning.registration.quality import judge
from dio_lightning.registration.result import Registration
from dio_lightning.registration.scan import Image, Scan
from dio_lightning.reports.curves import Curves
from dio_lightning.transformations import Transformation
from dio_lightning.transforms import Affine, Chain, Field, Transform

Stage = Literal["rigid", "affine", "deformable"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Tell = Callable[[str], None]


def register(
    fixed: Image,
    moving: Image,
    *,
    stages: Sequence[Stage] = STAGES,
    model: RegistrationModule | str | Path | None = None,
    transformation: Transformation | None = None,
    terms: Sequence[Term] = (),
    start: Transform | None = None,
    fixed_affine: NDArray | None = None,
    moving_affine: NDArray | None = None,
    fixed_labels: Image | None = None,
    moving_labels: Image | None = None,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    fixed_points: ArrayLike | None = None,
    moving_points: ArrayLike | None = None,
    device: str = "cpu",
    tell: Tell = lambda text: None,
    observe: Observer | None = None,
) -> Registration:
    """Register the moving image onto the fixed one.

    Args:
        fixed: a file, a nibabel image, or values (*s); two or three dimensions, any orientation, spacing and type.
        moving: likewise; it may lie on another grid.
        stages: in their order, each as often as it is named: `rigid` and `affine` start from many places, unless a
            transform is given to start from; `deformable` comes after them, and a second one goes on from the first:
            its field is composed with it, and its regularisers say nothing of what is there already.
        model: a trained module, or the file of its weights, for the deformable stage; None: local correlation of the
            images, for which nothing is trained.
        transformation: of the deformable stage, in place of the model's.
        terms: what the deformable stage descends on besides, such as `LabelPrompt`.
        start: a transform from the fixed world to the moving one that the stages go on from: affines for `rigid` and
            `affine`; a `deformable` stage alone takes fields too.
        fixed_affine: of bare values, voxels to RAS millimetres.
        moving_affine: likewise.
        fixed_labels: label map on the fixed image's grid, for terms that compare labels.
        moving_labels: likewise on the moving image's.
        fixed_mask: on the fixed image's grid; where it is 0, as in a lesion, no stage compares the fixed image.
        moving_mask: likewise on the moving image's.
        fixed_points: landmarks, rows of RAS millimetres in the fixed world; the deformable stage brings them onto
            `moving_points`, by a `LandmarkPrompt` of weight 1 unless `terms` has one. Linear stages start from where
            they meet, too.
        moving_points: the same landmarks in the moving world, row by row.
        device: where the deformable stage runs.
        tell: is told each stage as it begins.
        observe: is given a `Record` of every state of the deformable stage.

    Returns:
        The transform, what it makes of images and points, and how far it is to be trusted.

    Raises:
        FileNotFoundError, ValueError: with one sentence, before any long work starts.
    """
    began = time.perf_counter()
    deformable = {"model": model, "transformation": transformation, "labels": fixed_labels, "landmarks": fixed_points}
    check_stages(stages, {**deformable, "terms": terms or None})
    place = device_of(device)
    operators = chosen(place.type)
    scans = Scan.of(fixed, fixed_affine, "the fixed image"), Scan.of(moving, moving_affine, "the moving image")
    check_dimensions({scan.name: len(scan.grid.size) for scan in scans})
    extra = given(scans, (fixed_labels, moving_labels), (fixed_points, moving_points))
    terms = extra.checked(terms)
    scans = masked(scans, fixed_mask, moving_mask)
    linear: list[Kind] = [stage for stage in stages if stage != "deformable"]
    chain, report, curves = _started(start, linear), list[dict[str, Any]](), list[Curves]()
    if not linear:
        _check_overlap(*scans, chain)
    module = _module(model, scans, transformation, terms).to(place) if len(linear) < len(stages) else None
    if linear:
        clock, parts, begin = time.perf_counter(), Parts(tell), None if start is None else _matrix(chain)
        chain = Chain([Affine(align(*scans, linear, begin, extra.start(scans[0].grid), parts))])
        report.append(_stage(" and ".join(linear), clock, parts=parts.report()))
    for _ in stages[len(linear) :]:
        assert module is not None
        tell(f"deformable, {module.title}")
        journal = Journal(observe)
        field, stage = _deformed(module, scans, chain, extra, place, journal)
        chain, curves = Chain([field, *chain.links]), [*curves, journal.curves]
        report.append(stage)
    tell("inverse")
    inverse = chain.inverse(scans[1].grid)
    quality = judge(*scans, chain, inverse)
    details: dict[str, Any] = {
        "method": "" if module is None else module.title,
        "operators": operators,
        "stages": report,
    }
    if extra.points is not None:
        details["landmarks_mm"] = {"before": extra.distance(Chain()), "after": extra.distance(chain)}
    return Registration(*scans, chain, inverse, quality, {**details, **_cost(began, place)}, curves, extra.labels)


def _check_overlap(fixed: Scan, moving: Scan, chain: Chain) -> None:
    """Raises ValueError if no voxel of the fixed image comes to lie on the moving one: there is nothing to compare."""
    points = fixed.grid.points().flatten(1)
    if not bool(moving.grid.contains(chain.map(points[:, :: max(1, points.shape[1] // 100_000)])).any()):
        raise ValueError(
            f"{fixed.name} and {moving.name} lie beside one another, expected some overlap or a rigid stage first"
        )


def _deformed(
    module: RegistrationModule,
    scans: Scans,
    before: Chain,
    extra: Given,
    place: torch.device,
    journal: Journal,
) -> tuple[Field, dict[str, Any]]:
    """The field of one deformable stage, and what the report says of it."""
    clock = time.perf_counter()
    with journal.reading(module):
        field = deform(module, *scans, before, extra.extras(*scans, before), Run(observe=journal), place)
    return field, _stage("deformable", clock, levels=journal.levels())


def _stage(name: str, began: float, **what: object) -> dict[str, Any]:
    """What the report says of a stage that ends now."""
    return {"stage": name, "seconds": time.perf_counter() - began, **what}


def _cost(began: float, device: torch.device) -> dict[str, float]:
    """Seconds until now, and the most memory that the process or the device has held, in MiB."""
    from dio_lightning.callbacks.cost import peak_memory  # draws in what draws

    return {"seconds": time.perf_counter() - began, "peak_mb": peak_memory(device)}


def check_stages(stages: Sequence[str], deformable: Mapping[str, object]) -> None:
    """Raises ValueError for stages that are none, or if something is said of a deformable one that is not there."""
    wrong = [stage for stage in stages if stage not in STAGES]
    first = stages.index("deformable") if "deformable" in stages else len(stages)
    if not stages or wrong or any(stage != "deformable" for stage in stages[first:]):
        raise ValueError(
            f"stages are {', '.join(stages) or 'none'}, expected some of {', '.join(STAGES)}, deformable ones last"
        )
    unused = [name for name, value in deformable.items() if value is not None]
    if unused and "deformable" not in stages:
        raise ValueError(f"{unused[0]} is for the deformable stage, but stages are {', '.join(stages)}")


def device_of(name: str) -> torch.device:
    """The device of this name, if it is there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise ValueError(f"device is {name!r}, expected one that this machine has, such as cpu or cuda") from error
    return device


def _started(start: Transform | None, linear: Sequence[Kind]) -> Chain:
    """What the stages go on from; a transform to start from is checked here, before any work.

    Raises:
        ValueError: if linear stages were to follow a field.
    """
    chain = Chain() if start is None else Chain([start]).merged()
    if all(isinstance(link, Affine) for link in chain.links):
        return Chain([Affine(np.eye(4)), chain]).merged()
    if linear:
        raise ValueError(
            f"the transform to start from has a displacement field, which no {linear[0]} stage can follow: expected "
            "affines alone, or deformable stages alone"
        )
    return chain


def _matrix(chain: Chain) -> NDArray[np.float64]:
    """The matrix of a chain that is one affine."""
    return cast(Affine, chain.links[0]).matrix


def _module(
    model: RegistrationModule | str | Path | None,
    scans: Scans,
    transformation: Transformation | None,
    terms: Sequence[Term],
) -> RegistrationModule:
    if model is None:
        module: RegistrationModule = local_correlation(scans[0].grid.size, scans[0].grid.spacing.tolist())
    elif isinstance(model, RegistrationModule):
        # the caller's module keeps its transformation and its terms
        module = deepcopy(model) if transformation is not None or terms else model
    else:
        from dio_lightning.api import load

        module = load(model)
    images = {scan.name: len(scan.grid.size) for scan in scans}
    check_dimension(module, images, model if isinstance(model, str | Path) else None)
    return changed(module, transformation, terms, any(scan.mask is not None for scan in scans)).eval()
