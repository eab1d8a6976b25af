"""The walk through a registration in docs/two_scans.md runs as it is written."""

import re
from pathlib import Path

import numpy as np
import pytest

from dio_lightning.registration import register

PAGE = Path(__file__).parents[1] / "docs/two_scans.md"


@pytest.mark.real
def test_the_page_runs_from_its_first_line_to_its_last(capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "good - " in said and "failed - " in said and "transform.h5" in said


@pytest.mark.real
def test_lungs_that_lie_apart_come_together_without_masks_or_landmarks(data_root) -> None:
    """One breath at two visits, 35 mm apart by their headers; landmarks are RAS millimetres (the files say LPS)."""
    folder = data_root / "lung/native"
    images = [folder / f"{name}.nii.gz" for name in ("baseline_small", "followup_recovered")]
    points = [
        np.loadtxt(folder / f"{name}_landmarks.csv", delimiter=",", skiprows=1)[:, :3] * [-1, -1, 1]
        for name in ("baseline", "followup")
    ]
    result = register(*images, model="lungs/pair_mind")
    before, after = (np.linalg.norm(x - points[1], axis=1).mean() for x in (points[0], result.warp_points(points[0])))
    assert before > 30 and after < 1.6 and result.quality.verdict == "good"
