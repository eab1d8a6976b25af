"""The benchmark runs, writes what it promises, and a training step keeps nothing of the solver's iterations."""

import json
from pathlib import Path

import pytest
import torch

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
