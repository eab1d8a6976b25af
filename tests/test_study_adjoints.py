"""The adjoints study: what is compared is what training computes, and the reference is the exact gradient."""

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from data_modules import SyntheticPairs
from dio_lightning.features import Intensity
from dio_lightning.implicit import Anderson, GradientDescent, ImplicitAdjoint, Never, PhantomAdjoint, UnrolledAdjoint
from dio_lightning.layers import OptimizerLayer, Run
from dio_lightning.loaded import load
from dio_lightning.losses import LNCC, FeatureDistance, Objective, SplineDistance
from dio_lightning.modules import DIO
from dio_lightning.scores.records import Record, Records
from dio_lightning.studies.adjoints import Adjoints, Method
from dio_lightning.studies.equilibrium import compare, equilibrium, memory_of, reference_of
from dio_lightning.transformations import FreeForm
from dio_lightning.updates import Descent

EXACT = ImplicitAdjoint(1e-3, 60, restart=60)
COLUMNS = ("cosine", "norm_ratio", "cosine_jfb", "seconds", "saved_mb", "tensors_mb", "gmres_steps", "gmres_residual")
SOLVE = ("reference", "reference_change", "residual", "solve_steps", "spectral_radius")
DATA = {
    "class_path": "data_modules.SyntheticPairs",
    "init_args": {"size": [20, 16], "num_labels": 3, "test_pairs": 2, "batch_size": 1},
}
OBJECTIVE = {
    "class_path": "dio_lightning.losses.Objective",
    "init_args": {
        "image": {"class_path": "dio_lightning.losses.LNCC", "init_args": {"window": 5}},
        "regularity": "dio_lightning.losses.Diffusion",
        "regularity_weight": 0.25,
    },
}
NETWORK = {
    "class_path": "torch.nn.Conv2d",
    "init_args": {"in_channels": 4, "out_channels": 2, "kernel_size": 3, "padding": 1},
}
METHODS = {
    "deqreg": {
        "class_path": "dio_lightning.modules.DEQReg",
        "init_args": {
            "update": {"class_path": "dio_lightning.updates.LearnedStep", "init_args": {"network": NETWORK}},
            "max_steps": 6,
            "objective": OBJECTIVE,
        },
    },
    "dio": {
        "class_path": "dio_lightning.modules.DIO",
        "init_args": {
            "features": {
                "class_path": "dio_lightning.features.UNet",
                "init_args": {"spatial_dims": 2, "channels": 4, "levels": [2, 1], "widths": [4, 8]},
            },
            "layer": {
                "class_path": "dio_lightning.layers.OptimizerLayer",
                "init_args": {"iterations": [4, 5], "stop": "dio_lightning.implicit.Never"},
            },
            "objective": OBJECTIVE,
        },
    },
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A DEQReg whose step is a contraction, and a DIO: weights and their configs."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for name, method in METHODS.items():
        config = {"model": method, "data": DATA, "trainer": {"accelerator": "cpu"}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        module = load(str(folder / f"{name}.yaml")).module
        if name == "deqreg":
            contract(module.layer.update)
        save_file(
            {key: value.contiguous() for key, value in module.state_dict().items()}, folder / f"{name}.safetensors"
        )
        found[name] = folder / f"{name}.safetensors"
    return found


def contract(update) -> None:
    """g(u, warped, fixed) = a convolution of the images, and of u one that pulls it back by halves."""
    weight = update.network.weight.data
    nn.init.normal_(weight, std=0.2)
    weight[:, :2] *= update.scale * 0.2
    for i in range(2):
        weight[i, i, 1, 1] -= 0.5 * update.scale


def first(path):
    loaded = load(str(path))
    ((_, pair),) = loaded.batches(1)
    return loaded.module, pair


def test_dio_is_differentiated_as_its_training_does_at_the_finest_level(weights) -> None:
    module, pair = first(weights["dio"])
    module.layer.clamp_quantile = 1.0
    for adjoint in (PhantomAdjoint(1), PhantomAdjoint(2, 0.3), UnrolledAdjoint()):
        module.layer.adjoint = adjoint
        found, _ = equilibrium(module, pair, 1).gradient(None if isinstance(adjoint, UnrolledAdjoint) else adjoint)
        module.zero_grad()
        solution = module(pair["fixed"], pair["moving"])[-1]
        module.objective(pair, solution.value)["loss"].backward()
        expected = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.features.parameters()]
        )
        assert expected.norm() > 0
        assert compare(found, expected) == pytest.approx((1.0, 1.0), abs=1e-5)


def test_deqreg_is_differentiated_as_its_training_does_with_one_state(weights) -> None:
    module, pair = first(weights["deqreg"])
    module.layer.solver, module.states, module.steps = Anderson(), 1, 9
    problem = equilibrium(module, pair, max_steps=9)
    assert int(problem.solution.steps.max()) == 9
    for adjoint in (PhantomAdjoint(3, 0.5), ImplicitAdjoint(1e-3, 50)):
        module.layer.adjoint = adjoint
        module.zero_grad()
        module.training_step(pair, 0).backward()
        expected = torch.cat([p.grad.flatten() for p in module.parameters()])
        torch.testing.assert_close(problem.gradient(adjoint)[0], expected, rtol=1e-3, atol=1e-5)


def test_at_rest_the_implicit_gradient_is_that_of_many_unrolled_steps(weights) -> None:
    module, pair = first(weights["deqreg"])
    problem = equilibrium(module, pair, 200)
    assert float(problem.solution.residual.max()) <= 1e-5 and bool(problem.solution.converged.all())
    reference, about = reference_of(problem, EXACT, 20)
    assert about["reference"] == 0 and about["spectral_radius"] < 1
    unrolled, _ = problem.gradient(PhantomAdjoint(60, checkpointed=True))
    assert compare(unrolled, reference) == pytest.approx((1.0, 1.0), abs=2e-3)
    assert compare(problem.gradient(PhantomAdjoint(1))[0], reference)[0] < 0.999
    again, about = reference_of(problem, ImplicitAdjoint(1e-9, 1, restart=1), 60)
    assert about["reference"] == 60 and torch.equal(again, unrolled)
    assert 0 < about["reference_change"] < 0.01


def test_dio_comes_to_rest_where_its_energy_is_smooth(weights) -> None:
    """There unrolled steps come closer to the implicit gradient; interpolated linearly, minima sit in kinks."""
    module, pair = first(weights["dio"])
    layer = module.layer
    layer.transformation, layer.field_sigma, layer.solver = FreeForm(), 0.0, GradientDescent(0.09)
    residuals = []
    for distance in (FeatureDistance(), SplineDistance()):
        layer.update = Descent(0.0, 1.0, distance=distance)
        problem = equilibrium(module, pair, 1, rest=400)
        residuals.append(float(problem.solution.residual.max()))
    assert residuals[1] <= 1e-5 < 1e-4 < residuals[0]
    reference, about = reference_of(problem, EXACT, 20)
    assert about["reference"] == 0 and about["spectral_radius"] > 0
    assert torch.equal(problem.fresh().solution.value, problem.solution.value)
    few, more = (compare(problem.fresh().gradient(PhantomAdjoint(steps))[0], reference) for steps in (15, 60))
    assert few[0] + 0.03 < more[0] and few[1] + 0.1 < more[1]
    assert more == pytest.approx((1.0, 1.0), abs=0.12), "the slowest errors shrink by a hundredth a step"


def test_the_finest_level_starts_where_all_coarser_ones_have_ended() -> None:
    """Of three levels, so that a displacement is carried twice."""
    module = DIO(Intensity((4, 2, 1)), OptimizerLayer([3, 4, 5], stop=Never()), Objective(LNCC(5)))
    data = SyntheticPairs(size=(24, 20), test_pairs=1)
    data.setup("test")
    pair = next(iter(data.test_dataloader()))
    records = []
    module.register(pair, Run(observe=records.append))
    (start,) = (record.state for record in records if (record.level, record.step) == (2, 0))
    assert start.abs().max() > 0.1
    assert torch.equal(module.problem(pair)[1], start)


def test_gradients_are_compared_by_angle_and_length() -> None:
    a, b = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.0, 2.0, 0.0])
    assert compare(a, 2 * a) == pytest.approx((1.0, 0.5))
    assert compare(a, -a) == pytest.approx((-1.0, 1.0))
    assert compare(a, b) == pytest.approx((0.0, 2.5))
    assert math.isnan(compare(a, 0 * a)[0])


def test_the_study_runs_from_end_to_end(weights, command, tmp_path, capsys) -> None:
    own = "--limit 1 --phantom 1 3 --solve-steps 40 --gmres-steps 30 --gmres-rtol 1e-3 --unrolled 10"
    command("study", "adjoints", weights["deqreg"], weights["dio"], "--out", "found", *own.split())
    with open(tmp_path / "found/adjoints.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {"model", "pair", "adjoint", "steps", "damping", *COLUMNS, *SOLVE}
    assert rows[0].keys() == names and {"cosine", "norm_ratio", "seconds", "saved_mb", "gmres_residual"} <= names
    assert len(rows) == 2 * (2 * 2 + 3)
    assert {row["adjoint"] for row in rows} == {
        "phantom",
        "unrolled from the solution",
        "implicit, GMRES",
        "whole solve unrolled",
    }
    for row in rows:
        assert (row["gmres_steps"] != "0") == row["adjoint"].startswith("implicit")
        if row["adjoint"] == "phantom" and (row["steps"], float(row["damping"])) == ("1", 0.0):
            assert float(row["cosine_jfb"]) == pytest.approx(1.0, abs=1e-5)
        if row["adjoint"].startswith("implicit") and row["reference"] == "implicit":
            assert float(row["cosine"]) > 0.9999 and float(row["gmres_residual"]) <= 1e-3
    assert all((tmp_path / "found" / f"adjoints.{end}").stat().st_size > 1000 for end in ("png", "svg", "md"))
    assert "spectral radius" in capsys.readouterr().out


def test_a_gradient_that_is_not_finite_is_told_and_left_out_of_the_mean() -> None:
    about = {"reference": 0, "reference_change": math.nan, "residual": 1e-5, "solve_steps": 9, "spectral_radius": 1.2}
    costs = {"seconds": 0.1, "saved_mb": 1.0, "tensors_mb": 2.0, "gmres_steps": 0, "gmres_residual": math.nan}

    def row(pair: str, cosine: float) -> list[Record]:
        values = {"cosine": cosine, "norm_ratio": 2.0, "cosine_jfb": 1.0, **costs, **about}
        return [Record("m", "w", Method("phantom", 1), (pair, ""), name, value) for name, value in values.items()]

    study = Adjoints(weights=[], out=Path())
    text = study.markdown(Records([*row("a", 0.5), *row("b", 0.7), *row("c", math.nan)]))
    assert "| phantom, T = 1 (JFB) | 0.6000 (0.1000) not finite for 1 | 2.0000 (0.0000) |" in text
    assert "implicit for 3 of 3" in text
    assert "| not finite for 1 |" in study.markdown(Records(row("a", math.nan)))
    study.figure(Records(row("a", math.inf)))


def test_more_phantom_steps_save_more_and_the_implicit_one_saves_one(weights) -> None:
    module, pair = first(weights["deqreg"])
    problem = equilibrium(module, pair, 20)
    one, five, checkpointed, implicit = (
        memory_of(problem, adjoint)[0]
        for adjoint in (
            PhantomAdjoint(1),
            PhantomAdjoint(5),
            PhantomAdjoint(5, checkpointed=True),
            ImplicitAdjoint(1e-2, 5),
        )
    )
    assert five > 2 * one and checkpointed < 0.6 * five and implicit < 1.2 * one


def test_what_cannot_be_studied_is_refused(weights, tmp_path) -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        Adjoints(weights=[str(weights["dio"])], out=tmp_path, limit=0)
    with pytest.raises(ValueError, match="below 1"):
        Adjoints(weights=[], out=tmp_path, phantom=(0,))
    with pytest.raises(ValueError, match="gmres_rtol"):
        Adjoints(weights=[], out=tmp_path, gmres_rtol=0.0)
