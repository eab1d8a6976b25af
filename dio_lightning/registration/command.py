"""`dio-lightning register FIXED MOVING --out FOLDER`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dio_lightning.errors import fail
from dio_lightning.files import expect_free
from dio_lightning.registration.options import Points, add_options, given_arguments, point_targets
from dio_lightning.usage import CommandParser

EXAMPLES = """examples:
  dio-lightning register fixed.nii.gz moving.nii.gz --out result
  dio-lightning register fixed.nii.gz moving.nii.gz --out result --stages rigid
  dio-lightning register fixed.nii.gz moving.nii.gz --out result --warp-labels atlas_of_moving.nii.gz
  dio-lightning register fixed.nii.gz moving.nii.gz --out result --model weights.safetensors --transformation FreeForm

FOLDER then holds warped.nii.gz (the moving image on the fixed grid), transform.h5 and inverse.h5 (ITK composites that
SimpleITK, ANTs and Slicer read), affine.tfm and displacement.nii.gz (the same in two parts), picture.png and
report.json. Exit codes: 0 good, 0 with a warning doubtful, 3 failed, 2 wrong input.
"""
TRANSFORMATIONS = ("FreeForm", "Diffeomorphism", "StationaryVelocity", "BSpline")
FAILED = 3


def parser() -> CommandParser:
    """The command's options."""
    made = CommandParser(
        "dio-lightning register",
        description="Bring a moving image onto a fixed one: rigid, affine, deformable.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("fixed", type=Path, metavar="FIXED", help="the image that stays: NIfTI, MGH or Analyze")
    made.add_argument("moving", type=Path, metavar="MOVING", help="the image that is brought to it")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where results go")
    stages = "comma-separated, of rigid, affine, deformable (default: all)"
    made.add_argument("--stages", default="rigid,affine,deformable", metavar="LIST", help=stages)
    model = "weights for the deformable stage (default: local correlation of the images, nothing trained)"
    made.add_argument("--model", type=Path, metavar="FILE", help=model)
    made.add_argument("--transformation", choices=TRANSFORMATIONS, help="of the deformable stage, not the model's")
    start = "transform to go on from; with rigid or affine stages, one without fields"
    made.add_argument("--start", type=Path, metavar="TRANSFORM", help=start)
    made.add_argument("--fixed-labels", type=Path, metavar="FILE", help="label map of the fixed image, to be matched")
    made.add_argument("--moving-labels", type=Path, metavar="FILE", help="label map of the moving image")
    labels = "the labels to match (default: all)"
    made.add_argument("--prompt-label", type=int, nargs="+", metavar="N", help=labels)
    weight = "of labels and landmarks (default: 1)"
    made.add_argument("--prompt-weight", type=float, default=1.0, metavar="W", help=weight)
    add_options(made)
    made.add_argument("--warp-images", type=Path, nargs="+", default=[], metavar="FILE", help="more images to warp")
    made.add_argument("--warp-labels", type=Path, nargs="+", default=[], metavar="FILE", help="label maps to warp")
    made.add_argument("--device", default="cpu", help="of the deformable stage: cpu, cuda (default: %(default)s)")
    made.add_argument("--overwrite", action="store_true", help="replace files that are there")
    made.add_argument("--quiet", action="store_true", help="print the verdict alone")
    made.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
    return made


def register(argv: Sequence[str]) -> None:
    """Run the command; exits with code 3 if the result is judged to have failed."""
    options = parser().parse_args(argv)
    if options.prompt_label and None in (options.fixed_labels, options.moving_labels):
        fail("register: --prompt-label names labels of --fixed-labels and --moving-labels, expected both maps")
    passengers = [(path, mode) for mode in ("images", "labels") for path in getattr(options, f"warp_{mode}")]
    targets = _targets(options, [path for path, _ in passengers])
    points = [Points.read(path, options.coordinates, options.moving) for path in options.warp_points]
    from dio_lightning.registration.pipeline import register as run
    from dio_lightning.registration.result import save_image

    _check_passengers(options.moving, [path for path, _ in passengers])
    result = run(options.fixed, options.moving, tell=_teller(options), **_arguments(options))
    images = [result.warp(path) if mode == "images" else result.warp_labels(path) for path, mode in passengers]
    written = result.save(options.out, options.overwrite)
    for target, image in zip(targets, images, strict=True):
        save_image(target, image)
        written.append(target)
    for target, file in zip(point_targets(options.out, options.warp_points), points, strict=True):
        file.write_warped(target, result)
        written.append(target)
    if options.json:
        print(json.dumps(result.report(), indent=2))
    else:
        print(f"{result.quality.verdict}: {result.quality.sentence}")
        print(f"wrote {options.out}" if options.quiet else "wrote " + ", ".join(str(path) for path in written))
    if result.quality.verdict == "doubtful":
        sys.stderr.write(f"dio-lightning: warning: {result.quality.sentence}\n")
    if result.quality.verdict == "failed":
        raise SystemExit(FAILED)


def _targets(options: argparse.Namespace, passengers: Sequence[Path]) -> list[Path]:
    """Where passengers go; what could not be written after all the work is refused before it."""
    from dio_lightning.headers import stem
    from dio_lightning.registration.result import FILES

    out: Path = options.out
    targets = [out / f"warped_{stem(path.name)}.nii.gz" for path in passengers]
    moved = point_targets(out, options.warp_points)
    if len(set(targets)) < len(targets) or len(set(moved)) < len(moved):
        fail("register: two files to warp have one name, expected names of their own")
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir():
        fail(f"register: {above} is a file, expected a folder for the results")
    if not os.access(above, os.W_OK):
        fail(f"register: {above} cannot be written to, expected a folder for the results")
    expect_free([*(out / name for name in FILES), *targets, *moved], options.overwrite)
    return targets


def _check_passengers(moving: Path, passengers: Sequence[Path]) -> None:
    """Raises FileNotFoundError or ValueError for a file to warp that is no image like the moving one."""
    from dio_lightning.headers import read_header
    from dio_lightning.registration.scan import check_header

    for path in passengers:
        header = read_header(path)
        check_header(header, str(path))
        if header.dimension != (expected := read_header(moving).dimension):
            raise ValueError(f"{path} has {header.dimension} dimensions, expected {expected} as {moving} has")


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The options as `registration.register` takes them."""
    from dio_lightning import transformations
    from dio_lightning.headers import read_header
    from dio_lightning.transforms import ImageGrid, read_transform

    kind = options.transformation
    start = None
    if options.start is not None:
        fixed, moving = (ImageGrid.of(read_header(path)) for path in (options.fixed, options.moving))
        start = read_transform(options.start, fixed, moving)
    return {
        "stages": [stage.strip() for stage in options.stages.split(",") if stage.strip()],
        "model": options.model,
        "transformation": None if kind is None else getattr(transformations, kind)(),
        **given_arguments(options),
        "start": start,
        "fixed_labels": options.fixed_labels,
        "moving_labels": options.moving_labels,
        "device": options.device,
    }


def _teller(options: argparse.Namespace) -> Callable[[str], None]:
    """What is told the stages: a line each on stderr."""
    if options.quiet or options.json:
        return lambda text: None
    return lambda text: print(f"  {text}", file=sys.stderr, flush=True)
