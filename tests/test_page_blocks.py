"""Every code block of the documentation: Python runs, shell lines are read as the program reads them, YAML is a config.

docs/two_scans.md runs on real scans, in tests/test_two_scans.py; commands run in tests/test_page_commands.py.
"""

import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from blocks import OUTSIDE, ROOT, Block, Reader, as_a_reader, blocks, commands, reader, stopping
from scans import affine_of, moved, scene, turned, write
from test_page_commands import run_here
from test_pages import PAGES

from dio_lightning.cli import main
from dio_lightning.models import model_paths
from dio_lightning.shipped_configs import shipped_configs
from dio_lightning.transforms import Affine, Chain, write_transform

ALL = {page: blocks(page) for page in PAGES}
LANGUAGES = {"bash", "python", "yaml"}
WITH = {
    language: [page for page, found in ALL.items() if any(b.language == language for b in found)]
    for language in LANGUAGES
}
LONG = "experiments/README.md"
"""Its forty commands of minutes and hours are read by their configs, weights and files alone."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the repository's files lie where a clone has them."""
    return as_a_reader(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def parser():
    return reader()


def save(block: Block) -> None:
    """What the reader saves under the block's title."""
    if block.title:
        Path(block.title).write_text(block.code, encoding="utf-8")


def braces(word: str) -> list[str]:
    """What a shell makes of the first {a,b} of a word."""
    whole = re.fullmatch(r"(.*?)\{(.*?)\}(.*)", word)
    return [whole[1] + part + whole[3] for part in whole[2].split(",")] if whole else [word]


def scans(folder: Path) -> None:
    """The files that docs/register.md calls by short names, small."""
    size = (14, 16, 12)
    affine = affine_of(size, 8.0)
    fixed = scene(size).astype(np.float32)
    for name, values in (
        ("fixed", fixed),
        ("moving", np.roll(fixed, 1, axis=0)),
        ("atlas", (fixed > 60).astype(np.uint8)),
        ("no_lesion", np.ones(size, np.uint8)),
    ):
        write(folder, f"{name}.nii.gz", values, affine)
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    write_transform(folder / "warp.h5", Chain([Affine(shift)]))


def names(folder: Path, page: str) -> dict[str, object]:
    """What a page takes for granted."""
    if page != "docs/register.md":
        return {}
    scans(folder)
    points = np.array([[10.0, -4.0, 22.0], [-20.0, 16.0, 8.0]])
    return {
        **{side: nib.load(folder / f"{side}.nii.gz") for side in ("fixed", "moving")},
        **{"p": points, "q": points + np.array([8, 0, 0])},
    }


@pytest.mark.parametrize("page", [page for page in WITH["python"] if page != "docs/two_scans.md"])
def test_python_runs_from_the_first_block_to_the_last(page: str, folder: Path) -> None:
    space = names(folder, page)
    for block in ALL[page]:
        save(block)
        if block.language == "python" and block.title is None:
            # a traceback names the page and the line in it
            exec(compile("\n" * block.line + block.code, str(ROOT / page), "exec"), space)


@pytest.mark.parametrize("page", [page for page in WITH["bash"] if page != LONG])
def test_shell_lines_are_read_by_the_program(page: str, folder: Path, parser, monkeypatch) -> None:
    monkeypatch.setenv("DIO_DATA", "/data")
    for block in ALL[page]:
        save(block)
    program, variables = stopping(monkeypatch), {"DIO_DATA": "/data"}
    program.reader, run = parser, run_here(page)
    for block in ALL[page]:
        for words in commands(block.code, variables) if block.language == "bash" else ():
            if tuple(words) in run and words[1] != "fit":
                continue  # tests/test_page_commands.py; which folders are trained in is noted here
            try:
                program.check(words)
            except BaseException as error:
                raise AssertionError(f"{page}, below line {block.line}: {' '.join(words)}") from error


def test_the_first_screen_of_the_readme_runs(folder: Path, capsys) -> None:
    """On small scans in the places of the two brains."""
    size, brains = (24, 26, 22), folder / "brain_real"
    brains.mkdir()
    fixed, affine = scene(size), affine_of(size, 6.0)
    moving = moved(fixed, affine, turned(size, 8, 6))
    for name, values in (("mni152_2mm", fixed), ("colin27_2mm", moving), ("colin27_2mm_aal", moving > 60)):
        write(brains, f"{name}.nii.gz", values.astype(np.uint8), affine)
    block = next(block for block in ALL["README.md"] if block.language == "bash")
    ours = [words for words in commands(block.code, {"DIO_DATA": str(folder)}) if words[0] != "make"]
    assert [words[1] for words in ours] == ["register", "transform"]
    for words in ours:
        main(words[1:])
    assert "good: " in capsys.readouterr().out
    labels, warped = (
        np.asarray(nib.load(folder / f"runs/two_scans/{name}").dataobj) for name in ("aal.nii.gz", "warped.nii.gz")
    )
    overlap = 2 * (labels & (fixed > 60)).sum() / (labels.sum() + (fixed > 60).sum())
    assert overlap > 0.97 and labels.shape == warped.shape == size


def test_the_long_commands_name_configs_weights_and_files_that_are_there(folder: Path) -> None:
    variables, seen = {"DIO_DATA": "/data"}, 0
    named = {"last", *model_paths(), *shipped_configs()}
    for block in ALL[LONG]:
        for words in commands(block.code, variables) if block.language == "bash" else ():
            for before, word in zip(["", *words], words, strict=False):
                path = word.rpartition("=")[2]
                if before in ("--config", "--ckpt_path") or path.startswith(("experiments/", "benchmarks/", "tests/")):
                    if "$" not in path and not path.startswith("runs/") and path not in named:
                        for file in braces(path):
                            assert [*Path().glob(file)], f"line {block.line}: {file}"
                        seen += 1
    assert seen > 40


@pytest.mark.parametrize("page", WITH["yaml"])
def test_yaml_is_a_config(page: str, folder: Path, parser) -> None:
    for block in ALL[page]:
        save(block)
    program = Reader(reader=parser)
    for block in ALL[page]:
        if block.language == "yaml":
            content = yaml.safe_load(block.code)
            file = Path(f"{Path(page).stem}_{block.line}.yaml")
            file.write_text(block.code, encoding="utf-8")
            config = program.parsed(["fit", "--config", "dio/demo", "--config", str(file)])
            assert content.keys() <= {"data", "model", "trainer", "seed_everything"}
            assert "data" not in content or config.data.class_path == content["data"]["class_path"]


def test_every_block_has_a_language_that_is_tested() -> None:
    assert {block.language for page in PAGES for block in ALL[page]} <= LANGUAGES | {"text"}
    assert len(WITH["python"]) > 6 and len(WITH["bash"]) > 12 and all(OUTSIDE.values())


@pytest.mark.parametrize(
    "line",
    [
        "dio-lightning fit --config dio/nothing",
        "dio-lightning test --ckpt_path brain-t1 --model.layer.iteratoins [1]",
        "dio-lightning register a.nii b.nii --output x",
        "dio-lightning test --ckpt_path runs/nobody/checkpoints/best.ckpt",
        "dio-lightning evaluate fields --data Lern2Reg --data.root x",
        "dio-lightning study convergance x --out y",
        "dio-lightning check --data Learn2Reg --data.roots x",
        "make everything",
        "python benchmarks/starts.py --worng 3",
        "sbatch experiments/slurm/no.sbatch dio/demo",
        "pip install this",
    ],
)
def test_a_line_that_would_be_refused_is_not_read(line: str, parser, monkeypatch, folder: Path, capsys) -> None:
    program = stopping(monkeypatch)
    program.reader = parser
    with pytest.raises((SystemExit, ValueError, AssertionError, FileNotFoundError)):
        program.check(line.split())


def test_variables_and_continued_lines() -> None:
    code = 'W="--a 1"   # a comment\nX=2 dio-lightning test $W \\\n    --b ${X} > out.json\n'
    assert list(commands(code, {})) == [["dio-lightning", "test", "--a", "1", "--b", "2"]]
    assert os.environ.get("X") is None
