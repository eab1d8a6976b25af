"""The house stands: who may import whom, and how long anything may be."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from house import circles, graph, report

ROOT = Path(__file__).parents[1]
FLOORS: dict[str, float] = {
    "dio_lightning.pair": 0,
    "dio_lightning.processes": 0,
    "dio_lightning.ops": 0,
    "dio_lightning.implicit": 0.5,
    "dio_lightning.networks": 1,
    "dio_lightning.fields": 1,
    "dio_lightning.losses": 2,
    "dio_lightning.features": 2,
    "dio_lightning.metrics": 2,
    "dio_lightning.transformations": 2,
    "dio_lightning.level": 1.5,
    "dio_lightning.transforms": 2,
    "dio_lightning.updates": 3,
    "dio_lightning.scores": 3,
    "dio_lightning.layers": 4,
    "dio_lightning.models": 4,
    "dio_lightning.modules": 5,
    "dio_lightning.pictures": 3,
    "dio_lightning.reports": 4.5,
    "dio_lightning.callbacks": 5,
    "dio_lightning.domains": 6,
    "dio_lightning.errors": 0,
    "dio_lightning.files": 0,
    "dio_lightning.findings": 0,
    "dio_lightning.allocation": 0,
    "dio_lightning.feature_maps": 6,
    "dio_lightning.features_command": 6,
    "dio_lightning.footprint": 6,
    "dio_lightning.landscape": 6,
    "dio_lightning.loaded": 6,
    "dio_lightning.headers": 0,
    "dio_lightning.intensities": 0,
    "dio_lightning.volume_files": 1,
    "dio_lightning.checkpoint_files": 0,
    "dio_lightning.checkpoints": 6,
    "dio_lightning.experiment": 6,
    "dio_lightning.studies": 6,
    "dio_lightning.challenge": 6,
    "dio_lightning.checking": 6,
    "dio_lightning.registration": 6,
    "dio_lightning.sweeps": 6,
    "dio_lightning.rerun": 6,
    "dio_lightning.default_callbacks": 6,
    "dio_lightning.api": 6,
    "dio_lightning.cli": 6,
    "dio_lightning.usage": 1,
    "dio_lightning.parsing": 6,
    "dio_lightning.shipped_configs": 6,
    "dio_lightning.transform_command": 6,
    "dio_lightning.arguments": 6,
    "dio_lightning.run_folders": 6,
    "dio_lightning.resuming": 6,
    "dio_lightning.folder_cli": 6,
    "dio_lightning.variants": 6,
    "dio_lightning.__main__": 6,
    "data_modules": 2,
}
# functions whose length has a reason: compiled kernels unroll the corners of a cell by hand
LONG = {"kernel", "backward", "_compile_forward"}
SAY_NOTHING = {"found", "known", "seen", "told", "there"}
FILES = sorted([*ROOT.glob("dio_lightning/**/*.py"), *ROOT.glob("data_modules/**/*.py")])


def package(module: str) -> str | None:
    """The floor's name for a dotted module, None for what is not ours."""
    parts = module.split(".")
    if parts[0] == "data_modules":
        return "data_modules"
    return ".".join(parts[:2]) if parts[0] == "dio_lightning" and len(parts) > 1 else None


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "dio_lightning"}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_lower_floors_or_its_own_package(path: Path) -> None:
    own = package(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None or own == "dio_lightning.__init__":
        return
    assert own in FLOORS, f"{own} has no floor: give it one"
    for other in filter(None, map(package, imports(path))):
        if other in (own, "dio_lightning.__version__"):
            continue
        assert FLOORS[other] < FLOORS[own] or (FLOORS[own] == 6 and FLOORS[other] == 6), f"{own} imports {other}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[-2] in ("implicit", "ops")], ids=lambda p: p.name)
def test_the_implicit_floor_imports_torch_alone(path: Path) -> None:
    allowed = {"torch", "dio_lightning", "__future__"} | (
        {"numba", "numpy", "triton"} if path.parts[-2] == "ops" else set()
    )
    foreign = {name.split(".")[0] for name in imports(path)} - allowed
    import sys

    assert foreign <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_data_modules_from_the_library_and_nothing_is_too_long(path: Path) -> None:
    if path.is_relative_to(ROOT / "dio_lightning"):
        assert "data_modules" not in {name.split(".")[0] for name in imports(path)}
    assert len(path.read_text().splitlines()) <= 250
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name not in LONG:
            body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{node.name} has {lines} lines"


def test_no_imports_run_in_a_circle() -> None:
    edges = graph()
    assert "dio_lightning.implicit.solution" in edges["dio_lightning.implicit.iterate"], "imports are read"
    assert circles(edges) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}) == [["a", "b", "c"]]
    assert "circles of imports: 0" in report()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_say_what_they_name(path: Path) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names |= {str(getattr(node, key, "")) for key in ("id", "arg", "name")} | (
            {node.attr} if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" else set()
        )
    assert not {name for name in names if name.strip("_") in SAY_NOTHING}


def test_experiments_hold_no_python() -> None:
    assert not list((ROOT / "experiments").glob("**/*.py"))


def test_results_are_kept_once_and_small() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("what is kept is what git says")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    files = [ROOT / name for name in names if name.startswith("experiments/") and (ROOT / name).is_file()]
    figures = [file.with_suffix("") for file in files if file.suffix in (".png", ".svg", ".pdf")]
    assert figures and len(figures) == len(set(figures)), "a figure is kept in one format"
    assert not [file for file in files if file.suffix == ".csv" and file.stat().st_size > 200_000]


def test_every_dependency_is_imported_somewhere() -> None:
    """C: torchmetrics was a dependency that no file imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # tensorboard is imported by Lightning's logger, which every run has
    names = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in project["dependencies"]} - {"tensorboard"}
    names = {{"pillow": "pil"}.get(name, name) for name in names}
    imported = {name.split(".")[0].lower() for path in FILES for name in imports(path)}
    imported |= {"pillow"} if "pil" in imported else set()
    assert names <= imported, names - imported
