"""The script of a lent GPU: jobs side by side, those that fail stop no other, and what comes back is whole."""

import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments/gpu_train.sh"
# in the place of python3 -m dio_lightning: a training writes a checkpoint, one of deqreg fails, an export copies it
STUB = """\
    #!{python}
    import pathlib, sys
    if sys.argv[1] == "-c":
        exec(sys.argv[2])
        sys.exit()
    command, options = sys.argv[3], sys.argv[4:]
    value = lambda name: options[options.index(name) + 1]
    if command == "fit":
        run = pathlib.Path(value("--trainer.default_root_dir"))
        if run.name.startswith("deqreg"):
            sys.exit("no such data")
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints/last.ckpt").write_text(" ".join(options))
        (run / "lightning_logs/version_0").mkdir(parents=True, exist_ok=True)
        (run / "lightning_logs/version_0/metrics.csv").write_text("step,train/loss\\n19,1.5\\n39,1.0\\n")
    elif command == "export":
        pathlib.Path(options[-1]).write_text(pathlib.Path(value("--ckpt_path")).read_text())
"""


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("timeout") is None, reason="a script of bash")
def test_a_failed_training_stops_no_other_and_all_comes_back(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(textwrap.dedent(STUB).format(python=sys.executable))
    stub.chmod(0o755)
    (tmp_path / "data").mkdir()
    settings = {
        "PYTHON": str(stub),
        "WORK": str(tmp_path / "work"),
        "START": "0",
        "RESERVE": "10",
        "EXTRA_riir": "--x 1",
    }
    command = [
        "bash",
        str(SCRIPT),
        str(tmp_path / "data"),
        str(tmp_path / "out"),
        "16",
        "posteriors",
        "deqreg_0+riir_2",
    ]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=60, check=True)
    out = tmp_path / "out"
    assert sorted(x.name for x in out.iterdir()) == ["logs.tar.gz", "table.txt", "weights.tar.gz"]
    rows = {line.split()[0]: line for line in run.stdout.splitlines()}
    assert rows["posteriors"].split()[1] == rows["riir_2"].split()[1] == "40"
    assert "code 0" in rows["riir_2"] and "code 1" in rows["deqreg_0"]
    with tarfile.open(out / "weights.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    assert sorted(x.stem for x in (tmp_path / "weights").iterdir()) == ["posteriors", "riir_2"]
    options = (tmp_path / "weights/riir_2.safetensors").read_text()
    assert "--seed_everything 2 --data.seed 2" in options and options.endswith("--x 1")
    budget = (tmp_path / "weights/posteriors.safetensors").read_text().split("--trainer.callbacks.seconds ")[1]
    assert 0 < int(budget.split()[0]) <= 6
