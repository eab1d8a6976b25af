"""The benchmark runs, writes what it promises, and a training step keeps nothing of the solver's iterations."""

import json
from pathlib import Path

import pytest
import torch

from dio_lightning.fields import warp

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_a_quick_benchmark_writes_its_table_and_saves_the_same_for_any_number_of_iterations(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench  # pyright: ignore[reportMissingImports]

    out = tmp_path / "build" / "bench.json"
    assert bench.main(["--quick", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [file.name for file in out.parent.iterdir()] == ["bench.json"]
    for row in rows:
        assert list(row) == ["name", "seconds", "ratio", "peak_mb"]
        assert isinstance(row["name"], str)
        assert all(x is None or (isinstance(x, float) and x > 0) for x in list(row.values())[1:])
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    for part in ("value and gradient: fused", "feature adjoint: fused", "iteration: ", "registration 4-2-1: "):
        assert any(name.startswith(part) for name in names)
    saved = [row["peak_mb"] for row in rows if row["name"].startswith("training step, saved for backward")]
    assert len(saved) == 3
    assert max(saved) <= 1.02 * min(saved)


def test_solvers_that_are_timed_reach_their_tolerance(monkeypatch, tmp_path) -> None:
    """Of a linear contraction, whose equilibrium is 2."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import equilibria  # pyright: ignore[reportMissingImports]

    start = torch.zeros(1, 2, 3, 4)
    for name, solve in equilibria.solvers(None).items():
        counted = equilibria.Counted(lambda u: u / 2 + 1)
        u = solve(counted, start)
        assert float((u - 2).abs().max()) <= (0.05 if "to 0.01" in name else 1e-5)
        assert counted.calls == 48 or "48" not in name
    with pytest.raises(SystemExit, match="holds no torchdeq"):
        equilibria.solvers(tmp_path)


def test_every_target_is_measured_quickly(monkeypatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import targets  # pyright: ignore[reportMissingImports]

    for name in targets.ITEMS:
        row = targets.measured(name, True)
        assert list(row) == ["seconds", "peak_mb"]
        assert row["seconds"] > 0 and row["peak_mb"] > 100


def test_agreement_scores_as_the_library_does(monkeypatch) -> None:
    """Dice of labels moved to the nearest voxel, mean over those of the fixed map."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import agreement  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    fixed, moving = torch.randint(0, 4, (2, 2, 1, 5, 6, 7))
    u = torch.rand(2, 3, 5, 6, 7)
    moved = warp(moving, u, mode="nearest")
    expected = []
    for f, m in zip(fixed, moved, strict=True):
        each = [2 * ((f == k) & (m == k)).sum() / ((f == k).sum() + (m == k).sum()) for k in (1, 2, 3)]
        expected.append(float(torch.stack(each).mean()))
    assert agreement.dice(fixed, moving, u) == pytest.approx(expected)
    assert agreement.dice(fixed, fixed, torch.zeros_like(u)) == [1.0, 1.0]
