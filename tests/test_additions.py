"""What a new score, study and method cost: files of one copy of the house, whose commands run in one process."""

import csv
import json
from pathlib import Path

import pytest
from dummies import TINY, House

LARGEST = '''

def largest(registered: "Registered") -> float:
    """Length of the longest displacement in voxels."""
    return registered.u.norm(dim=1).max().item()
'''
ENTRY = '    Score("largest", "largest (voxels)", "voxels", 1, "smaller", (), measures.largest),\n'

BRIGHTNESS = '''
"""How bright the fixed images are."""

from dataclasses import dataclass

from dio_lightning.scores.records import of_batch
from dio_lightning.studies.rendering import Line, Panel, draw, table, to_csv
from dio_lightning.studies.study import PairStudy, option


@dataclass(frozen=True, kw_only=True)
class Brightness(PairStudy):
    """Mean intensity of every test pair, under a factor."""

    name = "brightness"
    factor: float = option(1.0, "the mean is multiplied by it", float)

    def measure(self, loaded):
        for ids, pair in loaded.batches(self.limit):
            values = self.factor * pair["fixed"].flatten(1).mean(1)
            yield from of_batch(loaded.name, str(loaded.weights), self.factor, ids, "mean", values.tolist())

    def tables(self, records):
        return [to_csv([{"method": m, "factor": c, **values} for m, _, c, _, values in records.rows()])]

    def markdown(self, records):
        rows = [[m, f"{records.moments(m, 'mean', self.factor).mean:.6f}"] for m in records.methods]
        return table(["method", "mean"], rows) + "\\n"

    def figure(self, records):
        lines = [Line(m, [self.factor], [records.moments(m, "mean", self.factor).mean]) for m in records.methods]
        return draw(Panel("factor", "mean", lines))
'''

HALVING = '''"""A method in a file: images, and a step that halves the way to a given shift."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dio_lightning.implicit import Never, Picard, Update
from dio_lightning.layers import OptimizerLayer
from dio_lightning.level import Level
from dio_lightning.modules.iterative import IterativeModule, Pyramids
from dio_lightning.modules.refinement import Refinement
from dio_lightning.pair import Pair
from dio_lightning.transformations import Transformation
from dio_lightning.updates import UpdateRule


@dataclass(frozen=True)
class Halfway(UpdateRule):
    shift: float

    def on(self, level: Level, transformation: Transformation) -> Update:
        return lambda z: (z + self.shift) / 2


class Halving(IterativeModule):
    """u = (u + shift) / 2, again and again.

    Args:
        shift: in voxels.
        steps: how many.
        refine: see `RegistrationModule`.
    """

    def __init__(self, shift: float = 1.0, steps: int = 3, refine: Refinement | None = None) -> None:
        super().__init__(refine=refine)
        self.layer = OptimizerLayer([steps], Halfway(shift), Picard(), stop=Never(), field_sigma=0.0)

    def pyramids(self, work: Pair, pair: Pair) -> Pyramids:
        return Pyramids([work["fixed"]], [work["moving"]])
'''


def with_score(house: House) -> None:
    house.add("dio_lightning/scores/measures.py", LARGEST)
    house.insert("dio_lightning/scores/vocabulary.py", ")\n# fmt: on", ENTRY)


def with_study(house: House) -> None:
    house.add("dio_lightning/studies/brightness.py", BRIGHTNESS)
    entry = '    "brightness": Entry("brightness.Brightness", "how bright the fixed images are"),\n'
    house.insert("dio_lightning/studies/command.py", '    "convergence": Entry(', entry)


def with_method(house: House) -> None:
    house.add("dio_lightning/modules/halving.py", HALVING)
    house.add("dio_lightning/modules/__init__.py", "\nfrom dio_lightning.modules.halving import Halving\n")
    house.add("tests/test_halving.py", "def test_nothing() -> None:\n    pass\n")
    house.add(
        "halving.yaml",
        "model: {class_path: dio_lightning.modules.Halving, init_args: {shift: 2.0}}\n"
        "data: {class_path: SyntheticPairs, init_args: {size: [24, 20], test_pairs: 2}}\n"
        "trainer: {accelerator: cpu, default_root_dir: runs/halving}\n",
    )


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> tuple[Path, dict[str, str], dict[str, int]]:
    """The folder of the copy, what its commands printed, and how many files each addition touched."""
    house, touched = House.copy(tmp_path_factory.mktemp("house")), {}
    for add in (with_score, with_study, with_method):
        before = len(house.touched)
        add(house)
        touched[add.__name__] = len(house.touched) - before
    commands = {
        "help": ["study", "--help"],
        "study": ["study", "brightness", f"mine={TINY}", "--out", "out", "--factor", 3, "--limit", 2],
        "score": ["test", "--config", TINY, "--trainer.logger", "false", "--trainer.default_root_dir", "run"],
        "compare": ["compare", "mine=run", "--out", "table.md"],
        "method": ["test", "--config", "halving.yaml", "--model.refine.layer.iterations", "[3]"],
        "convergence": ["study", "convergence", "halving=halving.yaml", "--out", "study", "--steps", 5],
    }
    return house.root, dict(zip(commands, house.run(*commands.values()), strict=True)), touched


@pytest.mark.slow
def test_a_new_score_is_one_function_and_one_entry(extended) -> None:
    root, printed, touched = extended
    assert touched["with_score"] == 2
    with open(root / "run/metrics.csv", encoding="utf-8") as file:
        values = [float(row["largest"]) for row in csv.DictReader(file)]
    assert len(values) == 3 and min(values) > 0
    mean = json.loads((root / "run/summary.json").read_text())["largest"]["mean"]
    assert mean == pytest.approx(sum(values) / 3)
    shown = printed["compare"].splitlines()
    heading, _, row = (line.strip("| ").split(" | ") for line in shown[:3])
    assert row[heading.index("largest (voxels)")].startswith(f"{mean:.1f} ± ")


@pytest.mark.slow
def test_a_study_is_one_file_and_one_entry(extended) -> None:
    root, printed, touched = extended
    assert touched["with_study"] == 2
    assert "brightness   how bright the fixed images are" in printed["help"]
    files = {f"brightness.{ending}" for ending in ("csv", "md", "png", "svg", "html")}
    assert {file.name for file in (root / "out").iterdir()} == files
    with open(root / "out/brightness.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["factor"]) for row in rows] == [("mine", "3.0")] * 2
    mean = sum(float(row["mean"]) for row in rows) / 2
    assert 0.1 < mean < 3 and f"| mine | {mean:.6f} |" in printed["study"]
    assert (root / "out/brightness.md").read_text() in printed["study"] and "2 pairs in" in printed["study"]


@pytest.mark.slow
def test_a_method_is_a_file_an_export_a_test_and_a_config(extended) -> None:
    """Four files; the method then has all that others have: runs, records, refinement, scores, a study."""
    root, _, touched = extended
    assert touched["with_method"] == 4
    with open(root / "runs/halving/metrics.csv", encoding="utf-8") as file:
        steps = [float(row["steps"]) for row in csv.DictReader(file)]
    assert len(steps) == 2 and all(3 < one <= 6 for one in steps)
    with open(root / "study/convergence.csv", encoding="utf-8") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5"]
