"""Whether published weights score the same by compiled operators, by plain PyTorch, and in an older checkout.

    git worktree add --detach /tmp/before 06e1d81
    OMP_NUM_THREADS=1 python benchmarks/agreement.py $DIO_DATA/brains_2mm --against /tmp/before

Mean Dice of the validation pairs of each method, labels moved to the nearest voxel; one pair of whole volumes, ten of
slices. The exit status is 1 if a score moves by 0.0005 or more. What the older checkout cannot load has no number.
What stands behind -- overrides settings, as `dio-lightning test` takes them: of a model whose rate falls,

    python benchmarks/agreement.py $DIO_DATA/brains_2mm --only 'brain*' -- --model.layer.solver.decay 0.5
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
MOST = 0.0005
LABS = {
    "brains": ("dio", "deqreg", "deqreg12", "riir", "voxelmorph"),
    "lab": ("dio", "deqreg", "deqreg12", "gradirn", "riir", "unrolling", "voxelmorph"),
    "updates": ("deqreg", "riir", "voxelmorph"),
}
WEIGHTS = (
    "experiments/dio/weights/brains.safetensors",
    "experiments/dio/weights/contrast.safetensors",
    "brain-t1",
    "brain-any",
    *(f"experiments/{lab}/weights/{name}_0.safetensors" for lab, names in LABS.items() for name in names),
)


def dice(fixed: Tensor, moving: Tensor, u: Tensor) -> list[float]:
    """Of each pair of label maps (b, 1, *s) the mean over the labels of the fixed one; u (b, d, *s) in voxels."""
    size = fixed.shape[2:]
    axes = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    scores = []
    for f, m, v in zip(fixed[:, 0], moving[:, 0], u, strict=True):
        places = [
            ((x + y + 0.5).floor().long()).clamp(0, n - 1) for x, y, n in zip(axes, v.double(), size, strict=True)
        ]
        moved = m[tuple(places)]
        labels = [k for k in f.unique().tolist() if k != 0]
        each = [2 * ((f == k) & (moved == k)).sum() / ((f == k).sum() + (moved == k).sum()) for k in labels]
        scores.append(float(torch.stack(each).mean()))
    return scores


def scored(root: str, pairs: int, pattern: str, settings: Sequence[str] = ()) -> Iterator[tuple[str, float | None]]:
    """Every method of a name and its score; `pairs` volumes at most."""
    from dio_lightning import build  # that of the checkout on the path

    for name in fnmatch.filter(WEIGHTS, pattern):
        weights = str(REPOSITORY / name) if "/" in name else name
        try:
            with tempfile.TemporaryDirectory() as folder:
                experiment = build(["validate", "--ckpt_path", weights, "--data.root", root, *settings], Path(folder))
        except (ValueError, FileNotFoundError, SystemExit):
            yield name, None
            continue
        experiment.data.setup("validate")
        module, loader = experiment.module.eval(), experiment.data.val_dataloader()
        yield name, _score(module, loader, pairs)


def _score(module: Any, loader: Any, pairs: int) -> float:  # noqa: ANN401
    scores: list[float] = []
    with torch.no_grad():
        for pair in loader:
            if pair["fixed"].ndim == 5 and len(scores) >= pairs:
                break
            scores += dice(pair["fixed_label"], pair["moving_label"], module.register(pair))
    return sum(scores) / len(scores)


def _run(checkout: Path, operators: str | None, options: argparse.Namespace) -> dict[str, float | None]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    if operators:
        environment["DIO_OPS"] = operators
    command = [sys.executable, __file__, options.root, "--pairs", str(options.pairs), "--only", options.only, "--alone"]
    command += ["--", *options.settings]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Prints a table in Markdown; 1 if a score moves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="brains_2mm of the laboratory")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--pairs", type=int, default=1, help="volumes of each method, default: %(default)s")
    parser.add_argument("--only", default="*", help="of these weights, such as '*riir*' (default: all)")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end], argparse.Namespace(settings=given[end + 1 :]))
    if options.alone:
        print("\n" + json.dumps(dict(scored(options.root, options.pairs, options.only, options.settings))))
        return 0
    columns = {way: _run(REPOSITORY, way, options) for way in ("numba", "reference")}
    if all(score is None for score in columns["numba"].values()):
        given = " ".join(options.settings)
        parser.error(
            f"no weights are scored with --only {options.only!r} and settings {given!r}, expected some of WEIGHTS"
        )
    if options.against:
        columns["before"] = _run(options.against, None, options)
    print("| weights | " + " | ".join(columns) + " | largest difference |\n|---|" + "---|" * (len(columns) + 1))
    worst = 0.0
    for name in columns["numba"]:
        row = [column[name] for column in columns.values()]
        numbers = [x for x in row if x is not None]
        moved = max(numbers) - min(numbers)
        worst = max(worst, moved)
        cells = " | ".join("–" if x is None else f"{x:.5f}" for x in row)
        print(f"| {name.removeprefix('experiments/').removesuffix('.safetensors')} | {cells} | {moved:.5f} |")
    return 1 if worst >= MOST else 0


if __name__ == "__main__":
    sys.exit(main())
