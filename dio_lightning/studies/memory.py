"""Memory of one training step as a function of the number of steps, for every method."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dio_lightning.modules import DEQReg, RegistrationModule
from dio_lightning.studies.files import free, write
from dio_lightning.studies.loading import Loaded, load_all
from dio_lightning.studies.memory_point import Cost, Point, dimension, in_a_process
from dio_lightning.studies.memory_report import FILES, Measured, csv, figure, markdown

STEPS = (3, 6, 12, 24, 48, 96)
SIZES = {2: (80, 96), 3: (40, 48, 56)}
BATCHES = {2: 4, 3: 1}
ADJOINTS = {"T = 1": (1, False), "T = 3": (3, False), "T = 3, checkpointed": (3, True)}
"""The phantom steps that a DEQReg is measured with, and whether each is recomputed."""


def memory(
    weights: Sequence[str],
    out: Path,
    options: Sequence[str] = (),
    steps: Sequence[int] = STEPS,
    size: Sequence[int] | None = None,
    batch: int | None = None,
    limit_mb: float | None = None,
    overwrite: bool = False,
    measure: Callable[[Point], Cost] = in_a_process,
) -> str:
    """Measure one training step of every method at every number of steps; writes memory.csv, .md, .png and .svg.

    The images are random: neither data nor trained weights matter. A DEQReg is measured with each of `ADJOINTS`.

    Args:
        weights: methods, as `load` takes them; configs do.
        out: the folder to write to.
        options: overrides of every model, as `dio-lightning test` takes them.
        steps: numbers of steps K at the finest level; a method that takes no steps has one point.
        size: the grid; 80x96, or 40x48x56 for networks in 3-D.
        batch: pairs; 4 in 2-D, 1 in 3-D.
        limit_mb: what is expected to take more is not run; half of the machine's memory by default.
        overwrite: replace files that are there.
        measure: the cost of a point.

    Returns:
        The Markdown.

    Raises:
        FileNotFoundError, ValueError: for settings or weights that are not as expected, or a step that fails.
        FileExistsError: an output is there.
    """
    if not steps or min(steps) < 1 or sorted(set(steps)) != list(steps):
        raise ValueError(f"steps are {list(steps)}, expected rising numbers of at least 1")
    if size is not None and (len(size) not in (2, 3) or min(size) < 2):
        raise ValueError(f"size is {list(size)}, expected two or three extents of at least 2")
    free(out, FILES, overwrite)
    limit, found = limit_mb or half_of_memory(), list[Measured]()
    points = [
        (name, point, takes_steps(one.module))
        for given, one in zip(weights, load_all(weights, options), strict=True)
        for name, point in variants(one, given, options, size, batch)
    ]
    for name, point, many in points:
        found += sweep(name, point, steps if many else None, limit, measure)
        costs = [f"{m.steps}: " + (f"{m.cost.peak_mb:.0f}" if m.cost else "not run") for m in found if m.method == name]
        print(f"{name}, MiB by steps: {', '.join(costs)}", flush=True)
    text, picture = markdown(found), figure(found)
    write(out, dict(zip(FILES, [csv(found), text, picture, picture], strict=True)))
    return text


def variants(
    one: Loaded, given: str, options: Sequence[str], size: Sequence[int] | None, batch: int | None
) -> Iterator[tuple[str, Point]]:
    """The method under its name, on the grid of its dimension; a DEQReg with each of `ADJOINTS`."""
    d = len(size) if size is not None else dimension(one.module)
    point = Point(given, list(options), list(size or SIZES[d]), batch or BATCHES[d], None)
    if not isinstance(one.module, DEQReg):
        yield one.name, point
        return
    name = "DEQReg" if one.name == one.module.title else one.name  # the title tells a number of steps
    for adjoint, (phantom, checkpointed) in ADJOINTS.items():
        yield f"{name}, {adjoint}", replace(point, phantom=phantom, checkpointed=checkpointed)


def takes_steps(module: RegistrationModule) -> bool:
    """Whether the method's number of steps may be set."""
    return type(module).steps is not RegistrationModule.steps


def sweep(
    name: str, point: Point, steps: Sequence[int] | None, limit_mb: float, measure: Callable[[Point], Cost]
) -> list[Measured]:
    """One method at every number of steps; what would exceed the limit is not run."""
    if steps is None:
        return [Measured(name, 1, measure(point))]
    found: list[Measured] = []
    for k in steps:
        fits = expected([(m.steps, m.cost.peak_mb) for m in found if m.cost], k) <= limit_mb
        found.append(Measured(name, k, measure(replace(point, steps=k)) if fits else None))
    return found


def expected(seen: Sequence[tuple[int, float]], steps: int) -> float:
    """The memory at `steps`, on the line through the last two of `seen` (steps, MiB); proportional after one."""
    if not seen:
        return 0.0
    (k1, m1), (k2, m2) = [(0, 0.0), *seen][-2:]
    return m2 + (m2 - m1) / (k2 - k1) * (steps - k2)


def half_of_memory() -> float:
    """MiB; 4096 where the operating system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 4096.0
    total = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
    return int(total.split()[1]) / 1024 / 2
