"""The study of solvers, on an update whose fixed point and rates are known."""

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from data_modules import SyntheticPairs
from dio_lightning.implicit import Anderson, Broyden, Picard, Solver
from dio_lightning.loaded import Loaded
from dio_lightning.modules import DEQReg
from dio_lightning.scores.records import Record, Records
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.studies.solvers import TOLERANCES, Solvers, needed, reached, solvers
from dio_lightning.studies.watching import score
from dio_lightning.updates import LearnedStep

RATES, STEPS = (0.5, 0.8), 30


class Linear(nn.Module):
    """The step of f(u)_i = rate_i u_i + (1 - rate_i) u*_i, which rests at u*, 3 times the fixed image."""

    def forward(self, x):
        rates = torch.tensor(RATES).view(1, 2, 1, 1)
        return (1 - rates) * (3 * x[:, -1:] - x[:, :2])


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    data = SyntheticPairs(size=(24, 20), num_labels=3, test_pairs=3, batch_size=2)
    data.setup("test")
    module = DEQReg(LearnedStep(Linear(), scale=1.0), max_steps=4, states=1).eval()
    return Loaded("linear", Path("linear.ckpt"), module, data, ScoreOptions(min_voxels=5))


def traced(loaded: Loaded, solver: Solver, at: list[int]) -> Records:
    study = Solvers(weights=[], out=Path(), max_steps=STEPS, at=at)
    return Records(study.trace(loaded, "S", solver))


def states(fixed: torch.Tensor) -> list[torch.Tensor]:
    """z_0, z_1, ... of Picard's iteration of one pair, in closed form."""
    target = 3 * fixed.expand(-1, 2, -1, -1)
    powers = torch.tensor(RATES).view(1, 2, 1, 1)
    return [(1 - powers**k) * target for k in range(STEPS + 1)]


def test_picard_is_counted_as_it_is_by_hand(loaded):
    records = traced(loaded, Picard(), [1, 4])
    residuals, dices = (records.traces("S", quantity) for quantity in ("residual", "dice"))
    for ids, batch in loaded.batches():
        for i, pair in enumerate(ids):
            solve = ("linear.ckpt", pair)
            z = states(batch["fixed"][i : i + 1])
            expected = [((b - a).norm() / b.norm()).item() for a, b in pairwise(z)]
            assert list(residuals[solve]) == list(range(1, STEPS + 1))
            assert list(residuals[solve].values()) == pytest.approx(expected, rel=1e-3)
            firsts = {next((k for k, r in enumerate(expected, 1) if r <= t), None) for t in TOLERANCES} - {None}
            assert set(dices[solve]) == firsts | {1, 4, STEPS}
            one = {key: value[i : i + 1] for key, value in batch.items()}
            for k, dice in dices[solve].items():
                assert dice == pytest.approx(score(z[k - 1], one, loaded)["dice"].item(), abs=1e-6)
            for tolerance in TOLERANCES:
                count = needed(records, "S", tolerance)[solve]
                assert count == next((k for k, r in enumerate(expected, 1) if r <= tolerance), float("inf"))


@pytest.mark.parametrize("solver", [Anderson(3), Broyden(5)])
def test_two_rates_take_accelerated_solvers_few_evaluations(loaded, solver):
    """Each of two eigenvalues costs a Krylov method one evaluation beyond the first two."""
    plain, fast = (needed(traced(loaded, s, [1]), "S", 1e-3) for s in (Picard(), solver))
    assert max(fast.values()) <= 7 < 15 < min(plain.values())


def test_damping_slows_a_contraction_down(loaded):
    plain, damped = (needed(traced(loaded, s, [1]), "S", 0.03) for s in (Picard(), Picard(0.5)))
    assert all(damped[solve] > k for solve, k in plain.items())


def test_a_solve_that_breaks_off_counts_with_no_residual(loaded):
    """An update that turns infinite in all samples is evaluated once more, and then no more."""

    class Breaking(Linear):
        def forward(self, x):
            return super().forward(x) / (x[:, :2].abs().amax() == 0)

    module = DEQReg(LearnedStep(Breaking(), scale=1.0), max_steps=4, states=1).eval()
    residuals = traced(replace(loaded, module=module), Picard(), [1]).traces("S", "residual")
    assert len(residuals) == 3
    assert all(set(trace) == {1, 2} and trace[1] < trace[2] == float("inf") for trace in residuals.values())


def test_what_most_pairs_do_not_reach_has_no_median():
    pairs = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]
    residuals = [[1.0, 0.05], [1.0, 0.05], [1.0, 0.02], [1.0, 0.5]]
    records = Records()
    for i, (pair, trace) in enumerate(zip(pairs, residuals, strict=True)):
        for k, dice in ((1, 0.1), (2, 0.2 * i)):
            records.add(Record("S", "w", k, pair, "residual", trace[k - 1]))
            records.add(Record("S", "w", k, pair, "dice", dice))
    most, few = reached(records, "S", 0.1), reached(records, "S", 0.03)
    study = Solvers(weights=[], out=Path(), max_steps=2)
    assert (most.evaluations, most.share, most.dice) == (2, 0.75, pytest.approx(0.2))
    assert (few.evaluations, few.share, few.dice) == (float("inf"), 0.25, pytest.approx(0.4))
    assert "| S | 2 (75%), 0.200 | > 2 (25%), 0.400 | – |" in study.markdown(records)
    rows = list(csv.DictReader(study.tables(records)[0].splitlines()))
    assert [(row["evaluations"], row["reached"]) for row in rows[:3]] == [("2", "0.75"), ("", "0.25"), ("", "0.0")]


def test_the_command_writes_its_tables(command, tmp_path, capsys):
    update = {"class_path": "dio_lightning.updates.LearnedStep"}
    widths = {"encoder": [4], "decoder": [4], "final": [4]}
    inner = {
        "class_path": "dio_lightning.networks.VxmUNet",
        "init_args": {"in_channels": 4, "spatial_dims": 2, **widths},
    }
    update["init_args"] = {"network": inner}
    config = {
        "model": {"class_path": "dio_lightning.modules.DEQReg", "init_args": {"update": update}},
        "data": {"class_path": "data_modules.SyntheticPairs", "init_args": {"size": [16, 16], "test_pairs": 2}},
        "trainer": {"accelerator": "cpu"},
    }
    (tmp_path / "deq.yaml").write_text(yaml.safe_dump(config))
    command("study", "solvers", "deq.yaml", "--out", "out", "--max-steps", 4, "--damping", 0, 0.5, "--limit", 1)
    names = {"solvers.csv", "solvers_trace.csv", "solvers.md", "solvers.png", "solvers.svg", "solvers.html"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    with open(tmp_path / "out/solvers_trace.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["evaluation"] for row in rows] == list("1234") * 10
    assert {row["solver"] for row in rows} == set(solvers([0, 0.5]))
    assert all(row["dice"] and row["residual"] for row in rows)
    assert "Broyden 8, damping 0.5" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command("study", "solvers", Path(__file__).parent / "conf/tiny.yaml", "--out", "other")
    assert "solvers are studied on DEQReg alone" in capsys.readouterr().err
