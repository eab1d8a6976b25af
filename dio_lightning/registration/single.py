"""One pair, from the command line's options to the files that it leaves."""

import argparse
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dio_lightning.files import expect_free
from dio_lightning.registration.command import arguments_of, check_passengers
from dio_lightning.registration.images import check_formats, check_images
from dio_lightning.registration.options import Points, point_targets
from dio_lightning.registration.progress import Progress

if TYPE_CHECKING:
    from dio_lightning.modules import RegistrationModule
    from dio_lightning.registration.outputs import Outputs
    from dio_lightning.registration.result import Registration
    from dio_lightning.registration.scoring import Truth


@dataclass(frozen=True)
class Outcome:
    """What became of one pair.

    Attributes:
        report: what its report.json says.
        written: its files.
    """

    report: Mapping[str, Any]
    written: Sequence[Path]

    @property
    def failed(self) -> bool:
        """Whether the verdict says so, or SimpleITK makes something else of the files."""
        return self.report["quality"]["verdict"] == "failed" or not self.report.get("export", {}).get("passed", True)

    @property
    def warning(self) -> str:
        """Why it is doubtful; empty if it is not."""
        quality = self.report["quality"]
        return str(quality["sentence"]) if quality["verdict"] == "doubtful" else ""


def single(
    options: argparse.Namespace,
    shown: Progress,
    *,
    outputs: "Outputs | None" = None,
    module: "RegistrationModule | None" = None,
    notes: Mapping[str, Any] | None = None,
    truth: "Truth | None" = None,
) -> Outcome:
    """Register the pair of the options and write what it leaves.

    Args:
        options: those of the command.
        shown: is told what goes on.
        outputs: where its files go; None: where the options say.
        module: the model of the options, if it is loaded already.
        notes: what the report says besides.
        truth: label maps and landmarks that the result is measured by, for the report; the maps are drawn on its page.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: with one sentence, before any long work starts.
    """
    outputs = outputs or outputs_of(options)
    targets = targets_of(options, outputs)
    examine = _examine(options)
    check_images(options.fixed, options.moving)
    check_formats(options.also, options.check_export, options.fixed, options.moving)
    check_passengers(options.moving, [*options.warp_images, *options.warp_labels])
    points = [Points.read(path, options.coordinates, options.moving) for path in options.warp_points]
    shown.stage("reading")
    from dio_lightning.registration.pipeline import register
    from dio_lightning.registration.result import save_image

    arguments: dict[str, Any] = arguments_of(options) | ({} if module is None else {"model": module})
    with _listening() as warned:
        result = register(options.fixed, options.moving, tell=shown.stage, observe=shown.observe, **arguments)
        images = [result.warp(path) for path in options.warp_images]
        images += [result.warp_labels(path) for path in options.warp_labels]
    shown.stage("writing")
    said: dict[str, Any] = {"command": options.command, "warnings": warned, **(notes or {})}
    if truth is not None:
        said["scores"] = truth.scores(result)
        result = replace(result, labels=truth.maps(result) or result.labels)
    look = None if examine is None else lambda transform, warped: examine(result, transform, warped)
    writers = [partial(save_image, image=image) for image in images]
    writers += [partial(file.write_warped, result=result) for file in points]
    passengers = dict(zip(targets, writers, strict=True))
    keep = [path for value in vars(options).values() for path in (value if isinstance(value, list) else [value])]
    keep = [path for path in keep if isinstance(path, Path)]
    written = result.save(outputs, options.overwrite, passengers=passengers, notes=said, examine=look, keep=keep)
    return Outcome(json.loads(outputs.report.read_text(encoding="utf-8")), written)


def outputs_of(options: argparse.Namespace) -> "Outputs":
    """Where the files of the options' pair go."""
    if options.bids:
        from dio_lightning.registration.bids import bids_outputs

        return bids_outputs(options.out, options.fixed, options.moving, options.also)
    from dio_lightning.registration.outputs import Outputs

    return Outputs.in_folder(options.out, options.also)


def check_folder(out: Path) -> None:
    """Raises ValueError if a folder can neither be written to nor be made."""
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"register: {above} is a file, expected a folder for the results")
    if not os.access(above, os.W_OK):
        raise ValueError(f"register: {above} cannot be written to, expected a folder for the results")


def targets_of(options: argparse.Namespace, outputs: "Outputs") -> list[Path]:
    """Where images, label maps and points that are warped too go; what cannot be written is refused before any work.

    Raises:
        FileExistsError, ValueError: with the reason.
    """
    targets = [outputs.passenger(path) for path in (*options.warp_images, *options.warp_labels)]
    targets += point_targets(outputs.report.parent, options.warp_points)
    if len({*targets, *outputs.all}) < len(targets) + len(outputs.all):
        raise ValueError("register: two files to warp have one name, expected names of their own")
    check_folder(options.out)
    expect_free([*outputs.all, *targets], options.overwrite)
    return targets


def _examine(options: argparse.Namespace) -> "Callable[[Registration, Path, Path], Mapping[str, Any]] | None":
    if not options.check_export:
        return None
    from dio_lightning.registration.export import check_export, simple_itk

    simple_itk()
    return check_export


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Warnings that are given meanwhile, each once; they are shown as before when it ends."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        yield said
    for warning in caught:
        if str(warning.message) not in said:
            said.append(str(warning.message))
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
