"""The walk through a registration in docs/two_scans.md runs as it is written."""

import re
from pathlib import Path

import pytest

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
