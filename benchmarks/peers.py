"""Two scans to a deformation: `register` beside elastix and FireANTs, in time and Dice, one run after the other.

elastix runs where itk-elastix is installed (`pip install "dio-lightning[elastix]"`). FireANTs is not a dependency. It
lives in a folder of its own, which only its process sees:

    .venv/bin/pip install --target build/fireants --no-deps fireants==1.5.0 typing_extensions
    .venv/bin/python benchmarks/peers.py $DIO_DATA/brains_2mm --fixed 0011 --moving 0012 --peers build/fireants

All take one thread, read the same two files, and are given seconds of processor time, so that others on the machine
count little. Dice is the mean over the labels of the fixed map, labels moved to the nearest voxel.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STAGES = ("linear", "deformable")


class Files(NamedTuple):
    """Images and label maps of the two subjects."""

    fixed: str
    moving: str
    fixed_labels: str
    moving_labels: str


def dice(moved: NDArray[Any], fixed: NDArray[Any]) -> float:
    """The mean over the labels of the fixed map."""
    labels = [label for label in np.unique(fixed) if label != 0]
    return float(
        np.mean([2 * ((moved == k) & (fixed == k)).sum() / ((moved == k).sum() + (fixed == k).sum()) for k in labels])
    )


def ours(files: Files) -> dict[str, float]:
    """`dio_lightning.register` with its own settings; seconds of its stages, and of all from files to the verdict."""
    import nibabel as nib
    import torch

    import dio_lightning
    from dio_lightning.registration import pipeline

    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    for name, stage in (("align", "linear"), ("deform", "deformable")):
        setattr(pipeline, name, _timed(getattr(pipeline, name), stage, seconds))
    start = process_time()
    result = dio_lightning.register(files.fixed, files.moving)
    seconds["all"] = process_time() - start
    moved = np.asanyarray(result.warp_labels(files.moving_labels).dataobj)
    return {**seconds, "dice": dice(moved, np.asanyarray(nib.load(files.fixed_labels).dataobj))}  # pyright: ignore


def _timed(function: Callable[..., Any], stage: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        start = process_time()
        result = function(*args, **kwargs)
        seconds[stage] = process_time() - start
        return result

    return run


def fireants(files: Files) -> dict[str, float]:
    """Its affine (8, 4, 2, 1; 200, 100, 50, 20 steps) and its greedy LNCC (4, 2, 1; 200, 100, 50 steps), window 5."""
    import torch
    from fireants.io.image import BatchedImages, Image  # pyright: ignore[reportMissingImports]
    from fireants.registration.affine import AffineRegistration  # pyright: ignore[reportMissingImports]
    from fireants.registration.greedy import GreedyRegistration  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    begin = process_time()
    images = [BatchedImages([Image.load_file(path, device="cpu")]) for path in files[:2]]
    start = process_time()
    affine = AffineRegistration(
        [8, 4, 2, 1], [200, 100, 50, 20], *images, optimizer="Adam", optimizer_lr=3e-4, cc_kernel_size=5
    )
    affine.optimize()
    middle = process_time()
    greedy = GreedyRegistration(
        scales=[4, 2, 1],
        iterations=[200, 100, 50],
        fixed_images=images[0],
        moving_images=images[1],
        cc_kernel_size=5,
        deformation_type="compositive",
        smooth_grad_sigma=1,
        optimizer="adam",
        optimizer_lr=0.5,
        init_affine=affine.get_affine_matrix().detach(),
    )
    greedy.optimize()
    end = process_time()
    fixed, moving = (Image.load_file(path, device="cpu").array for path in files[2:])
    places = greedy.get_warped_coordinates(*images).detach()
    moved = torch.nn.functional.grid_sample(moving.float(), places.float(), mode="nearest", align_corners=True)
    score = dice(moved[0, 0].long().numpy(), fixed[0, 0].long().numpy())
    return {"linear": middle - start, "deformable": end - middle, "all": end - begin, "dice": score}


def elastix(files: Files) -> dict[str, float]:
    """Its own default parameters, but 500 steps: affine on 4 levels, B-spline of 8 mm (Mattes' mutual information)."""
    from dio_lightning.modules.elastix import toolbox

    itk = toolbox()
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    begin = process_time()
    fixed, moving = (itk.imread(path, itk.F) for path in files[:2])
    start = process_time()
    affine = _elastix_stage(itk, fixed, moving, itk.ParameterObject.New().GetDefaultParameterMap("affine", 4))
    middle = process_time()
    bspline = itk.ParameterObject.New().GetDefaultParameterMap("bspline", 3, 8.0)
    both = _elastix_stage(itk, fixed, moving, bspline, affine)
    end = process_time()
    for index in range(both.GetNumberOfParameterMaps()):
        both.SetParameter(index, "ResampleInterpolator", "FinalNearestNeighborInterpolator")
    moved = np.asarray(itk.transformix_filter(itk.imread(files.moving_labels, itk.F), both))
    score = dice(moved.round().astype(int), np.asarray(itk.imread(files.fixed_labels)).astype(int))
    return {"linear": middle - start, "deformable": end - middle, "all": end - begin, "dice": score}


def _elastix_stage(itk: Any, fixed: Any, moving: Any, settings: Any, before: Any = None) -> Any:  # noqa: ANN401
    """The transforms up to this stage, which goes on from those before."""
    parameters = itk.ParameterObject.New()
    settings["MaximumNumberOfIterations"] = ("500",)
    settings["AutomaticTransformInitialization"] = ("false" if before is not None else "true",)
    parameters.AddParameterMap(settings)
    given = {} if before is None else {"initial_transform_parameter_object": before}
    return itk.elastix_registration_method(fixed, moving, parameter_object=parameters, number_of_threads=1, **given)[1]


def _has_elastix() -> bool:
    from dio_lightning.modules.elastix import toolbox

    try:
        return toolbox() is not None
    except ValueError:
        return False


PROGRAMS = {"ours": ours, "elastix": elastix, "fireants": fireants}


def _run(name: str, peers: Path | None) -> dict[str, float]:
    """The row of one run, in a process of its own; FireANTs' packages are seen by FireANTs alone."""
    path = [os.environ.get("PYTHONPATH", ""), *([str(peers)] if name == "fireants" else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _file(folder: Path, subject: str) -> str:
    paths = sorted(folder.glob(f"*_{subject}_*"))
    if not paths:
        raise SystemExit(f"{folder} has no file of {subject}, expected one such as OASIS_{subject}_0000.nii.gz")
    return str(paths[0])


def main() -> None:
    """Runs each in a process of its own, one after the other, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a Learn2Reg folder with label maps")
    parser.add_argument("--fixed", required=True)
    parser.add_argument("--moving", required=True)
    parser.add_argument("--peers", type=Path, help="where FireANTs was installed to; without it, it is left out")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each, of which the best counts")
    parser.add_argument("--alone", choices=tuple(PROGRAMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peers and not (options.peers / "fireants").is_dir():
        raise SystemExit(f"{options.peers} has no fireants, expected the folder that pip installed it to (--target)")
    if options.repeat < 1:
        raise SystemExit(f"--repeat is {options.repeat}, expected at least 1")
    subjects = options.fixed, options.moving
    cases = [_file(options.folder / kind, subject) for kind in ("imagesTr", "labelsTr") for subject in subjects]
    files = Files(*cases)
    if options.alone:
        print("\n" + json.dumps(PROGRAMS[options.alone](files)))
        return
    names = ["ours", *(["elastix"] if _has_elastix() else []), *(["fireants"] if options.peers else [])]
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.repeat):
        for name in names:
            row = _run(name, options.peers)
            best[name] = {key: min(value, best.get(name, row)[key]) for key, value in row.items()}
    print(f"{'':12}{'linear':>10}{'deformable':>12}{'all':>8}{'Dice':>8}")
    for name, row in best.items():
        print(f"{name:12}{row['linear']:9.1f}s{row['deformable']:11.1f}s{row['all']:7.1f}s{row['dice']:8.3f}")
    stages = {name: sum(row[stage] for stage in STAGES) for name, row in best.items()}
    for name in names[1:]:
        print(f"{name} ÷ ours, both stages: {stages[name] / stages['ours']:.1f}")


if __name__ == "__main__":
    main()
