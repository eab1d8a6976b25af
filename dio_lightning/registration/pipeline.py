"""From two images to a transform: stages in their order, composed exactly."""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dio_lightning.layers import Observer, Run
from dio_lightning.losses import LabelPrompt, Term
from dio_lightning.modules import RegistrationModule
from dio_lightning.pair import Pair
from dio_lightning.registration.deformable import changed, deform, local_correlation
from dio_lightning.registration.grids import seen_at
from dio_lightning.registration.images import check_dimensions
from dio_lightning.registration.journal import Journal, Parts
from dio_lightning.registration.linear import Kind, align
from dio_lightning.registration.quality import judge
from dio_lightning.registration.result import Registration
from dio_lightning.registration.scan import Image, Scan
from dio_lightning.transformations import Transformation
from dio_lightning.transforms import Affine, Chain, Transform

Stage = Literal["rigid", "affine", "deformable"]
STAGES: tuple[Stage, ...] = get_args(Stage)
LARGEST = torch.iinfo(torch.int16).max
"""Of labels, which are int16 in a pair."""
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
    device: str = "cpu",
    tell: Tell = lambda text: None,
    observe: Observer | None = None,
) -> Registration:
    """Register the moving image onto the fixed one.

    Args:
        fixed: a file, a nibabel image, or values (*s); two or three dimensions, any orientation, spacing and type.
        moving: likewise; it may lie on another grid.
        stages: in their order: `rigid` and `affine` start from many places, unless a transform is given to start from;
            `deformable` comes last.
        model: a trained module, or the file of its weights, for the deformable stage; None: local correlation of the
            images, for which nothing is trained.
        transformation: of the deformable stage, in place of the model's.
        terms: what the deformable stage descends on besides, such as `LabelPrompt`.
        start: affines from the fixed world to the moving one that the stages go on from.
        fixed_affine: of bare values, voxels to RAS millimetres.
        moving_affine: likewise.
        fixed_labels: label map on the fixed image's grid, for terms that compare labels.
        moving_labels: likewise on the moving image's.
        device: where the deformable stage runs.
        tell: is told each stage as it begins.
        observe: is given a `Record` of every state of the deformable stage.

    Returns:
        The transform, what it makes of images and points, and how far it is to be trusted.

    Raises:
        FileNotFoundError, ValueError: with one sentence, before any long work starts.
    """
    began = time.perf_counter()
    check_stages(
        stages, {"model": model, "transformation": transformation, "terms": terms or None, "labels": fixed_labels}
    )
    place = device_of(device)
    scans = Scan.of(fixed, fixed_affine, "the fixed image"), Scan.of(moving, moving_affine, "the moving image")
    check_dimensions({scan.name: len(scan.grid.size) for scan in scans})
    labels = _labels(scans, fixed_labels, moving_labels)
    _check_prompts(terms, labels)
    module = _module(model, scans[0], transformation, terms).to(place) if "deformable" in stages else None
    matrix, report = _matrix(start), list[dict[str, Any]]()
    kinds: list[Kind] = [stage for stage in stages if stage != "deformable"]
    if kinds:
        clock, parts = time.perf_counter(), Parts(tell)
        matrix = align(*scans, kinds, matrix, parts)
        report.append(_stage(" and ".join(kinds), clock, parts=parts.report()))
    matrix = np.eye(4) if matrix is None else matrix
    chain = Chain([Affine(matrix)])
    if module is not None:
        tell(f"deformable, {module.title}")
        clock, journal = time.perf_counter(), Journal(observe)
        with journal.reading(module):
            field = deform(module, *scans, matrix, _extras(scans, labels, matrix), Run(observe=journal), place)
        report.append(_stage("deformable", clock, levels=journal.levels()))
        chain = Chain([field, *chain.links])
    tell("inverse")
    inverse = chain.inverse(scans[1].grid)
    quality = judge(*scans, chain, inverse)
    method = module.title if module is not None else ""
    details = {"method": method, "stages": report, **_cost(began, place)}
    return Registration(*scans, chain, inverse, quality, details)


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
    if not stages or wrong or "deformable" in stages[:-1]:
        raise ValueError(
            f"stages are {', '.join(stages) or 'none'}, expected some of {', '.join(STAGES)}, a deformable one last"
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


def _matrix(start: Transform | None) -> NDArray[np.float64] | None:
    """The linear part of a transform to start from."""
    if start is None:
        return None
    links = Chain([Affine(np.eye(4)), start]).merged().links
    if len(links) > 1 or not isinstance(links[0], Affine):
        raise ValueError("the transform to start from has a displacement field, expected affines alone")
    return links[0].matrix


def _module(
    model: RegistrationModule | str | Path | None,
    fixed: Scan,
    transformation: Transformation | None,
    terms: Sequence[Term],
) -> RegistrationModule:
    if model is None:
        module: RegistrationModule = local_correlation(fixed.grid.size)
    elif isinstance(model, RegistrationModule):
        # the caller's module keeps its transformation and its terms
        module = deepcopy(model) if transformation is not None or terms else model
    else:
        from dio_lightning.api import load

        module = load(model)
    changed(module, transformation, terms)
    return module.eval()


def _labels(scans: tuple[Scan, Scan], *images: Image | None) -> tuple[Scan, Scan] | None:
    """Label maps on the grids of their images.

    Raises:
        ValueError: if one is missing, lies on another grid, or holds what are no labels.
    """
    if all(image is None for image in images):
        return None
    if any(image is None for image in images):
        raise ValueError("labels of one image alone are given, expected those of both or of none")
    maps = tuple(Scan.of(cast(Image, image), name="a label map") for image in images)
    for scan, label in zip(scans, maps, strict=True):
        if not label.grid.like(scan.grid):
            raise ValueError(f"{label.name} lies on another grid than {scan.name}, expected the same voxels")
        low, high = float(label.values.min()), float(label.values.max())
        if low < 0 or high > LARGEST or bool((label.values != label.values.round()).any()):
            raise ValueError(
                f"{label.name} has values from {low:g} to {high:g}, expected whole numbers up to {LARGEST} as labels"
            )
    return cast(tuple[Scan, Scan], maps)


def _check_prompts(terms: Sequence[Term], labels: tuple[Scan, Scan] | None) -> None:
    """Raises ValueError if a label is prompted that one of the maps does not have."""
    for label in (label for term in terms if isinstance(term, LabelPrompt) for label in term.labels or ()):
        for scan in labels or ():
            if not bool((scan.values == label).any()):
                raise ValueError(f"{scan.name} has no label {label}, which is to be matched")


def _extras(scans: tuple[Scan, Scan], labels: tuple[Scan, Scan] | None, matrix: NDArray[np.float64]) -> Pair:
    """What terms need besides the images, on the fixed grid."""
    if labels is None:
        return cast(Pair, {})
    fixed, moving = labels
    placed = seen_at(moving.values, moving.grid, matrix[None], scans[0].grid, "nearest")
    return cast(Pair, {"fixed_label": fixed.values.to(torch.int16), "moving_label": placed.to(torch.int16)})
