"""A sweep file of W&B searched without W&B: what it says, who does the trials, and what is left when workers die."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from dio_lightning.cli import main
from dio_lightning.modules import RegistrationModule
from dio_lightning.sweeps import command, report, trial
from dio_lightning.sweeps.file import Halving, read_sweep
from dio_lightning.sweeps.space import Parameter, corners, grid, parameter
from dio_lightning.usage import named_class

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "experiments/sweeps").glob("*.yaml"))
LR, LAYERS = "model.init_args.optimizer.init_args.lr", "model.init_args.layer.init_args.iterations"
COMMAND = ["${env}", "${interpreter}", "-m", "dio_lightning", "fit", "--config", "dio/demo", "${args}"]
BASE = {
    "method": "bayes",
    "metric": {"name": "val/dice", "goal": "maximize"},
    "parameters": {
        LR: {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        LAYERS: {"values": [[4, 2], [5, 3]]},
    },
    "command": COMMAND,
}

# what a trial does, without a network: five epochs whose Dice depends on the learning rate; it goes on where it was
FAKE = """
import os, sys, threading, time
from pathlib import Path
def leave():
    os.read(0, 1)
    os._exit(143)
threading.Thread(target=leave, daemon=True).start()
words = dict(word.split("=", 1) for word in sys.argv if "=" in word)
folder = Path(sys.argv[sys.argv.index("--trainer.default_root_dir") + 1])
log = folder / "logs/version_0/metrics.csv"
log.parent.mkdir(parents=True, exist_ok=True)
lines = log.read_text().splitlines() if log.exists() else ["epoch,step,val/dice"]
(folder / "checkpoints").mkdir(exist_ok=True)
(folder / "checkpoints/last.ckpt").touch()
lr = float(words["--" + KEY])
if lr > WRONG:
    sys.exit("dio-lightning: error: too fast")
for epoch in range(len(lines) - 1, 5):
    time.sleep(PAUSE)
    lines.append(f"{epoch},{epoch},{1 - abs(lr - 1e-3) / (epoch + 1)}")
    log.write_text("\\n".join(lines) + "\\n")
(folder / "starts").open("a").write(f"{len(sys.argv)}\\n")
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Trials that are no trainings; written down as a file that another process can use too."""

    drawing = report._pictures

    def make(pause: float = 0.0, wrong: float = 1.0, pictures: bool = False) -> None:
        text = FAKE.replace("KEY", repr(LR)).replace("PAUSE", str(pause)).replace("WRONG", str(wrong))
        (tmp_path / "fake.py").write_text(text)
        monkeypatch.setattr(trial, "PROGRAM", (sys.executable, "-S", str(tmp_path / "fake.py")))
        monkeypatch.setattr(trial, "PARSER", ("true",))
        monkeypatch.setattr(report, "_pictures", drawing if pictures else lambda *_: [])

    make()
    return make


def written(folder: Path, **changes) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (BASE | changes).items() if value is not None}))
    return path


def search(folder: Path, file: Path, trials: int | None, storage: str = "", **options):
    """A sweep run at once; the rows of its table."""
    storage = storage or f"sqlite:///{folder / 'study.db'}"
    command.run_sweep(read_sweep(file), folder, storage, "s", trials, every=0.02, **options)
    with (folder / "trials.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_distributions_are_those_of_wandb():
    assert parameter("k", {"value": 3}) == Parameter((3,)) and parameter("k", {"values": ["a", [1]]}).corners == (
        "a",
        [1],
    )
    assert parameter("k", {"min": 1, "max": 4}).grid == (1, 2, 3, 4)
    assert parameter("k", {"min": 0.0, "max": 1}).grid is None and parameter("k", {"min": 0.0, "max": 1}).corners == (
        0,
        1,
    )
    q = parameter("k", {"distribution": "q_uniform", "min": 0.05, "max": 0.4, "q": 0.1})
    assert q.grid == (0.1, 0.2, 0.3, 0.4) and q.given(0.3) == 3
    values = parameter("k", {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2})
    exponents = parameter("k", {"distribution": "log_uniform", "min": math.log(1e-4), "max": math.log(1e-2)})
    inverse = parameter("k", {"distribution": "inv_log_uniform", "min": math.log(1e2), "max": math.log(1e4)})
    for other in (exponents, inverse):
        assert other.log and values.log and other.corners == pytest.approx(values.corners)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    drawn = [values.suggest(study.ask(), "lr") for _ in range(200)]
    below = sum(value < 1e-3 for value in drawn)
    assert min(drawn) >= 1e-4 and max(drawn) <= 1e-2 and 70 < below < 130, "half of them below the middle decade"
    counts = parameter("k", {"distribution": "q_log_uniform_values", "min": 2, "max": 64, "q": 2})
    drawn = [counts.suggest(study.ask(), "n") for _ in range(100)]
    assert set(drawn) <= set(range(2, 65, 2)) and all(isinstance(value, int) for value in drawn)
    assert sum(value <= 11 for value in drawn) > 35


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "hyperopt"}, "method hyperopt is not understood: expected one of bayes, random, grid"),
        ({"metric": {"goal": "maximize"}}, "metric needs a name"),
        ({"metric": {"name": "val/dice"}}, "goal minimize of val/dice, of which larger is better"),
        ({"parameters": {}}, "parameters are missing"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "write a.NAME"),
        ({"parameters": {"a": {"vales": [1]}}}, "vales is not understood, did you mean 'values'?"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "min ≤ max"),
        ({"parameters": {"a": {"distribution": "normal", "min": 0, "max": 1}}}, "normal is not understood"),
        ({"parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, "min above 0"),
        ({"parameters": {"a": {"distribution": "q_uniform", "min": 1.1, "max": 1.2, "q": 1}}}, "no multiple of q"),
        ({"command": None}, "command is missing"),
        ({"command": ["python", "train.py", "${args}"]}, "none of fit, validate"),
        ({"command": [*COMMAND[:-1], "${args_no_hyphens}"]}, "give ${args}"),
        ({"command": [*COMMAND, "${envvar:DIO_NOBODY_SETS_THIS}"]}, "DIO_NOBODY_SETS_THIS of the environment"),
        ({"early_terminate": {"type": "median"}}, "expected type: hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "give min_iter, or max_iter and s"),
        ({"metod": "grid"}, "metod is not understood, did you mean 'method'?"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_file_cannot_mean_is_one_sentence(changes, sentence, tmp_path, capsys):
    file = written(tmp_path, **changes)
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", str(file), "--trials", "2", "--out", str(tmp_path / "out")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith(f"dio-lightning: error: {file}: ") and sentence in line
    assert not (tmp_path / "out").exists()


def test_brackets_and_the_words_of_a_command(tmp_path, monkeypatch):
    wandb = ["--config", str(ROOT / "experiments/loggers/wandb.yaml"), "--trainer.logger.init_args.offline", "false"]
    monkeypatch.setenv("DIO_PLACE", "here")
    words = [*COMMAND[:-1], *wandb, "--data.root", "${envvar:DIO_PLACE}/brains", "${args}"]
    sweep = read_sweep(written(tmp_path, command=words, early_terminate={"type": "hyperband", "max_iter": 27, "s": 2}))
    assert sweep.halving == Halving(3, 3) and sweep.words == (
        "fit",
        "--config",
        "dio/demo",
        "--data.root",
        "here/brains",
    )
    line = sweep.command({LR: 1e-3, LAYERS: [4, 2], "model.x": None, "model.y": True})
    assert line[-4:] == [f"--{LR}=0.001", f"--{LAYERS}=[4, 2]", "--model.x=null", "--model.y=true"]
    other = ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "there"]
    assert read_sweep(written(tmp_path, command=[*COMMAND[:-1], *other])).words[-4:] == tuple(other)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda path: path.stem)
def test_every_corner_of_a_shipped_sweep_is_built(file, monkeypatch, tmp_path):
    """By the keys of the command line, as an agent of W&B writes them too."""

    class Built(Exception):
        pass

    def stop(cli, subcommand):
        raise Built(cli)

    monkeypatch.setattr(LightningCLI, "_run_subcommand", stop)
    monkeypatch.setenv("DIO_DATA", "nowhere")
    monkeypatch.chdir(ROOT)
    sweep, words = read_sweep(file), yaml.safe_load(file.read_text())["command"]
    assert words[:4] == ["${env}", "${interpreter}", "-m", "dio_lightning"] and words[-1] == "${args}"
    assert sweep.method == "bayes" and (sweep.halving is not None or sweep.words[0] == "validate")
    points = corners(sweep.parameters)
    for point in (points[0], points[-1]):
        with pytest.raises(Built) as built:
            main([*sweep.command(point), "--trainer.default_root_dir", str(tmp_path)])
        cli = built.value.args[0]
        config = cli.config[sweep.words[0]]
        for key, value in point.items():
            part = config[key]
            assert value == part or (isinstance(value, str) and named_class(value) is named_class(part.class_path))
    # between them, without reading the command line again
    for point in points[1:-1]:
        for key, value in point.items():
            config[key] = value
        whole = cli._parser(sweep.words[0]).instantiate_classes(config)
        assert isinstance(whole.model, RegistrationModule)


def test_the_shipped_sweeps_are_of_all_three_kinds():
    assert {"dio", "deqreg", "image"} <= {file.stem for file in SHIPPED}


def test_a_grid_is_gone_through_once_by_all_workers(fake, tmp_path):
    points = {LR: {"values": [1e-4, 1e-3, 1e-2]}, LAYERS: {"values": [[4, 2], [5, 3]]}}
    file = written(tmp_path, method="grid", parameters=points)
    rows = search(tmp_path / "out", file, None, workers=3)
    assert sorted((float(row[LR]), row[LAYERS]) for row in rows) == sorted(
        (point[LR], json.dumps(point[LAYERS])) for point in grid(read_sweep(file).parameters)
    )
    assert float(rows[0][LR]) == 1e-3 and rows[0]["val/dice"] == "1.0" and {row["values"] for row in rows} == {"5"}
    assert [row["val/dice"] for row in rows] == sorted((row["val/dice"] for row in rows), reverse=True)
    with pytest.raises(ValueError, match="a grid needs values, or a distribution with q"):
        search(tmp_path / "other", written(tmp_path, method="grid"), None)
    with pytest.raises(ValueError, match="only a grid has an end of its own"):
        search(tmp_path / "third", written(tmp_path), None)


def test_two_workers_draw_the_points_of_one(fake, tmp_path):
    """A random search depends on its seed alone."""
    file = written(tmp_path, method="random")
    one, two, other = (
        {row["trial"]: (row[LR], row[LAYERS]) for row in search(tmp_path / name, file, 3, workers=n, seed=seed)}
        for name, n, seed in (("one", 1, 0), ("two", 2, 0), ("other", 2, 7))
    )
    assert one == two and one != other and len(set(one.values())) == 3


def test_a_poor_trial_is_given_up_and_a_failed_one_kept_apart(fake, tmp_path, capsys):
    points = {LR: {"values": [1e-3, 2e-3, 5e-3, 9e-3, 2.0]}}
    file = written(
        tmp_path, method="grid", parameters=points, early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2}
    )
    fake(pause=0.1, wrong=1.0, pictures=True)
    rows = search(tmp_path / "out", file, None)
    states = {float(row[LR]): (row["state"], row["reason"]) for row in rows}
    assert states == {
        1e-3: ("complete", ""),
        **{lr: ("given up", "") for lr in (2e-3, 5e-3, 9e-3)},
        2.0: ("failed", "too fast"),
    }
    assert [row["state"] for row in rows] == ["complete", *["given up"] * 3, "failed"]
    assert all(int(row["values"]) in (2, 3) for row in rows if row["state"] == "given up")
    said = capsys.readouterr().out
    assert "trial 4 failed: too fast" in said and f"rerun {tmp_path / 'out/trial_000'}" in said.replace("\n", "")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"history.png", "courses.png", "parameters.png"}


def test_a_sweep_that_cannot_work_stops_at_once_with_the_reason(fake, tmp_path):
    file = written(tmp_path, metric={"name": "val/dce", "goal": "maximize"})
    with pytest.raises(ValueError, match="trial 0: val/dce was never logged, did you mean 'val/dice'"):
        search(tmp_path / "out", file, 5)
    with pytest.raises(ValueError, match=r"is of another sweep \(its metric differs\)"):
        search(tmp_path / "out", written(tmp_path), 5)
    # a database of another kind, none, and one for which there is no driver
    (tmp_path / "text.db").write_text("no database\n" * 100)
    for url in (f"sqlite:///{tmp_path / 'text.db'}", "sqlite:////nowhere/at/all.db", "nonsense", "mysql://h/d"):
        with pytest.raises(ValueError, match=f"^storage {url}: ") as refused:
            search(tmp_path / "third", file, 1, storage=url)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", ["--trials", "--workers"])
def test_none_of_either_is_refused(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{option} is 0, expected at least 1"):
        command.sweep(["nowhere.yaml", option, "0"])
    assert not list(tmp_path.iterdir())


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["sweep", str(written(tmp_path)), "--trials", "1"])
    assert 'pip install "dio-lightning[sweep]"' in capsys.readouterr().err


SWEEP = """
import sys
from pathlib import Path
from dio_lightning.sweeps import command, trial
from dio_lightning.sweeps.file import read_sweep
trial.PROGRAM, trial.PARSER = (sys.executable, "-S", sys.argv[1]), ("true",)
sweep, folder = read_sweep(Path(sys.argv[2])), Path(sys.argv[3])
command.run_sweep(sweep, folder, f"sqlite:///{folder / 'study.db'}", "s", 6, workers=2, every=0.05)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM], ids=lambda kind: kind.name)
def test_a_sweep_of_two_workers_killed_half_way_is_finished(kind, fake, tmp_path):
    """Its trials end with it, wait again, and go on where they were."""
    fake(pause=0.1)
    file, out = written(tmp_path), tmp_path / "out"
    words = [sys.executable, "-c", SWEEP, str(tmp_path / "fake.py"), str(file), str(out)]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])})
    deadline = time.monotonic() + 60
    logs = "trial_*/logs/version_0/metrics.csv"
    while sum(len(log.read_text().splitlines()) - 1 for log in out.glob(logs)) < 13 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kind)
    assert process.wait() == (-signal.SIGKILL if kind == signal.SIGKILL else 143)
    time.sleep(0.3)
    before = {log.parts[-4]: log.read_text() for log in out.glob(logs)}
    assert 3 <= len(before) < 6
    rows = search(out, file, 6, workers=2)
    assert [row["state"] for row in rows] == ["complete"] * 6 and sorted(row["trial"] for row in rows) == [*"012345"]
    for name, text in before.items():
        assert (out / name / "logs/version_0/metrics.csv").read_text().startswith(text), "what was done is kept"
    starts = {path.parent.name: path.read_text().split() for path in out.glob("trial_*/starts")}
    assert len(starts) == 6 and all(len(ends) == 1 for ends in starts.values()), "each ended once"


def test_a_trial_that_is_always_killed_is_given_up_on(fake, tmp_path, monkeypatch):
    (tmp_path / "die.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(trial, "PROGRAM", (sys.executable, "-S", str(tmp_path / "die.py")))
    (row,) = search(tmp_path / "out", written(tmp_path), 1)
    assert (row["state"], row["reason"]) == ("failed", "killed (exit code -9)")
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'out/study.db'}")
    assert len(study.trials) == 4 and len({str(attempt.params) for attempt in study.trials}) == 1


def test_the_child_is_a_run_that_ends_with_its_worker(tmp_path):
    """Its own program: SIGTERM comes when the pipe to its stdin is closed."""
    words = ["fit", "--config", str(ROOT / "tests/conf/tiny.yaml"), "--trainer.max_epochs", "100000"]
    with (tmp_path / "log").open("w") as log:
        process = trial.begin([*words, "--trainer.default_root_dir", str(tmp_path / "run")], log)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run/checkpoints/last.ckpt").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        assert not trial.free(tmp_path / "run")
        trial.finish(process)
    assert process.returncode == 143 and trial.free(tmp_path / "run"), (tmp_path / "log").read_text()
    values, names = trial.logged(tmp_path / "run", "val/dice")
    assert len(values) > 0 and all(0 < value <= 1 for value in values) and "val/loss" in names
