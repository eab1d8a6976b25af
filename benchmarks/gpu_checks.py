"""The sections of gpu.py, in order of importance: each yields named items."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from time import monotonic

import torch
from gpu_record import ROOT, Found, Item, Progress

PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "triton",
    "scipy",
    "lightning",
    "monai",
    "torchmetrics",
    "jaxtyping",
    "beartype",
    "nibabel",
)
PARTS = ("implicit", "ops", "fields", "losses", "features", "updates", "layers", "metrics", "modules", "callbacks")
OUTCOME = re.compile(r"^(?:\[gw\d+\] )?(?:(\S+::\S+) )?(PASSED|FAILED|ERROR|SKIPPED)(?: (\S+::\S+))?")
"""A test's line, and the same from one of several processes (pytest-xdist)."""
WORKERS = 8
"""Processes of the tests on a GPU, which mostly compile kernels."""
SECONDS_BETWEEN_SAVES = 5.0


@dataclass(frozen=True)
class Machine:
    """What items run on."""

    device: torch.device
    name: str
    small: bool

    @classmethod
    def here(cls, small: bool) -> "Machine":
        """The GPU if there is one, else the CPU and small sizes."""
        if torch.cuda.is_available():
            return cls(torch.device("cuda", 0), torch.cuda.get_device_name(0) + (", small" if small else ""), small)
        return cls(torch.device("cpu"), "CPU, small", True)


def versions(machine: Machine) -> Iterator[tuple[str, Item]]:
    """Whether everything imports, and what is installed."""

    def report(progress: Progress) -> Found:
        found: Found = {"ok": True, "python": platform.python_version(), "missing": []}
        for name in PACKAGES:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found["missing"].append(name)
        if machine.device.type == "cuda":
            properties = torch.cuda.get_device_properties(machine.device)
            found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
            found |= {"gib": round(properties.total_memory / 2**30, 1), "processors": properties.multi_processor_count}
        start = monotonic()
        for part in PARTS:
            import_module(f"dio_lightning.{part}")
        return {**found, "import_seconds": round(monotonic() - start, 1)}

    yield "versions", report


def tests(machine: Machine) -> Iterator[tuple[str, Item]]:
    """The tests marked gpu; on the CPU a few of those that stand in for them."""
    if machine.device.type == "cuda":
        yield "tests", partial(_pytest, ["-m", "gpu"])
    else:
        yield "tests", partial(_pytest, ["-m", "not gpu", "-k", "fields.compose or networks.CNN"])


def _pytest(options: list[str], progress: Progress) -> Found:
    """Runs tests/test_gpu*.py in another process and keeps the outcome of each test as it comes."""
    outcomes: dict[str, str] = dict(progress.before.get("outcomes", {}))
    passed = [name for name, outcome in outcomes.items() if outcome == "PASSED"]
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_gpu*.py") if "script" not in path.name)
    # the project's own options ask for plug-ins that a machine may lack
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-o",
        "addopts=",
        "-o",
        "console_output_style=classic",
    ]
    command += ["-p", "no:cacheprovider", *options, *files]
    if "not gpu" not in options and find_spec("xdist") is not None:
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    command += [part for name in passed for part in ("--deselect", name)]
    saved, tail = monotonic(), ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail = (tail + line)[-6000:]
            if match := OUTCOME.match(line):
                outcomes[match[1] or match[3]] = match[2]
            if progress.left() < 0:
                process.terminate()
            if monotonic() - saved > SECONDS_BETWEEN_SAVES:
                saved = monotonic()
                progress.save({"outcomes": outcomes})
        code = process.wait()
    bad = sorted(name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR"))
    count = sum(outcome == "PASSED" for outcome in outcomes.values())
    if progress.left() < 0 and code < 0:
        return {"ok": False, "finished": False, "outcomes": outcomes}
    # 5: nothing was left to run
    ok = code in (0, 5) and not bad and count > 0
    return {
        "ok": ok,
        "passed": count,
        "failed": bad,
        "outcomes": outcomes,
        **({} if ok else {"tail": tail.replace(sys.executable, "python")}),
    }


def kernels(machine: Machine) -> Iterator[tuple[str, Item]]:
    """Every operator of the inner loop: beside double precision, and its share of a copy's bandwidth."""
    from gpu_kernels import KERNELS, kernel

    for name in KERNELS:
        yield f"kernels/{name}", partial(_call, partial(kernel, machine, name))


def methods(machine: Machine) -> Iterator[tuple[str, Item]]:
    """One training step of every method in 2-D and 3-D, beside the CPU's."""
    from gpu_methods import NAMES, training

    for folder, names in NAMES.items():
        for name in names:
            yield f"methods/{folder}/{name}", partial(_call, partial(training, machine, folder, name))


def memory(machine: Machine) -> Iterator[tuple[str, Item]]:
    """Peak memory of a DEQReg training step over the number of solver steps."""
    from gpu_methods import flat

    yield "memory/deqreg", partial(_call, partial(flat, machine))


def speed(machine: Machine) -> Iterator[tuple[str, Item]]:
    """Seconds of a pair at full resolution and at half of it, and of a training step."""
    from gpu_methods import PAIRS, STEPS, pair_seconds, step_seconds

    for name in PAIRS:
        yield f"speed/{name}", partial(_call, partial(pair_seconds, machine, name))
    for name in STEPS:
        yield f"speed/training step of {name}", partial(_call, partial(step_seconds, machine, name))


def profiles(machine: Machine) -> Iterator[tuple[str, Item]]:
    """Where a pair's time goes, and how feature matching is best dealt out."""
    from gpu_profile import PROFILED, dealt, profiled

    for name in PROFILED:
        yield f"profile/{name}", partial(_call, partial(profiled, machine, name))
    for name in ("match", "match_blocks", "match_adjoint"):
        yield f"profile/tiles of {name}", partial(_call, partial(dealt, machine, name))


def _call(function: Callable[[], Found], progress: Progress) -> Found:
    return function()


SECTIONS: dict[str, Callable[[Machine], Iterator[tuple[str, Item]]]] = {
    "versions": versions,
    "tests": tests,
    "kernels": kernels,
    "methods": methods,
    "memory": memory,
    "speed": speed,
    "profile": profiles,
}
