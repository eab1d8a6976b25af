"""What the library does on a GPU: whether it imports, agrees with the CPU, trains, in what memory and how fast.

    python benchmarks/gpu.py --out build/gpu.json --wheels wheels --limit-s 540

Items run in order of importance and are written one by one: a run that is cut off goes on where it was when it is
started again, and drops items of other sources or of another device. Without CUDA all is small and on the CPU.
docs/performance/README.md says how to gather the wheels of a machine that has no network.
"""

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from time import monotonic

from gpu_record import ROOT, Item, Progress, Record

SECTIONS = ("versions", "tests", "kernels", "methods", "memory", "speed", "profile")
SITE = ROOT / "build" / "gpu-site"


def arguments(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"), help="default: %(default)s")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="default: all")
    parser.add_argument("--items", nargs="+", default=["*"], help="patterns, such as 'methods/lab/*' (default: all)")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start no item after so many seconds")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this machine lacks")
    parser.add_argument("--small", action="store_true", help="small sizes; always so without CUDA")
    parser.add_argument("--retry", action="store_true", help="run items again that failed")
    return parser.parse_args(args)


def install(wheels: Path, site: Path) -> None:
    """Unpack the wheels, once, and let this process and its children find them.

    Raises:
        FileNotFoundError: if there are none.
    """
    names = sorted(wheels.glob("*.whl"))
    if not names:
        raise FileNotFoundError(f"{wheels} holds no wheels (*.whl)")
    listing, seen = "\n".join(path.name for path in names), site / "wheels.txt"
    if not seen.is_file() or seen.read_text() != listing:
        options = ["--no-index", "--no-deps", "--no-compile", "--upgrade", "--quiet", "--target", str(site)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, names)], check=True)
        seen.write_text(listing)
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])


def run(record: Record, items: Iterator[tuple[str, Item]], wanted: Callable[[str], bool], end: float) -> bool:
    """Runs what is wanted and not done; False if the time was over before."""
    for name, item in items:
        if not wanted(name):
            continue
        if record.finished(name):
            print(f"{name}: done before", flush=True)
            continue
        if monotonic() > end:
            print(f"{name}: no time left, start again to go on", flush=True)
            return False
        start = monotonic()
        try:
            found = item(Progress(record, name, end))
        except Exception as error:  # an item that fails must not keep the others from running
            last = f"{type(error).__name__}: {error}"
            found = {"ok": False, "error": last[:2000], "traceback": traceback.format_exc()[-4000:]}
        record.put(name, {"finished": True, **found, "seconds_in_all": round(monotonic() - start, 2)})
        if not record.items[name]["finished"]:
            print(f"{name}: cut off, start again to go on", flush=True)
            return False
        shown = {key: value for key, value in found.items() if key not in ("ok", "outcomes", "traceback", "kernels")}
        print(f"{name}: {'ok' if found['ok'] else 'FAILED'} {shown}", flush=True)
    return True


def main(args: Sequence[str] | None = None) -> int:
    """0 if all that ran is well, 1 if something failed, 2 if the time was over before the end."""
    chosen = arguments(args)
    start = monotonic()
    if chosen.wheels is not None:
        install(chosen.wheels, SITE)
    sys.path.insert(0, str(ROOT))
    from gpu_checks import SECTIONS as FOUND
    from gpu_checks import Machine

    machine = Machine.here(chosen.small)
    record = Record.open(chosen.out, machine.name, chosen.retry)
    print(f"{machine.name}, sources {record.sources}, {len(record.items)} items done before", flush=True)
    for section in (s for s in SECTIONS if s in chosen.sections):
        items = FOUND[section](machine)
        if not run(record, items, lambda name: any(fnmatch(name, p) for p in chosen.items), start + chosen.limit_s):
            return 2
    bad = [name for name, found in record.items.items() if not found["ok"]]
    print(f"{len(record.items)} items in {chosen.out}, {len(bad)} failed: {', '.join(bad) or 'none'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
