"""`dio-lightning register FIXED MOVING --out FOLDER`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from dio_lightning.allocation import keep_freed_memory
from dio_lightning.errors import fail
from dio_lightning.models import weights_path
from dio_lightning.registration.interrupts import ending_at_sigterm
from dio_lightning.registration.options import add_options, given_arguments
from dio_lightning.registration.progress import progress
from dio_lightning.usage import CommandParser

if TYPE_CHECKING:
    from dio_lightning.registration.single import Outcome

USAGE = """dio-lightning register FIXED MOVING --out FOLDER [options]
       dio-lightning register --csv pairs.csv --out FOLDER [options]

examples:
  dio-lightning register fixed.nii.gz moving.nii.gz --out result
  dio-lightning register fixed.nii.gz moving.nii.gz --out result --stages rigid
  dio-lightning register fixed.nii.gz moving.nii.gz --out result --warp-labels atlas_of_moving.nii.gz
  dio-lightning register fixed.nii.gz moving.nii.gz --out result --model brain-t1 --transformation FreeForm
  dio-lightning register tpl-MNI_T1w.nii.gz sub-01_T1w.nii.gz --out derivatives --bids --check-export
  dio-lightning register --csv pairs.csv --out results --jobs 4
"""
LEFT = """FOLDER then holds warped.nii.gz (the moving image on the fixed grid), transform.h5 and inverse.h5 (ITK
composites for SimpleITK, ANTs and Slicer), affine.tfm and displacement.nii.gz (the same in two parts), picture.png and
report.json; of a table, a folder for every pair, and results.csv: the same command goes on where an earlier one
stopped. Exit codes: 0 good, 0 with a warning doubtful, 3 failed, 2 wrong input.
"""
TRANSFORMATIONS = ("FreeForm", "Diffeomorphism", "StationaryVelocity", "BSpline")
FAILED = 3
OF_ONE = (
    *(f"{side}_{what}" for what in ("labels", "mask", "points") for side in ("fixed", "moving")),
    *("warp_images", "warp_labels", "warp_points"),
)
"""Options that name files of one pair."""


def parser() -> CommandParser:
    """The command's options."""
    made = CommandParser(
        "dio-lightning register",
        usage=USAGE,
        description="Bring a moving image onto a fixed one: rigid, affine, deformable.",
        epilog=LEFT,
        formatter_class=_formatter,
    )
    fixed = "the image that stays: NIfTI, MGH or Analyze"
    made.add_argument("fixed", type=Path, nargs="?", metavar="FIXED", help=fixed)
    made.add_argument("moving", type=Path, nargs="?", metavar="MOVING", help="the image that is brought to it")
    _add_stages(made.add_argument_group("stages"))
    add_options(made.add_argument_group("what is given besides the images"))
    _add_outputs(made.add_argument_group("what is written"))
    many = made.add_argument_group("many pairs")
    columns = "a table with the columns fixed and moving; if wanted label, mask and points of each, as fixed_label"
    many.add_argument("--csv", type=Path, metavar="FILE", help=columns)
    jobs = "processes of one thread each (default: 1)"
    many.add_argument("--jobs", type=int, default=1, metavar="N", help=jobs)
    return made


def _formatter(prog: str) -> argparse.HelpFormatter:
    width = min(120, get_terminal_size((120, 40)).columns)
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width)


def _add_stages(group: argparse._ArgumentGroup) -> None:
    stages = "comma-separated, of rigid, affine, deformable (default: all)"
    group.add_argument("--stages", default="rigid,affine,deformable", metavar="LIST", help=stages)
    model = "for the deformable stage: weights, a model (`dio-lightning models`), a config (default: local correlation)"
    group.add_argument("--model", type=weights_path, metavar="FILE|NAME", help=model)
    group.add_argument("--transformation", choices=TRANSFORMATIONS, help="of the deformable stage, not the model's")
    start = "transform to go on from; with rigid or affine stages, one without fields"
    group.add_argument("--start", type=Path, metavar="TRANSFORM", help=start)
    group.add_argument("--device", default="cpu", help="of the deformable stage: cpu, cuda (default: %(default)s)")


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where results go")
    group.add_argument("--warp-images", type=Path, nargs="+", default=[], metavar="FILE", help="more images to warp")
    group.add_argument("--warp-labels", type=Path, nargs="+", default=[], metavar="FILE", help="label maps to warp")
    points = "points of the moving image, to be taken to the fixed one"
    group.add_argument("--warp-points", type=Path, nargs="+", default=[], metavar="FILE", help=points)
    also = "the displacement in other formats too: displacement_learn2reg.nii.gz, displacement_fsl.nii.gz"
    group.add_argument("--also", nargs="+", default=[], choices=("learn2reg", "fsl"), metavar="FORMAT", help=also)
    bids = "name results as BIDS derivatives: sub-01_from-T1w_to-MNI_mode-image_xfm.h5"
    group.add_argument("--bids", action="store_true", help=bids)
    check = "warp once more by SimpleITK and transform.h5, and compare; code 3 above 0.5 %% of the range"
    group.add_argument("--check-export", action="store_true", help=check)
    group.add_argument("--overwrite", action="store_true", help="replace files that are there")
    group.add_argument("--quiet", action="store_true", help="print the verdict alone")
    group.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")


def register(argv: Sequence[str]) -> None:
    """Run the command; exits with code 3 if the result is judged to have failed."""
    options = parser().parse_args(argv)
    _check_options(options)
    options.command = " ".join(["dio-lightning register", *map(quote, argv)])
    keep_freed_memory()
    with ending_at_sigterm():
        if options.csv is not None:
            from dio_lightning.registration.batch import batch

            return batch(options)
        from dio_lightning.registration.single import single

        with progress(silent=options.quiet or options.json) as shown:
            outcome = single(options, shown)
    if options.json:
        print(json.dumps(outcome.report, indent=2))
    else:
        _say(options, outcome)
    if outcome.warning:
        sys.stderr.write(f"dio-lightning: warning: {outcome.warning}\n")
    if outcome.failed:
        raise SystemExit(FAILED)
    return None


def _say(options: argparse.Namespace, outcome: "Outcome") -> None:
    print(f"{outcome.report['quality']['verdict']}: {outcome.report['quality']['sentence']}")
    if "export" in outcome.report:
        print(outcome.report["export"]["sentence"])
    print(f"wrote {options.out}" if options.quiet else "wrote " + ", ".join(str(path) for path in outcome.written))


def _check_options(options: argparse.Namespace) -> None:
    """What contradicts itself is refused at once."""
    if options.csv is None and None in (options.fixed, options.moving):
        fail("register: expected FIXED and MOVING, two images, or --csv, a table of pairs")
    if options.csv is not None and options.fixed is not None:
        fail("register: --csv names the images of all pairs, expected neither FIXED nor MOVING beside it")
    given = [f"--{name.replace('_', '-')}" for name in OF_ONE if getattr(options, name)]
    if options.csv is not None and given:
        fail(f"register: {given[0]} is for one pair, expected a column of the table")
    if options.jobs < 1 or (options.jobs > 1 and options.csv is None):
        fail(f"register: --jobs is {options.jobs}, expected a number of processes, with --csv")
    if options.csv is None and options.prompt_label and None in (options.fixed_labels, options.moving_labels):
        fail("register: --prompt-label names labels of --fixed-labels and --moving-labels, expected both maps")


def check_passengers(moving: Path, passengers: Sequence[Path]) -> None:
    """Raises FileNotFoundError or ValueError for a file to warp that is no image like the moving one."""
    from dio_lightning.headers import read_header
    from dio_lightning.registration.images import check_header

    for path in passengers:
        header = read_header(path)
        check_header(header, str(path))
        if header.dimension != (expected := read_header(moving).dimension):
            raise ValueError(f"{path} has {header.dimension} dimensions, expected {expected} as {moving} has")


def arguments_of(options: argparse.Namespace) -> dict[str, Any]:
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
