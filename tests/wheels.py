"""The source archive and the wheel of this tree, and an environment with the wheel alone; `make dist` and its tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = ("dio_lightning", "data_modules", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")
"""What a build reads."""
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
OFFLINE = ["--no-deps", "--no-index"]
"""Without the index: what the build needs is setuptools, which is here."""
SDIST = "import setuptools.build_meta as backend, sys; backend.build_sdist(sys.argv[1])"


def build(out: Path) -> tuple[Path, Path]:
    """Write the source archive into a folder, and beside it the wheel that is made from that archive alone."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "source"), Path(folder, "built")
        source.mkdir()
        built.mkdir()
        for name in TREE:
            path = ROOT / name
            unbuilt = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / name, ignore=unbuilt) if path.is_dir() else shutil.copy(path, source)
        run([sys.executable, "-c", SDIST, str(built)], source)
        (archive,) = built.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(Path(folder, "unpacked"), filter="data")
        (unpacked,) = Path(folder, "unpacked").iterdir()
        run([*PIP, "wheel", ".", *OFFLINE, "--no-build-isolation", "-w", str(built)], unpacked)
        (wheel,) = built.glob("*.whl")
        return Path(shutil.copy(archive, out)), Path(shutil.copy(wheel, out))


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel in it; what the wheel needs is lent from this one, our code is not."""
    venv.create(folder, symlinks=True)
    (lent,) = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    scheme = {"base": str(folder), "platbase": str(folder)}
    # a line of a .pth adds a folder, whose own .pth files, such as that of an editable install, are not read
    Path(sysconfig.get_path("purelib", vars=scheme), "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    run([*PIP, "--python", str(folder / "bin/python"), "install", *OFFLINE, str(wheel.resolve())], folder)
    return folder / "bin"


def run(words: list[str], folder: Path, **environment: str) -> str:
    """What a command prints that sees nothing of this tree; fails with what it complains about."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(words, cwd=folder, env=outside, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Fill dist/, and run the wheel's command once where nothing else is."""
    out = ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    files = build(out)
    with tempfile.TemporaryDirectory() as folder:
        version = run([str(install(files[1], Path(folder, "fresh")) / "dio-lightning"), "--version"], Path(folder))
    for file in files:
        print(f"wrote {file.relative_to(ROOT)}, {file.stat().st_size / 1e6:.1f} MB")
    print(f"dio-lightning {version.strip()} runs from its wheel")


if __name__ == "__main__":
    main()
