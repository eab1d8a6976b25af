"""The benchmark of the data runs on any Learn2Reg folder and writes what it prints."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_a_small_folder_gets_a_row_for_each_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import loading  # pyright: ignore[reportMissingImports]

    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "toy" / kind).mkdir(parents=True)
        for i in range(4):
            values = np.arange(8**3, dtype=np.uint8).reshape(8, 8, 8) % 7
            nib.save(
                nib.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), tmp_path / "toy" / kind / f"toy_{i}_0000.nii.gz"
            )
    (tmp_path / "toy" / "toy_dataset.json").write_text(json.dumps({"pairings": "unpaired"}))
    out = tmp_path / "build" / "bench_data.json"
    words = f"--data {tmp_path} --sets toy --cases 3 --step 0.01 --steps 2 --workers 0 1 --out {out}"
    loading.main(words.split())
    rows = json.loads(out.read_text())
    assert [(row["data"], row["mode"]) for row in rows] == [("toy", mode) for mode in loading.MODES]
    for row in rows:
        assert row["first"] > 0 and row["peak_mb"] >= 0 and (row["second"] is None) == (row["mode"] == "none")
        assert list(row["waiting"]) == ["0", "1"] and all(0 < share < 1 for share in row["waiting"].values())
    table = capsys.readouterr().out
    assert "3 cases, a step of 0.01 s" in table and table.count("| toy |") == len(rows)
    with pytest.raises(ValueError, match="has 4 cases, expected 9"):
        loading.measure(tmp_path / "toy", "none", 9, str(tmp_path), 0.01, 1, [0])


def test_every_change_is_timed_beside_a_training_step(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import augmenting  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(augmenting, "ITERATIONS", (1, 1, 1))
    out = tmp_path / "build/bench_augment.json"
    augmenting.main(f"--sizes 16x20 16x12x14 --repetitions 1 --cpu-time --out {out}".split())
    rows = json.loads(out.read_text())
    assert list(rows) == ["16x20", "16x12x14"]
    assert all(0 < row[name] < 60 for row in rows.values() for name in (*augmenting.CHANGES, "training step"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| seconds a pair | 16x20 | 16x12x14 |" and "%" in lines[4] and "%" not in lines[-1]
