"""What the strong-scaling table says of times."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import scaling


def test_what_is_lost_is_told_apart(monkeypatch, tmp_path):
    """Ten seconds on one process; two that share nothing take 6, so that the machine takes 1; together 7.5."""
    times = {(1, 1): (10.0, 4.0), (2, 1): (7.5, 2.0), (1, 2): (6.0, 2.0)}

    def measured(name, processes, copies, options, folder):
        train, test = times[processes, copies]
        return {"train": train, "test": test, "average": 0.003, "weights": 1000}

    monkeypatch.setattr(scaling, "measured", measured)
    row = scaling.row("DIO", Namespace(processes=2, pairs=8), tmp_path)
    assert row["efficiency"] == pytest.approx(10 / 2 / 7.5) and row["test_efficiency"] == 1.0
    assert row["lost_to_machine"] == pytest.approx(1 / 6) and row["lost_to_waiting"] == pytest.approx(0.2)
    kept = (1 - row["lost_to_machine"]) * (1 - row["lost_to_waiting"])
    assert row["efficiency"] == pytest.approx(kept), "nothing is lost elsewhere"
    assert row["average_share"] == pytest.approx(4 * 0.003 / 7.5)
    assert "| DIO | 1,000 | 10.0 | 7.5 | 67% | 17% | 20% | 3.0 | 4.0 | 2.0 | 100% |" in scaling.markdown([row], 2)
