"""The study of solvers, on an update whose fixed point and rates are known."""

import csv
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from data_modules import SyntheticPairs
from dio_lightning.implicit import Anderson, Broyden, Picard
from dio_lightning.modules import DEQReg
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.studies.loading import Loaded
from dio_lightning.studies.scoring import score
from dio_lightning.studies.solvers import measure, variants
from dio_lightning.studies.solvers_report import TOLERANCES, Run, markdown, reached, tolerances_csv
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


def states(fixed: torch.Tensor) -> list[torch.Tensor]:
    """z_0, z_1, ... of Picard's iteration of one pair, in closed form."""
    target = 3 * fixed.expand(-1, 2, -1, -1)
    powers = torch.tensor(RATES).view(1, 2, 1, 1)
    return [(1 - powers**k) * target for k in range(STEPS + 1)]


def test_picard_is_counted_as_it_is_by_hand(loaded):
    run = measure(loaded, "Picard", Picard(), STEPS, [1, 4], None)
    for ids, batch in loaded.batches():
        for i, pair in enumerate(ids):
            z = states(batch["fixed"][i : i + 1])
            expected = [((b - a).norm() / b.norm()).item() for a, b in pairwise(z)]
            assert run.residuals[pair] == pytest.approx(expected, rel=1e-3)
            firsts = {next((k for k, r in enumerate(expected, 1) if r <= t), None) for t in TOLERANCES} - {None}
            assert set(run.dice[pair]) == firsts | {1, 4, STEPS}
            one = {key: value[i : i + 1] for key, value in batch.items()}
            for k, dice in run.dice[pair].items():
                assert dice == pytest.approx(score(z[k - 1], one, loaded.scores)["dice"].item(), abs=1e-6)
            for tolerance in TOLERANCES:
                needed = run.evaluations(tolerance)[pair]
                assert needed == next((k for k, r in enumerate(expected, 1) if r <= tolerance), float("inf"))


@pytest.mark.parametrize("solver", [Anderson(3), Broyden(5)])
def test_two_rates_take_accelerated_solvers_few_evaluations(loaded, solver):
    """Each of two eigenvalues costs a Krylov method one evaluation beyond the first two."""
    plain, run = (measure(loaded, "", s, STEPS, [1], None) for s in (Picard(), solver))
    assert max(run.evaluations(1e-3).values()) <= 7 < 15 < min(plain.evaluations(1e-3).values())


def test_damping_slows_a_contraction_down(loaded):
    plain, damped = (measure(loaded, "", s, STEPS, [1], None) for s in (Picard(), Picard(0.5)))
    assert all(damped.evaluations(0.03)[pair] > k for pair, k in plain.evaluations(0.03).items())


def test_what_most_pairs_do_not_reach_has_no_median():
    pairs = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]
    residuals = [[1.0, 0.05], [1.0, 0.05], [1.0, 0.02], [1.0, 0.5]]
    run = Run(
        "S", "w", dict(zip(pairs, residuals, strict=True)), {pair: {1: 0.1, 2: 0.2 * i} for i, pair in enumerate(pairs)}
    )
    most, few = reached([run], 0.1), reached([run], 0.03)
    assert (most.evaluations, most.share, most.dice) == (2, 0.75, pytest.approx(0.2))
    assert (few.evaluations, few.share, few.dice) == (float("inf"), 0.25, pytest.approx(0.4))
    assert "| S | 2 (75%), 0.200 | > 2 (25%), 0.400 | – |" in markdown([run], 2)
    rows = list(csv.DictReader(tolerances_csv([run]).splitlines()))
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
    names = {"solvers.csv", "solvers_trace.csv", "solvers.md", "solvers.png", "solvers.svg"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    with open(tmp_path / "out/solvers_trace.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["evaluation"] for row in rows] == list("1234") * 10
    assert {row["solver"] for row in rows} == set(variants([0, 0.5]))
    assert all(row["dice"] and row["residual"] for row in rows)
    assert "Broyden 8, damping 0.5" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command("study", "solvers", Path(__file__).parent / "conf/tiny.yaml", "--out", "other")
    assert "solvers are studied on DEQReg alone" in capsys.readouterr().err
