"""`make bench-report`: seconds and size of the page of a test, for pairs of 160×192×224 with 35 labels."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dio_lightning.callbacks.gathering import Key, Scored
from dio_lightning.callbacks.report import About
from dio_lightning.callbacks.report_page import page_of_test
from dio_lightning.fields import gaussian_smooth
from dio_lightning.pictures import Upright
from dio_lightning.reports.curves import Curves
from dio_lightning.reports.page import write_page
from dio_lightning.reports.pairs import pair_view
from dio_lightning.scores.rows import Row

SIZE, LABELS, SHOWN = (160, 192, 224), 35, 3


def example() -> tuple[dict, torch.Tensor]:
    """A pair of noise that is smooth enough to compress as brains do, in labels of a few centimetres."""
    torch.manual_seed(0)
    axes = [torch.linspace(-1, 1, n).view(-1, *[1] * (2 - a)) for a, n in enumerate(SIZE)]
    inside = (sum(x**2 for x in axes) < 0.7).float()
    cells = [(LABELS ** (1 / 3) * (x + 1)).floor() for x in axes]
    label = ((1 + cells[0] + 4 * cells[1] + 16 * cells[2]) % LABELS + 1) * inside
    image = (0.3 + 0.02 * label + gaussian_smooth(torch.randn(1, 1, *SIZE), 2.0)[0, 0]).clamp(0, 1) * inside
    u = torch.cat([gaussian_smooth(torch.randn(1, 1, *SIZE), 6.0) for _ in SIZE], 1)
    both = {"fixed": image[None, None], "moving": image.roll(3, 1)[None, None]}
    labels = {"fixed_label": label.short()[None, None], "moving_label": label.roll(3, 1).short()[None, None]}
    return {**both, **labels, "affine": torch.eye(4, dtype=torch.float64)[None]}, 3 * u / u.std()


def rows(pairs: int) -> list[Scored]:
    """Scores as a test has them."""
    draw = np.random.default_rng(0)
    made = []
    for index in range(pairs):
        row: Row = {"fixed_id": "a", "moving_id": f"b{index}"}
        row |= {
            name: float(draw.uniform())
            for name in ("dice", "dice_identity", "hd95", "hd95_identity", "folds", "seconds")
        }
        labels: list[Row] = [
            {"label": k + 1, "dice": float(draw.uniform()), "dice_identity": 0.4} for k in range(LABELS)
        ]
        made.append(Scored(Key(0, index, "a", f"b{index}"), row, labels))
    return made


def main() -> None:
    """Print seconds and megabytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    options = parser.parse_args()
    batch, u = example()
    curves = Curves()
    curves.residual = {level: list(np.geomspace(1, 0.01, 50)) for level in range(3)}
    start = time.perf_counter()
    views = [pair_view(Upright.of(batch, u), f"pair {i}", curves=curves) for i in range(SHOWN)]
    page = page_of_test(rows(options.pairs), {}, About("", "method", {}), views, "volumes")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        write_page(path, page)
        size = path.stat().st_size / 1e6
    print(f"{options.pairs} pairs, {SHOWN} of them shown: {time.perf_counter() - start:.1f} s, {size:.1f} MB")


if __name__ == "__main__":
    main()
