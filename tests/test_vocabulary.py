"""The vocabulary of scores: what each says of itself holds wherever it is used."""

import math
import subprocess
import sys

import pytest
import torch
import yaml
from dummies import ROOT
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from test_scores import Boxes, Shift, trainer_in
from torch.testing import assert_close

from dio_lightning.callbacks import RegistrationScores
from dio_lightning.callbacks.checkpoints import Best
from dio_lightning.callbacks.monitors import mode_of
from dio_lightning.pair import Pair
from dio_lightning.scores import SCORES, expect, look_up
from dio_lightning.scores.pairs import score_batch, score_pair
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.scores.rows import label_columns, scores_of
from dio_lightning.scores.table import Cell, Table

SIZE = (16, 14, 12)


def shifted(batch: int = 1) -> Pair:
    """Boxes in a corner, masks and landmarks that lie 3 voxels further along axis 0 in the moving image."""
    fixed = torch.zeros(batch, 1, *SIZE)
    fixed[:, :, 3:8, 3:9, 3:8] = 1
    moving = torch.roll(fixed, 3, 2)
    points = torch.tensor([[3.0, 5], [4, 8], [5, 6]]).repeat(batch, 1, 1)
    images = {"fixed": fixed, "moving": moving, "spacing": torch.full((batch, 3), 2.0)}
    for kind, dtype in (("label", torch.int16), ("mask", torch.uint8)):
        images |= {f"fixed_{kind}": fixed.to(dtype), f"moving_{kind}": moving.to(dtype)}
    images |= {"fixed_points": points, "moving_points": points + torch.tensor([3.0, 0, 0])[:, None]}
    return images  # type: ignore[return-value]


def translation(voxels: float, batch: int = 1) -> torch.Tensor:
    u = torch.zeros(batch, 3, *SIZE)
    u[:, 0] = voxels
    return u


def test_a_score_says_all_that_is_needed_of_it() -> None:
    assert len({score.name for score in SCORES}) == len({score.heading for score in SCORES}) == len(SCORES)
    for score in SCORES:
        assert (score.compute is not None) == (score.kind == "pair"), score.name
        assert score.unit in score.heading, f"the heading of {score.name} keeps its unit back"
        assert score.better != "neither", score.name
        assert not score.option or hasattr(ScoreOptions(), score.option)
        assert look_up(score.name) is look_up(f"{score.name}_identity") is score


@pytest.mark.parametrize("score", [score for score in SCORES if score.tested], ids=lambda score: score.name)
def test_a_score_gets_better_in_its_direction(score) -> None:
    """A direction that is wrong turns the verdicts and the bold cells of every table."""
    worse = translation(40.0 if score.constant else 1.0)
    if not score.needs:
        worse[:, 0, 5:9, 5:9, 5:9] += 4 * torch.randn(4, 4, 4)
    bad, good = (score_pair(u, shifted(), ScoreOptions())[0] for u in (worse, translation(3.0)))
    values = float(bad[score.name]), float(good[score.name])
    assert values[0] < values[1] if score.better == "larger" else values[0] > values[1]
    if score.identity:
        still, _ = score_pair(translation(0.0), shifted(), ScoreOptions())
        assert still[score.name] == still[f"{score.name}_identity"] == bad[f"{score.name}_identity"]


def test_numbers_are_written_to_the_digits_of_their_score() -> None:
    def texts(name: str, *pairs: tuple[float, float]) -> list[str]:
        score = look_up(name)
        return [f"{score.text(mean)} ± {score.text(std, mean)}" for mean, std in pairs]

    assert texts("dice", (0.71234, 0.0456)) == ["0.712 ± 0.046"]
    assert texts("folds", (0.0212, 0.5), (3.066, 0.861)) == ["0.0212 ± 0.5000", "3.07 ± 0.86"]
    assert texts("seconds", (39.64, 0.04), (0.529, 0.0013)) == ["39.6 ± 0.0", "0.53 ± 0.00"]
    assert texts("steps", (63.4, math.nan)) == ["63 ± –"] and look_up("own_score").text(2) == "2.00"


def test_a_row_has_the_scores_that_its_pair_allows_in_one_order() -> None:
    row, labels = score_pair(translation(1.0), shifted(), ScoreOptions())
    assert list(row) == scores_of([row])
    assert list(row) == scores_of([dict(reversed(row.items())), {"fixed_id": "a"}])
    assert set(labels[0]) == set(label_columns()) - {"fixed_id", "moving_id", "name"}
    assert scores_of([{"own": 1.0, "seconds": 1.0, "dice_identity": 1.0}]) == ["seconds", "dice_identity", "own"]
    pair = {key: value for key, value in shifted().items() if key in ("fixed", "moving", "fixed_label", "fixed_mask")}
    assert set(score_pair(translation(1.0), pair, ScoreOptions())[0]) == {"folds", "sdlogj", "std_logj"}  # type: ignore[arg-type]


def test_a_batch_is_scored_as_its_pairs_are() -> None:
    pair, u = shifted(3), torch.cat([translation(k) for k in (0.0, 1.0, 3.0)])
    together = score_batch(u, pair, ScoreOptions(), ("tre", "dice"))
    assert list(together) == ["tre", "dice"]
    assert_close(together["tre"], torch.tensor([6.0, 4.0, 0.0]).double())
    each = [score_pair(u[i : i + 1], shifted(), ScoreOptions())[0]["dice"] for i in range(3)]
    assert together["dice"].tolist() == each and each[2] == 1


def test_an_unknown_score_is_refused_with_the_nearest_one() -> None:
    expect(["dice", "own"], ["dice", "own"], "--metrics")
    with pytest.raises(ValueError, match=r"--metrics: there is no score 'dise', .* did you mean 'dice'"):
        expect(["dise"], ["dice", "tre"], "--metrics")
    with pytest.raises(ValueError, match=r"there is no score 'onw', .* did you mean 'own'"):
        expect(["onw"], ["dice", "own"], "--metrics")
    with pytest.raises(ValueError, match="no run has the score 'tre', they have dice"):
        expect(["tre"], ["dice"], "--metrics")


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (lambda p: ModelCheckpoint(p, monitor="val/dise"), "ModelCheckpoint, monitor val/dise: .* did you mean 'dice'"),
        (lambda p: EarlyStopping("val/dise_identity", strict=False), "monitor val/dise_identity: there is no score"),
        (lambda p: EarlyStopping("val/tre", mode="max"), "val/tre with mode max, of which smaller is better"),
        (lambda p: Best(p, "val/dice", "min"), "Best: val/dice with mode min, .* give mode max"),
        (lambda p: Best(p, "val/loss"), "Best: val/loss is no score that is better in one direction"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sanity", [0, 2])
def test_what_a_training_watches_is_a_score_in_its_direction(tmp_path, callback, sentence, sanity) -> None:
    """A checkpoint kept the worst landmarks where mode stayed at its default."""
    with pytest.raises(ValueError, match=sentence):
        options = {"max_epochs": 1, "enable_checkpointing": True, "num_sanity_val_steps": sanity}
        trainer_in(tmp_path, RegistrationScores(), callback(tmp_path), **options).fit(Shift(), Boxes())


def test_a_checkpoint_looks_for_the_better_score(tmp_path) -> None:
    assert [Best(tmp_path, f"val/{name}").mode for name in ("dice", "tre", "folds_identity")] == ["max", "min", "min"]
    watched = [Best(tmp_path, "val/hd95"), EarlyStopping("val/dice", mode="max")]
    options = {"max_epochs": 1, "enable_checkpointing": True}
    trainer_in(tmp_path, RegistrationScores(), *watched, **options).fit(Shift(), Boxes())
    assert not (tmp_path / "best.ckpt").exists(), "HD95 is a score, but not one of this validation"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda p: p.stem)
def test_what_a_shipped_config_watches_is_a_score_in_its_direction(path) -> None:
    """Early stops and checkpoints have a mode, sweeps of Weights & Biases a goal."""

    def check(content: object) -> None:
        if isinstance(content, dict):
            name, way = content.get("monitor", content.get("name")), content.get("mode", content.get("goal"))
            if isinstance(name, str) and name.startswith("val/"):
                assert way is not None and way.startswith(str(mode_of(name))), f"{name} {way}"
        for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
            check(value)

    check(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_a_table_is_the_same_in_every_format() -> None:
    table = Table(["name", "TRE (mm)"], [[Cell("a|b_c"), Cell("1.0 ± 0.5†", True)]], "All of 50%.", right=True)
    assert table.markdown() == "| name | TRE (mm) |\n|---|---:|\n| a\\|b_c | **1.0 ± 0.5†** |\n\nAll of 50%.\n"
    latex = table.latex("my table")
    assert (
        r"a$|$b\_c & \textbf{1.0 $\pm$ 0.5$\dagger$} \\" in latex
        and r"{lr}" in latex
        and r"\label{tab:my-table}" in latex
    )
    terminal = table.rich()
    assert [column.header for column in terminal.columns] == table.heading and terminal.title == "All of 50%."


def test_naming_a_score_is_quick() -> None:
    """Usage errors must not wait for what takes seconds to import."""
    heavy = "('torch', 'lightning', 'monai', 'scipy', 'matplotlib', 'numpy')"
    code = f"import sys, dio_lightning.scores; assert not [m for m in {heavy} if m in sys.modules], sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, dio_lightning.studies.comparison; assert not {'torch', 'lightning', 'monai'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
