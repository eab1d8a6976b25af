"""The command line of transforms: `dio-lightning transform apply | invert | compose | convert`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dio_lightning.errors import fail
from dio_lightning.headers import Header, read_header
from dio_lightning.usage import CommandParser, nearest

if TYPE_CHECKING:
    from dio_lightning.transforms import Chain
    from dio_lightning.transforms.files import ImageNeeded

USAGE = """dio-lightning transform: saved transforms on other files, and in the formats of other tools

  dio-lightning transform apply   T2.nii.gz     --transforms WARP.h5 --fixed FIXED.nii.gz --out T2_warped.nii.gz
  dio-lightning transform apply   LABELS.nii.gz --transforms WARP.h5 --fixed FIXED.nii.gz --out L.nii.gz --mode nearest
  dio-lightning transform apply   POINTS.csv    --transforms WARP.h5 --points-of fixed --coordinates ras --out OUT.csv
  dio-lightning transform invert  WARP.h5 --out INVERSE.h5
  dio-lightning transform compose WARP.nii.gz AFFINE.mat --out CHAIN.h5
  dio-lightning transform convert WARP.h5 --to fsl --fixed FIXED.nii.gz --moving MOVING.nii.gz --out WARP_fsl.nii.gz

A transform takes a point of the fixed image to where the moving image has what belongs there. Of several, the first
listed is applied first to points of the fixed image: a list for antsApplyTransforms -t serves as it is.
  FILE          .h5 .tfm .txt (ITK, Slicer), .mat (ANTs, FLIRT), .nii.gz (ITK, FNIRT, Learn2Reg), .npz (Learn2Reg)
  inverse:FILE  its inverse, as ANTs' [FILE,1];  fsl:FILE, itk:FILE, learn2reg:FILE say whose it is
`dio-lightning transform apply --help` lists the options of apply, and so for the others.
"""
COMMANDS = ("apply", "invert", "compose", "convert")
FEW = 64
"""Different values of a label map, at most."""
MISSED = 0.01
"""Millimetres by which a point may miss its origin before that is said."""


def transform(argv: Sequence[str]) -> None:
    """Run one of the four commands."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if argv[0] not in COMMANDS:
        fail(f"transform: unknown command {argv[0]!r}: expected {', '.join(COMMANDS)}{nearest(argv[0], COMMANDS)}")
    if argv[0] == "apply":
        return _apply(argv[1:])
    return _rewrite(argv[0], argv[1:])


def _apply(argv: Sequence[str]) -> None:
    parser = _parser("apply", "An image, label map or list of points, where transforms take it.")
    file = "moving image (.nii.gz, .mgz, ...), or points of either image (.csv, .fcsv, .mrk.json)"
    parser.add_argument("file", type=Path, metavar="FILE", help=file)
    listed = "the first is applied first to points of the fixed image"
    parser.add_argument("--transforms", nargs="+", required=True, metavar="FILE", help=listed)
    mode = "nearest for label maps (default: linear)"
    parser.add_argument("--mode", choices=("linear", "nearest"), help=mode)
    outside = "value beside the moving image (default: 0, or its smallest if that is negative)"
    parser.add_argument("--outside", type=float, help=outside)
    whose = "whose points they are; they go to the other image"
    parser.add_argument("--points-of", choices=("fixed", "moving"), help=whose)
    coordinates = "of points in a CSV: millimetres, or voxels of their image"
    parser.add_argument("--coordinates", choices=("ras", "lps", "voxels"), help=coordinates)
    options = parser.parse_args(argv)
    from dio_lightning.transforms.point_files import is_points

    if options.out.exists() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists: choose another file, or give --overwrite")
    if is_points(options.file):
        return _apply_to_points(options)
    if options.points_of or options.coordinates:
        raise ValueError(f"{options.file} is no file of points, expected .csv, .fcsv or .mrk.json with --points-of")
    return _apply_to_image(options)


def _apply_to_image(options: argparse.Namespace) -> None:
    from dio_lightning.transforms import ImageGrid, warp_image
    from dio_lightning.volume_files import save_volume

    if options.fixed is None:
        raise ValueError("an image is warped onto the grid of the fixed one: name it with --fixed")
    if not options.out.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{options.out} has another ending than .nii.gz or .nii, in which images are written")
    moving, fixed = _header(options.file), _header(options.fixed)
    chain = _chain(options.transforms, fixed, moving if options.moving is None else _header(options.moving))
    if options.mode is None and _like_labels(moving):
        _warn(f"{options.file} looks like a label map and is interpolated linearly: --mode nearest keeps its labels")
    warped = warp_image(moving, chain, ImageGrid.of(fixed), options.mode or "linear", options.outside)
    warped = warped.reshape(*warped.shape, *[1] * (3 - warped.ndim))
    save_volume(options.out, warped, fixed.affine, moving.scale)
    print(f"wrote {options.out}")


def _apply_to_points(options: argparse.Namespace) -> None:
    from dio_lightning.transforms import ImageGrid, warp_points
    from dio_lightning.transforms.point_files import ENDINGS, coordinates_of, from_world, read_points, to_world

    if options.points_of is None:
        raise ValueError("points go from one image to the other: say whose they are with --points-of fixed|moving")
    ending = next(ending for ending in ENDINGS if options.file.name.lower().endswith(ending))
    if not options.out.name.lower().endswith(ending):
        raise ValueError(f"{options.out} has another ending than {options.file}, expected {ending}")
    file = read_points(options.file)
    coordinates = coordinates_of(file, options.file, options.coordinates)
    fixed, moving = (None if path is None else _header(path) for path in (options.fixed, options.moving))
    for header in (fixed, moving):
        if header is not None and file.values.shape[1] < header.dimension:
            raise ValueError(f"{options.file} has points of 2 coordinates, expected 3 as {header.path} has")
    grids = {"fixed": fixed and ImageGrid.of(fixed), "moving": moving and ImageGrid.of(moving)}
    other = "moving" if options.points_of == "fixed" else "fixed"
    if coordinates == "voxels" and None in grids.values():
        raise ValueError("points in voxels need both images: name them with --fixed and --moving")
    chain = _chain(options.transforms, fixed, moving)
    world = to_world(file.values, coordinates, grids[options.points_of])
    if world.shape[1] == 2 and not chain.planar:
        raise ValueError(f"{options.file} has points of 2 coordinates, expected 3 as their transform has")
    moved = warp_points(world, chain, other)
    wrong = int((moved.missed > MISSED).sum())
    if wrong:
        worst = f"they are off by up to {moved.missed.max():.3g} mm"
        _warn(f"{wrong} of {len(world)} points have no origin: {worst}")
    file.write(options.out, from_world(moved.points, coordinates, grids[other], file.values.shape[1]))
    print(f"wrote {options.out}: {len(world)} points of the {options.points_of} image in the {other} one")


def _rewrite(name: str, argv: Sequence[str]) -> None:
    """Invert, compose and convert: transforms in, a transform out."""
    what = {
        "invert": "The inverse of a transform: moving image to fixed image. Several are inverted as one.",
        "compose": "Several transforms as one; the first listed is applied first to points of the fixed image.",
        "convert": "A transform in another format.",
    }
    parser = _parser(name, what[name])
    count = None if name == "convert" else "+"
    parser.add_argument("transforms", nargs=count, metavar="FILE", help="see `dio-lightning transform --help`")
    parser.add_argument("--to", choices=("itk", "fsl", "learn2reg"), help="format (default: by the ending of --out)")
    options = parser.parse_args(argv)
    from dio_lightning.transforms import Chain, ImageGrid, write_transform
    from dio_lightning.transforms.files import check_writable, ending_of

    format = options.to or ("learn2reg" if ending_of(options.out) == ".npz" else "itk")
    check_writable(options.out, format, options.overwrite)
    headers = [None if path is None else _header(path) for path in (options.fixed, options.moving)]
    listed = [options.transforms] if name == "convert" else options.transforms
    chain = _chain(listed, headers[0], headers[1])
    fixed, moving = (header and ImageGrid.of(header) for header in headers)
    if name == "invert":
        inverse = chain.inverse(moving)
        chain, fixed, moving = Chain([inverse.transform]), moving, fixed
        missed = f"{inverse.mean:.2g} mm on average and {inverse.largest:.2g} mm at most"
        where = f"in the {100 * inverse.covered:.0f} % of its grid that the transform reaches"
        print(f"the inverse and then the transform miss a point by {missed}, {where}")
    write_transform(options.out, chain.merged(), fixed, moving, format, options.overwrite)
    print(f"wrote {options.out}")


def _parser(name: str, description: str) -> CommandParser:
    head = f"  dio-lightning transform {name}"
    examples = "\n       ".join(line.strip() for line in USAGE.splitlines() if line.startswith(head))
    parser = CommandParser(head.strip(), usage=examples, description=description, allow_abbrev=False)
    parser.add_argument("--fixed", type=Path, metavar="IMAGE", help="the fixed image: its grid alone counts")
    parser.add_argument("--moving", type=Path, metavar="IMAGE", help="the moving image, for FSL's formats and voxels")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    return parser


def _like_labels(header: Header) -> bool:
    """Whether an image has few different values, all of them whole numbers, as no scan has; in any type."""
    if header.dtype.kind not in "iuf":
        return False
    values = header.values()
    return bool((np.rint(values) == values).all()) and len(np.unique(values)) <= FEW


def _warn(sentence: str) -> None:
    sys.stderr.write(f"dio-lightning: warning: {sentence}\n")


def _header(path: Path) -> Header:
    """The header of an image that lies somewhere."""
    header = read_header(path)
    if not header.invertible:
        raise ValueError(f"{path} has an affine that is not invertible, expected one that says where it lies")
    if header.dimension not in (2, 3):
        raise ValueError(f"{path} has {header.dimension} axes, expected an image of two or three dimensions")
    return header


def _chain(names: Sequence[str], fixed: Header | None, moving: Header | None) -> "Chain":
    """The transforms of the command line as one chain; their grids are those of the images."""
    from dio_lightning.transforms import Chain, ImageGrid, read_transform
    from dio_lightning.transforms.files import FORMATS, ImageNeeded

    if len(names) > 1:
        # which images each of several lies between is not said
        fixed = moving = None
    grids = {"fixed": fixed and ImageGrid.of(fixed), "moving": moving and ImageGrid.of(moving)}
    chain = Chain()
    for name in names:
        prefixes, path = [], name
        while (prefix := path.partition(":")[0]) in ("inverse", *FORMATS) and not Path(path).exists():
            prefixes, path = [*prefixes, prefix], path.partition(":")[2]
        backwards = prefixes.count("inverse") % 2 == 1
        # the file's own fixed image is the moving one of its inverse
        own = {"fixed": grids["moving"], "moving": grids["fixed"]} if backwards else grids
        try:
            link = read_transform(Path(path), **own, format=next((one for one in FORMATS if one in prefixes), None))
        except ImageNeeded as error:
            raise ValueError(_asking(error, backwards, len(names) > 1)) from error
        chain += link.inverse().transform if backwards else link
    return chain


def _asking(error: "ImageNeeded", backwards: bool, several: bool) -> str:
    """What to do about a file that cannot be read without an image."""
    if several:
        what = f"{error.path} needs its own fixed and moving image, which are not said for each of several transforms"
        return f"{what}: convert it to .tfm or .h5 with its --fixed and --moving first"
    if not backwards:
        return str(error)
    other = "moving" if error.which == "fixed" else "fixed"
    return f"{error.path} means nothing without its {error.which} image: name it with --{other} for the inverse"
