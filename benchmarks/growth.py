"""How the parts of a DIO pair grow from 80×96×112 voxels to eight times as many.

    OMP_NUM_THREADS=1 python benchmarks/growth.py

Processor seconds of the network on one image, of an iteration at each level, and of feature matching and its adjoint at
the finest; beside them those that the system took, mostly to hand out pages of memory.
"""

import argparse
import resource
from collections.abc import Callable

import torch
from targets import ONE_MM, TWO_MM, dio, smooth_images
from timing import Size, shifted_features

from dio_lightning import ops
from dio_lightning.implicit import Never
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.transformations import Diffeomorphism

STEPS = 6


def seconds(call: Callable[[], object], repetitions: int = 2) -> tuple[float, float]:
    """Of this process and of the system for it: the shortest of some calls after one that is not counted."""
    call()
    shortest = (float("inf"), 0.0)
    for _ in range(repetitions):
        before = resource.getrusage(resource.RUSAGE_SELF)
        call()
        after = resource.getrusage(resource.RUSAGE_SELF)
        system = after.ru_stime - before.ru_stime
        shortest = min(shortest, (after.ru_utime - before.ru_utime + system, system))
    return shortest


def parts(size: Size) -> dict[str, tuple[float, float]]:
    """Seconds by the part's name."""
    fixed, _ = smooth_images(size)
    module = dio((STEPS,) * 3).eval()
    each = {"network": seconds(lambda: module.features(fixed), 1)}
    layer = OptimizerLayer((STEPS,), transformation=Diffeomorphism(), stop=Never())
    for level in (4, 2, 1):
        f, m, u = shifted_features(tuple(n // level for n in size), 16)
        problem, zero = layer.problem(Level(f, m)), torch.zeros_like(u)
        whole = seconds(lambda: layer.solve(problem, zero, STEPS))
        each[f"iteration at level {level}"] = whole[0] / STEPS, whole[1] / STEPS
    ones = torch.ones(1)
    each["matching"] = seconds(lambda: ops.match(f, m, u))
    each["its adjoint"] = seconds(lambda: torch.ops.dio.match_adjoint(f, m, u, ones, u))
    return each


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to test the benchmark itself")
    options = parser.parse_args()
    with torch.no_grad():
        small, large = (parts((16, 16, 24) if options.quick else size) for size in (TWO_MM, ONE_MM))
    print(
        "| part | s, small | of it the system's | s, large | of it the system's | growth |\n|---|---|---|---|---|---|"
    )
    for name, (one, system) in small.items():
        other, its_system = large[name]
        print(f"| {name} | {one:.3g} | {system:.2g} | {other:.3g} | {its_system:.2g} | {other / one:.1f} |")


if __name__ == "__main__":
    main()
