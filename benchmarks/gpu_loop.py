"""The loop of a solve on a GPU: with and without recorded steps, and what the host pays.

python benchmarks/gpu_loop.py --out loop.json
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from gpu_checks import Machine
from gpu_methods import build, fewer, in_precision, pair

from dio_lightning.implicit import Never
from dio_lightning.modules import DIO, RegistrationModule
from dio_lightning.modules.iterative import IterativeModule

CASES = {
    "dio": ("dio", (160, 192, 224)),
    "dio, 80x96x112": ("dio", (80, 96, 112)),
    "deqreg, 128 cubed": ("deqreg", (128, 128, 128)),
    "deqreg, 40x48x56": ("deqreg", (40, 48, 56)),
}
TINY = (16, 16, 16)
"""Where kernels take no time, so that what is measured is the host."""


def method(name: str, machine: Machine) -> IterativeModule:
    """A published method with its weights on the device, in bfloat16 on a GPU."""
    module = in_precision(build("brains", name), "float32" if machine.small else "bfloat16").to(machine.device).eval()
    assert isinstance(module, IterativeModule)
    if machine.small:
        fewer(module)
    return module


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Of each call, the first apart."""
    found = list[float]()
    for _ in range(repeats + 1):
        _wait(device)
        start = perf_counter()
        call()
        _wait(device)
        found.append(perf_counter() - start)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compared(name: str, machine: Machine, repeats: int = 3) -> dict[str, object]:
    """Seconds of a pair with recorded steps and without, whether both agree, and without the network's features."""
    which, size = CASES[name]
    module, images = method(which, machine), pair(TINY if machine.small else size, machine.device)
    row, fields = dict[str, object](), dict[str, torch.Tensor]()
    for label, graphs in (("eager", False), ("graphs", True)):
        module.layer.graphs = graphs
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            timed = seconds(lambda: fields.__setitem__(label, _field(module, images)), machine.device, repeats)
            if isinstance(module, DIO):
                features = seconds(lambda: module.pyramids(images, images), machine.device, repeats)
                row["features"] = min(features[1:])
        row[label], row[f"{label}, first"] = min(timed[1:]), timed[0]
        if machine.device.type == "cuda":
            row[f"{label}, peak_mib"] = round(torch.cuda.max_memory_reserved() / 2**20)
    row["equal"] = bool(torch.equal(fields["eager"], fields["graphs"]))
    row["most_apart"] = float((fields["eager"] - fields["graphs"]).abs().max())
    return row


def _field(module: RegistrationModule, images: object) -> torch.Tensor:
    return module.test_step(images, 0)["displacement"]  # pyright: ignore[reportArgumentType]


def host(name: str, machine: Machine) -> dict[str, float]:
    """Microseconds an iteration on a tiny grid: more of them against fewer."""
    which, _ = CASES[name]
    module, images = method(which, machine), pair(TINY, machine.device)
    row = dict[str, float]()
    module.layer.stop = Never()
    for label, graphs in (("eager", False), ("graphs", True)):
        module.layer.graphs = graphs
        found = list[float]()
        for steps in (10, 110):
            module.layer.iterations = (0,) * (len(module.layer.iterations) - 1) + (steps,)
            with torch.inference_mode():
                found.append(min(seconds(lambda: _field(module, images), machine.device, 3)[1:]))
        row[label] = (found[1] - found[0]) / 100 * 1e6
    return row


def main() -> int:
    """Writes what was measured, one case after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/loop.json"), help="default: %(default)s")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start nothing after so many seconds")
    chosen, start = parser.parse_args(), perf_counter()
    out = chosen.out
    out.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("dio_lightning.implicit.graphs").setLevel(logging.DEBUG)
    logging.getLogger("dio_lightning.implicit.graphs").addHandler(logging.StreamHandler(sys.stdout))
    machine, found = Machine.here(False), dict[str, object]()
    found["machine"], found["torch"] = machine.name, torch.__version__
    items = [(name, compared, name) for name in ("dio", "deqreg, 128 cubed")]
    items += [("host, dio", host, "dio")]
    items += [(name, compared, name) for name in ("dio, 80x96x112", "deqreg, 40x48x56")]
    items += [("host, deqreg", host, "deqreg, 40x48x56")]
    for title, measure, name in items:
        if perf_counter() - start > chosen.limit_s:
            print(f"{title}: no time left", flush=True)
            continue
        found[title] = measure(name, machine)
        print(f"{title}, after {perf_counter() - start:.0f} s:", found[title], sep="\n", flush=True)
        out.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
