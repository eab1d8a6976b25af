"""What a new term costs: its file, its export, and its entry in the list of tests, which then ask everything of it."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

ROOT = Path(__file__).parents[1]
FILE = '''"""The size of a displacement."""

from jaxtyping import Float
from torch import Tensor

from dio_lightning.losses.regularity import Field, Regulariser


class Length(Regulariser):
    """The squared length of the displacement."""

    def energy(self, u: Field) -> Float[Tensor, " b"]:
        """Mean over the voxels of each sample."""
        return u.square().sum(1).flatten(1).mean(1)
'''


def changed(path: Path, before: str, after: str) -> None:
    """Replaces one piece of a file."""
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def test_a_term_is_its_file_its_export_and_an_entry_in_a_list(tmp_path: Path) -> None:
    for name in ("dio_lightning", "data_modules", "tests"):
        copytree(ROOT / name, tmp_path / name)  # with what is compiled
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "dio_lightning/losses/length.py").write_text(FILE)
    exports, tests = tmp_path / "dio_lightning/losses/__init__.py", tmp_path / "tests/test_terms.py"
    changed(exports, "\n__all__ = [", "from dio_lightning.losses.length import Length\n\n__all__ = [\n    'Length',")
    changed(
        tests,
        '    "features": FeatureDistance(),\n',
        '    "features": FeatureDistance(),\n    "length": losses.Length(),\n',
    )
    changed(
        tests,
        "from dio_lightning.losses import (\n",
        "from dio_lightning import losses\nfrom dio_lightning.losses import (\n",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_terms.py", "-k", "length"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    # slopes in 2-D and 3-D, at the image and on blocks; derivatives of them; inference mode and batches
    assert run.returncode == 0 and "7 passed" in run.stdout, run.stdout + run.stderr
