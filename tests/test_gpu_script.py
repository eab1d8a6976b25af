"""The script for GPUs runs here, small and on the CPU: what it finds is kept, and a run that is cut off goes on."""

import json
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """The script as a module, and what it needs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu  # pyright: ignore[reportMissingImports]
    import gpu_checks  # pyright: ignore[reportMissingImports]
    import gpu_record  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(gpu_checks.torch.cuda, "is_available", lambda: False)
    return gpu, gpu_checks, gpu_record


@pytest.mark.slow
def test_every_section_runs_small_and_on_the_cpu(tmp_path, script, capsys) -> None:
    out = tmp_path / "deep" / "gpu.json"
    items = [
        "versions",
        "kernels/*",
        "methods/lab/dio",
        "methods/lab/voxelmorph",
        "memory/*",
        "speed/dio at *",
        "speed/deqreg at *",
    ]
    options = ["--out", str(out), "--items", *items]
    assert script[0].main(options) == 0
    assert ": done before" not in capsys.readouterr().out
    assert [file.name for file in out.parent.iterdir()] == ["gpu.json"]
    record = json.loads(out.read_text())
    assert record["device"] == "CPU, small" and len(record["sources"]) == 12
    found = record["items"]
    kernels = import_module("gpu_kernels").KERNELS
    assert list(found) == [
        "versions",
        *(f"kernels/{name}" for name in kernels),
        *("methods/lab/dio", "methods/lab/voxelmorph", "memory/deqreg"),
        *("speed/dio at half resolution", "speed/deqreg at half resolution"),
    ]
    assert all(item["ok"] and item["finished"] for item in found.values())
    assert found["methods/lab/dio"]["gradient_difference"] < 1e-3, "the operators of a GPU are not those of the CPU"
    assert found["memory/deqreg"]["growth"] == 0.0
    assert found["speed/dio at half resolution"]["seconds"] > 0
    assert script[0].main(options) == 0
    assert capsys.readouterr().out.count(": done before") == len(found)
    assert json.loads(out.read_text()) == record


@pytest.fixture
def two(tmp_path, script, monkeypatch):
    """A folder of two tests that import nothing, and the progress of an item that runs them."""
    _, gpu_checks, gpu_record = script
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_gpu_two.py").write_text(
        "def test_first():\n    open('first', 'w')\n\n\ndef test_last():\n    open('last', 'w')\n"
    )
    monkeypatch.setattr(gpu_checks, "ROOT", tmp_path)
    return gpu_record.Progress(gpu_record.Record.open(tmp_path / "gpu.json", "CPU, small"), "tests", float("inf"))


def test_tests_are_run_in_one_process_on_a_cpu(script, two) -> None:
    found = script[1]._pytest(["-m", "not gpu"], two)
    assert found["ok"] and found["passed"] == 2 and set(found["outcomes"].values()) == {"PASSED"}


def test_tests_that_passed_before_a_run_was_cut_off_are_not_run_again(tmp_path, script, two) -> None:
    """On a GPU, by several processes."""
    first, last = (f"tests/test_gpu_two.py::test_{name}" for name in ("first", "last"))
    two.save({"outcomes": {first: "PASSED", last: "FAILED"}})
    assert script[1]._pytest([], two)["outcomes"] == {first: "PASSED", last: "PASSED"}
    assert [(tmp_path / name).exists() for name in ("first", "last")] == [False, True]


def test_a_run_that_is_cut_off_goes_on_and_what_failed_does_not_stop_it(tmp_path, script, capsys) -> None:
    gpu, _, gpu_record = script
    calls: list[str] = []

    def good(progress) -> dict:
        calls.append(progress.name)
        return {"ok": True, "value": 1.5}

    def bad(progress) -> dict:
        calls.append(progress.name)
        raise RuntimeError("no kernel image is available")

    items, path = [("a", good), ("b", bad), ("c", good)], tmp_path / "gpu.json"

    def run(device: str = "H100", retry: bool = False, end: float = float("inf")) -> bool:
        calls.clear()
        record = gpu_record.Record.open(path, device, retry)
        return gpu.run(record, iter(items), lambda name: True, end)

    assert not run(end=0.0) and calls == []
    assert "no time left" in capsys.readouterr().out
    assert run() and calls == ["a", "b", "c"]
    kept = json.loads(path.read_text())["items"]
    assert kept["a"]["value"] == 1.5 and not kept["b"]["ok"] and "no kernel image" in kept["b"]["error"]
    assert run() and calls == []
    assert run(retry=True) and calls == ["b"]
    assert run("H200") and calls == ["a", "b", "c"], "another device's items are not its own"


def test_an_item_that_is_cut_off_is_taken_up_again(tmp_path, script) -> None:
    gpu, _, gpu_record = script

    def half(progress) -> dict:
        return {"ok": bool(progress.before), "finished": bool(progress.before), "outcomes": {"x": "PASSED"}}

    for ended in (False, True):
        record = gpu_record.Record.open(tmp_path / "gpu.json", "H100")
        assert gpu.run(record, iter([("tests", half)]), lambda name: True, float("inf")) is ended


def test_other_sources_start_anew(tmp_path, script, monkeypatch) -> None:
    _, _, gpu_record = script
    path = tmp_path / "gpu.json"
    record = gpu_record.Record.open(path, "H100")
    record.put("versions", {"ok": True, "finished": True})
    assert gpu_record.Record.open(path, "H100").finished("versions")
    monkeypatch.setattr(gpu_record, "sources", lambda: "another")
    assert not gpu_record.Record.open(path, "H100").items


def test_wheels_are_unpacked_once_and_found(tmp_path, script, monkeypatch) -> None:
    gpu, _, _ = script
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "before")
    with pytest.raises(FileNotFoundError, match=r"holds no wheels \(\*\.whl\)"):
        gpu.install(tmp_path, tmp_path / "site")
    wheel = tmp_path / "lacking-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("lacking.py", "VALUE = 3\n")
        file.writestr("lacking-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lacking\nVersion: 1.0\n")
        file.writestr("lacking-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("lacking-1.0.dist-info/RECORD", "")
    gpu.install(tmp_path, tmp_path / "site")
    import lacking  # pyright: ignore[reportMissingImports]

    assert lacking.VALUE == 3
    monkeypatch.setattr(gpu.subprocess, "run", lambda *args, **options: pytest.fail("unpacked again"))
    gpu.install(tmp_path, tmp_path / "site")
