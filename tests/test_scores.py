"""RegistrationScores: what it logs, writes and gathers."""

import csv
import hashlib
import json
import math
import time

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from dio_lightning.callbacks import RegistrationScores
from dio_lightning.callbacks.warming import warm_up
from dio_lightning.metrics import hausdorff_per_label
from dio_lightning.scores.pairs import score_pair

SIZE = (12, 10, 9)


class Shift(LightningModule):
    """Registers by a translation along axis 0."""

    def __init__(self, shift=2.0, keys=("displacement", "steps", "residual", "converged")):
        super().__init__()
        self.save_hyperparameters()
        self.weight = nn.Parameter(torch.zeros(1))

    def step(self, pair):
        fixed = pair["fixed"]
        u = torch.zeros(len(fixed), fixed.ndim - 2, *fixed.shape[2:], device=fixed.device)
        u[:, 0] = self.hparams["shift"]
        one = torch.ones(len(fixed))
        outputs = {"displacement": u, "steps": 7 * one.int(), "residual": 0.25 * one, "converged": one > 0}
        return {key: outputs[key] for key in self.hparams["keys"]}

    def training_step(self, pair, index):
        return self.weight.sum()

    def validation_step(self, pair, index):
        return self.step(pair)

    def test_step(self, pair, index):
        return self.step(pair)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Boxes(LightningDataModule):
    """Pairs whose moving boxes lie 2 voxels further along axis 0; those of pair k are k + 2 voxels long."""

    def __init__(self, pairs=2, batch_size=1, leave_out=(), size=SIZE):
        super().__init__()
        self.label_names = {1: "left box", 3: "right box"}
        self.pairs, self.batch_size, self.leave_out, self.size = pairs, batch_size, leave_out, size

    def pair(self, k):
        fixed = torch.zeros(1, *self.size, dtype=torch.int16)
        fixed[(0, slice(2, 4 + k), *[slice(2, 5)] * (len(self.size) - 1))] = 1
        fixed[(0, slice(2, 4 + k), *[slice(6, 8)] * (len(self.size) - 1))] = 3
        points = torch.tensor([[2.0, 4.0], [3.0, 5.0], [1.0, 2.0]])[: len(self.size)]
        moving = torch.roll(fixed, 2, 1)
        pair = {
            "fixed": fixed.float(),
            "moving": moving.float(),
            "fixed_label": fixed,
            "moving_label": moving,
            "fixed_points": points,
            "moving_points": points + torch.tensor([2.0, 0.0, 0.0])[: len(self.size), None],
            "spacing": torch.tensor([2.0, 1.0, 1.5])[: len(self.size)],
            "fixed_id": f"{k:04d}",
            "moving_id": f"{k + 1:04d}",
        }
        return {key: value for key, value in pair.items() if key not in self.leave_out}

    def test_dataloader(self):
        return DataLoader([self.pair(k) for k in range(self.pairs)], self.batch_size)

    train_dataloader = val_dataloader = test_dataloader


def trainer_in(folder, *callbacks, **options):
    quiet = dict.fromkeys(["enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"], False)
    defaults = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "callbacks": [*callbacks]}
    return Trainer(**quiet | defaults | options)


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_perfect_shift_is_written_with_the_identity_beside_it(tmp_path, capsys):
    scores = RegistrationScores()
    scores.config_text = "seed: 1\n"
    logged = trainer_in(tmp_path, scores).test(Shift(), Boxes(), verbose=False)[0]
    rows = read(tmp_path / "metrics.csv")
    assert [(row["fixed_id"], row["moving_id"]) for row in rows] == [("0000", "0001"), ("0001", "0002")]
    for row in rows:
        exact = {"dice": 1, "hd95": 0, "hd": 0, "hd_missed": 0, "tre": 0, "folds": 0, "std_logj": 0, "sdlogj": 0}
        exact |= {"steps": 7, "residual": 0.25, "converged": 1, "tre_identity": 4, "hd_identity": 4}
        assert {name: float(row[name]) for name in exact} == exact
        assert float(row["seconds"]) > 0
        assert float(row["peak_mb"]) > 50
    # boxes of 2 and 3 voxels, 2 voxels apart: no overlap, and one of three
    assert [float(row["dice_identity"]) for row in rows] == pytest.approx([0, 1 / 3])
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["dice"] == {"mean": 1.0, "std": 0.0, "median": 1.0, "n": 2}
    assert summary["identity"]["dice"]["mean"] == pytest.approx(1 / 6)
    assert summary["identity"]["dice"]["std"] == pytest.approx(1 / 6)
    assert set(summary["identity"]) == {"dice", "hd95", "hd", "tre"}
    assert summary["config_hash"] == hashlib.sha256(b"seed: 1\n").hexdigest()
    assert summary["versions"]["torch"] == torch.__version__
    assert set(summary["versions"]) == {"dio_lightning", "torch", "lightning", "monai", "python"}
    assert logged["test/dice"] == 1
    assert logged["test/dice_identity"] == pytest.approx(1 / 6)
    printed = capsys.readouterr().out
    assert "identity" in printed
    assert "Shift" in printed
    assert "hd95 [mm]" in printed
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_labels_have_rows_with_names(tmp_path):
    trainer_in(tmp_path, RegistrationScores(print_table=False)).test(Shift(1.0), Boxes(1), verbose=False)
    rows = read(tmp_path / "metrics_per_label.csv")
    assert [(row["fixed_id"], row["label"], row["name"]) for row in rows] == [
        ("0000", "1", "left box"),
        ("0000", "3", "right box"),
    ]
    pair = Boxes().pair(0)
    warped = torch.roll(pair["moving_label"], -1, 1)[None]
    hd95, hd = hausdorff_per_label(pair["fixed_label"][None], warped, pair["spacing"][None], [1, 3])
    assert_close([float(row["hd95"]) for row in rows], hd95[0].tolist())
    assert_close([float(row["hd"]) for row in rows], hd[0].tolist())
    assert [float(row["dice"]) for row in rows] == [0.5, 0.5]
    assert [float(row["dice_identity"]) for row in rows] == [0.0, 0.0]


def test_a_batch_is_scored_pair_by_pair_and_a_second_test_replaces_the_first(tmp_path):
    trainer_in(tmp_path, RegistrationScores(print_table=False)).test(Shift(), Boxes(1), verbose=False)
    trainer_in(tmp_path, RegistrationScores(print_table=False)).test(Shift(0.7), Boxes(3), verbose=False)
    single = read(tmp_path / "metrics.csv")
    trainer_in(tmp_path, RegistrationScores(print_table=False)).test(Shift(0.7), Boxes(3, 2), verbose=False)
    batched = read(tmp_path / "metrics.csv")
    for one, two in zip(single, batched, strict=True):
        assert {k: v for k, v in one.items() if k not in ("seconds", "peak_mb")}.items() <= two.items()
    assert len({row["dice_identity"] for row in batched}) == 3


def test_lost_structures_are_counted_and_the_json_stays_valid(tmp_path, capsys):
    trainer_in(tmp_path, RegistrationScores()).test(Shift(100.0), Boxes(), verbose=False)
    rows = read(tmp_path / "metrics.csv")
    assert [row["hd_missed"] for row in rows] == ["2", "2"]
    assert all(math.isnan(float(row["hd95"])) and float(row["dice"]) == 0 for row in rows)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary["hd95"] == {"mean": None, "std": None, "median": None, "n": 0}
    assert summary["hd_missed"]["mean"] == 2
    assert summary["identity"]["hd95"]["mean"] == pytest.approx(4)
    assert "none" in capsys.readouterr().out


def test_only_scores_whose_inputs_exist(tmp_path):
    data = Boxes(2, leave_out=("fixed_label", "moving_points", "fixed_id", "moving_id", "spacing"), size=(12, 10))
    trainer_in(tmp_path, RegistrationScores()).test(Shift(keys=("displacement",)), data, verbose=False)
    rows = read(tmp_path / "metrics.csv")
    names = ["fixed_id", "moving_id", "folds", "sdlogj", "std_logj", "seconds", "peak_mb"]
    assert list(rows[0]) == names
    assert [row["fixed_id"] for row in rows] == ["0", "1"]


def test_options_reach_the_scores(tmp_path, capsys):
    options = {"surface": False, "landmarks_order": 1, "dice": "linear", "print_table": False}
    trainer_in(tmp_path, RegistrationScores(**options)).test(Shift(0.6), Boxes(1), verbose=False)
    row = read(tmp_path / "metrics.csv")[0]
    assert "hd95" not in row
    # the mask rounds 0.6 to one voxel, and one of the two rows of the box stays covered
    assert float(row["dice"]) == pytest.approx(0.5)
    assert float(row["tre"]) == pytest.approx(2 * 1.4)
    trainer_in(tmp_path, RegistrationScores(unit_spacing=True)).test(Shift(0.0), Boxes(1), verbose=False)
    assert float(read(tmp_path / "metrics.csv")[0]["hd"]) == 2
    assert json.loads((tmp_path / "summary.json").read_text())["units"] == {"hd95": "voxels", "hd": "voxels"}
    printed = capsys.readouterr().out
    assert "hd95 [voxels]" in printed and "tre [mm]" in printed


def test_masked_regularity(tmp_path):
    class Folding(Shift):
        def step(self, pair):
            outputs = super().step(pair)
            outputs["displacement"] = torch.zeros_like(outputs["displacement"])
            outputs["displacement"][:, 0, 4, 4:6, 4:6] = 4.0
            return outputs

    class Masked(Boxes):
        def pair(self, k):
            mask = torch.zeros(1, *self.size, dtype=torch.uint8)
            mask[:, 5, 4:6, 4:6] = 1
            return super().pair(k) | {"fixed_mask": mask}

    scores = RegistrationScores(surface=False, masked=True, print_table=False)
    trainer_in(tmp_path, scores).test(Folding(), Masked(1), verbose=False)
    assert float(read(tmp_path / "metrics.csv")[0]["folds"]) == 100
    with pytest.raises(ValueError, match="fixed_mask"):
        trainer_in(tmp_path, scores).test(Folding(), Boxes(1), verbose=False)


def test_wrong_options_and_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dice must be"):
        RegistrationScores(dice="cubic")
    with pytest.raises(ValueError, match="landmarks_order must be 1 or 3, not 2"):
        RegistrationScores(landmarks_order=2)
    with pytest.raises(ValueError, match="displacement"):
        trainer_in(tmp_path, RegistrationScores()).test(Shift(keys=("steps",)), Boxes(1), verbose=False)


@pytest.mark.parametrize("surface", [False, True])
def test_validation_logs_the_cheap_scores(tmp_path, surface):
    trainer = trainer_in(tmp_path, RegistrationScores(surface_in_validation=surface), max_epochs=1)
    trainer.fit(Shift(), Boxes())
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged["val/dice"] == 1
    assert logged["val/dice_identity"] == pytest.approx(1 / 6)
    assert logged["val/folds"] == 0
    assert logged["val/tre"] == pytest.approx(0, abs=1e-5)
    assert ("val/hd95" in logged) == surface
    assert not list(tmp_path.glob("*.csv"))


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer_in(tmp_path, RegistrationScores(), fast_dev_run=True).test(Shift(), Boxes(), verbose=False)
    assert not list(tmp_path.iterdir())


class Slow(Shift):
    """Compiles, which takes a while, when it is first used."""

    compiled = False

    def forward(self, fixed, moving):
        if not self.compiled:
            self.compiled = True
            time.sleep(0.5)
        torch.rand(1)
        return fixed

    def step(self, pair):
        self(pair["fixed"], pair["moving"])
        return super().step(pair)


def test_seconds_leave_out_what_is_done_once(tmp_path):
    """D11: the first pair's time held the compilation."""
    module = Slow()
    trainer_in(tmp_path, RegistrationScores(print_table=False, surface=False)).test(module, Boxes(2), verbose=False)
    assert module.compiled and all(float(row["seconds"]) < 0.4 for row in read(tmp_path / "metrics.csv"))


@pytest.mark.parametrize("size", [(12, 10, 9), (100, 61, 48), (64, 20)])
def test_a_method_is_warmed_up_on_a_part_of_the_first_image_and_its_random_state_is_kept(size):
    seen = []

    class Watched(Slow):
        compiled = True

        def forward(self, fixed, moving):
            seen.append((fixed, moving))
            torch.rand(1)

    image = torch.rand(2, 1, *size)
    state = torch.get_rng_state()
    warm_up(Watched(), {"fixed": image, "moving": image})
    assert torch.equal(torch.get_rng_state(), state)
    ((fixed, moving),) = seen
    assert fixed.shape == moving.shape == (1, 1, *(min(extent, 48) for extent in size))
    inside = tuple(slice((n - min(n, 48)) // 2, (n - min(n, 48)) // 2 + min(n, 48)) for n in size)
    assert torch.equal(fixed[0, 0], image[(0, 0, *inside)]) and not torch.equal(fixed, moving)


def test_a_part_that_is_too_small_for_a_method_is_no_error(tmp_path):
    class Picky(Slow):
        compiled = True

        def forward(self, fixed, moving):
            if min(fixed.shape[2:]) < 50:
                raise ValueError("too small")

    data = Boxes(1, size=(60, 52))
    trainer_in(tmp_path, RegistrationScores(surface=False)).test(Picky(), data, verbose=False)
    assert len(read(tmp_path / "metrics.csv")) == 1


def test_a_score_of_ones_own_reaches_files_table_and_log(tmp_path, capsys, monkeypatch):
    """C: names that `report.SCORES` does not list were dropped without a word."""

    def scored(u, pair, options):
        row, labels = score_pair(u, pair, options)
        return row | {"bending": 0.25, "bending_identity": 0.5}, labels

    monkeypatch.setattr("dio_lightning.callbacks.scores.score_pair", scored)
    logged = trainer_in(tmp_path, RegistrationScores()).test(Shift(), Boxes(), verbose=False)[0]
    assert [row["bending"] for row in read(tmp_path / "metrics.csv")] == ["0.25", "0.25"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bending"]["mean"] == 0.25 and summary["identity"]["bending"]["mean"] == 0.5
    assert "bending_identity" not in summary and summary["method"] == "Shift"
    assert logged["test/bending"] == 0.25 and logged["test/bending_identity"] == 0.5
    assert any("bending" in line and "0.5" in line and "0.25" in line for line in capsys.readouterr().out.splitlines())
