"""The memory study: counts that are exact, and the promise that a DEQReg's memory does not depend on its steps."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from dio_lightning.footprint import MIB, Cost, LiveTensors, Point, SavedTensors, dimension, here, images
from dio_lightning.implicit import PhantomAdjoint
from dio_lightning.losses import LNCC, Diffusion, Objective
from dio_lightning.modules import RIIR, DEQReg, RegistrationModule, Unrolling, VoxelMorph
from dio_lightning.networks import VxmUNet
from dio_lightning.scores.records import NO_PAIR, Record, Records
from dio_lightning.studies.memory import Memory, expected, sweep
from dio_lightning.updates import LearnedStep

pytestmark = pytest.mark.filterwarnings("ignore:.*self.log.*")
NAN = float("nan")
WIDTHS = {"encoder": [8, 8], "decoder": [8, 8], "final": [8]}
POINT = Point("deqreg.yaml", [], [48, 40], 1, None)


def objective() -> Objective:
    return Objective(LNCC(5), regularity=Diffusion(), regularity_weight=0.25)


def network(channels: int) -> VxmUNet:
    return VxmUNet(channels, 2, **WIDTHS)


def peaks(module: RegistrationModule, steps: int | None = None) -> tuple[int, int]:
    """Bytes saved and alive at once in a training step."""
    if steps is not None:
        module.steps = steps
    pair = images(1, [48, 40], torch.device("cpu"))
    known = [*module.parameters(), *pair.values()]
    with SavedTensors(known) as saved, LiveTensors(known) as live:
        module.training_step(pair, 0).backward()
    return saved.peak, live.peak


def test_memory_of_a_deqreg_does_not_depend_on_its_steps_and_is_near_that_of_its_network() -> None:
    once = peaks(VoxelMorph(network(2), objective()))
    for adjoint in (PhantomAdjoint(1), PhantomAdjoint(3, checkpointed=True)):
        module = DEQReg(LearnedStep(network(4)), objective(), adjoint=adjoint, max_steps=12)
        few, many = peaks(module, 12), peaks(module, 48)
        assert many == pytest.approx(few, rel=0.001)
        assert many[1] < 1.3 * once[1]
    three = peaks(DEQReg(LearnedStep(network(4)), objective(), adjoint=PhantomAdjoint(3), max_steps=3))
    assert three[0] > 2.5 * once[0]


@pytest.mark.parametrize("name", ["RIIR", "Unrolling"])
def test_memory_of_unrolled_methods_grows_with_their_steps(name) -> None:
    module = (
        RIIR(network(6), objective=objective())
        if name == "RIIR"
        else Unrolling(objective(), spatial_dims=2, levels=[2, 1], repeats=[1, 1], width=4, depth=2)
    )
    # of two steps the peak is somewhere else, in a loss
    saved, live = zip(*(peaks(module, steps) for steps in (4, 8, 16)), strict=True)
    for found in (saved, live):
        assert found[2] - found[1] == pytest.approx(2 * (found[1] - found[0]), rel=0.1)
    assert saved[2] > 2 * saved[0]


def test_what_would_exceed_the_limit_is_not_run() -> None:
    run: list[int] = []

    def measure(point: Point) -> Cost:
        run.append(point.steps or 0)
        return Cost(0.1, 10 + 5 * (point.steps or 0), 1, 1)

    costs = [cost for _, cost in sweep(POINT, [1, 2, 4, 8, 16], 51.0, measure)]
    assert run == [1, 2, 4, 8]
    assert [cost is None for cost in costs] == [False, False, False, False, True]
    assert expected([(1, 15.0), (2, 20.0)], 4) == 30.0
    assert expected([(3, 12.0)], 6) == 24.0
    assert [k for k, _ in sweep(POINT, None, 0.0, measure)] == [1]


def test_the_table_shows_multiples_and_what_was_not_run() -> None:
    def row(method: str, steps: int, mib: float) -> list[Record]:
        return [Record(method, "w", steps, NO_PAIR, q, mib) for q in ("seconds", "peak_mb", "tensors_mb", "saved_mb")]

    records = Records(
        [*row("VoxelMorph", 1, 100), *row("DEQReg, T = 1", 96, 120.5), *row("RIIR", 12, 1200), *row("RIIR", 96, NAN)]
    )
    study = Memory(weights=[], out=Path())
    assert "| 96 |  | 120.5 (1.21) | not run |" in study.markdown(records)
    rows = list(csv.DictReader(study.tables(records)[0].splitlines()))
    assert [row["status"] for row in rows] == ["measured"] * 3 + ["not run"]
    assert rows[-1]["peak_mb"] == ""
    assert [len(line.get_xdata()) for line in study.figure(records).axes[0].lines if line.get_label()[0] != "_"]


def config(folder, name: str, model: dict):
    parts = {"image": {"class_path": "dio_lightning.losses.LNCC", "init_args": {"window": 5}}}
    model["init_args"]["objective"] = {"class_path": "dio_lightning.losses.Objective", "init_args": parts}
    model["class_path"] = f"dio_lightning.modules.{model['class_path']}"
    data = {"class_path": "data_modules.SyntheticPairs", "init_args": {"size": [16, 16], "test_pairs": 1}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"accelerator": "cpu"}}))
    return path


@pytest.fixture
def configs(tmp_path):
    """A VoxelMorph and a DEQReg."""

    def net(channels: int) -> dict:
        arguments = {"in_channels": channels, "spatial_dims": 2, **WIDTHS}
        return {"class_path": "dio_lightning.networks.VxmUNet", "init_args": arguments}

    update = {"class_path": "dio_lightning.updates.LearnedStep", "init_args": {"network": net(4)}}
    return [
        str(config(tmp_path, "vxm", {"class_path": "VoxelMorph", "init_args": {"network": net(2)}})),
        str(config(tmp_path, "deq", {"class_path": "DEQReg", "init_args": {"update": update}})),
    ]


@pytest.mark.memory
def test_the_study_runs_from_end_to_end(configs, tmp_path) -> None:
    small = {"weights": configs, "out": tmp_path / "found", "cost": here}
    text = Memory(**small, steps=[3, 12], size=[48, 40], batch=1).run()
    with open(tmp_path / "found/memory.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["method", "steps", "status", "seconds", "peak_mb", "tensors_mb", "saved_mb"]
    assert [(row["method"], row["steps"]) for row in rows] == [
        ("VoxelMorph", "1"),
        *((f"DEQReg, {t}", k) for t in ("T = 1", "T = 3", "T = 3, checkpointed") for k in ("3", "12")),
    ]
    tensors = {(row["method"], row["steps"]): float(row["tensors_mb"]) for row in rows}
    assert tensors["DEQReg, T = 1", "3"] == pytest.approx(tensors["DEQReg, T = 1", "12"], rel=1e-3)
    assert tensors["DEQReg, T = 3", "12"] > 2 * tensors["DEQReg, T = 3, checkpointed", "12"]
    assert all((tmp_path / "found" / f"memory.{end}").stat().st_size > 1000 for end in ("png", "svg"))
    assert (tmp_path / "found/memory.md").read_text() == text
    with pytest.raises(FileExistsError):
        Memory(**small, steps=[3]).run()


@pytest.mark.slow
def test_a_fresh_process_measures_what_is_counted(configs, command, tmp_path) -> None:
    command("study", "memory", configs[0], "--out", "found", "--size", 160, 160, "--batch", 4)
    with open(tmp_path / "found/memory.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    # 160² pixels, 4 pairs: the network's features alone
    assert float(row["saved_mb"]) > 4 * 160**2 * 4 * (8 + 8 + 8) / MIB
    assert float(row["peak_mb"]) == pytest.approx(float(row["tensors_mb"]), rel=0.2)


def test_what_cannot_be_measured_is_refused(configs, tmp_path) -> None:
    with pytest.raises(ValueError, match="rising"):
        Memory(weights=configs, out=tmp_path, steps=[3, 3])
    with pytest.raises(ValueError, match="two or three extents"):
        Memory(weights=configs, out=tmp_path, size=[40])
    with pytest.raises(ValueError, match="no phantom steps"):
        here(Point(configs[0], [], [16, 16], 1, None, phantom=1))
    with pytest.raises(ValueError, match="no convolutions"):
        dimension(torch.nn.Linear(2, 2))
