"""Shell blocks of the documentation run line by line, in the folder of a reader whose files are small, for one step.

What is put into a line stands before the reader's own words, which win. tests/test_page_blocks.py reads the others, on
the page of results, of make, of SLURM, of W&B and of sweeps: they take hours, a cluster or an account.
"""

import re
import shutil
from pathlib import Path

import pytest
from blocks import as_a_reader, blocks, commands
from readers_files import brains, real, scans

from dio_lightning.cli import RUNS, main

WRITTEN = {
    "docs/register.md": ("results/report.html", "derivatives/dataset_description.json", "chain.h5", "warp_fsl.nii.gz"),
    "docs/prompts.md": ("result/report.json",),
    "docs/data.md": ("runs/fields/predictions", "runs/submission.zip", "runs/identity_brains/summary.json"),
    "docs/own_data.md": ("runs/dio_brains/checkpoints/best.ckpt", "runs/mine/checkpoints/best.ckpt"),
    "docs/own_method.md": ("runs/bounded/checkpoints/best.ckpt", "runs/bounded/test/summary.json"),
    "docs/own_similarity.md": (),
    "docs/models.md": ("result/report.html",),
    "docs/methods.md": ("runs/lab/deqreg/checkpoints/last.ckpt", "runs/table.md", "runs/convergence/convergence.md"),
}
"""Pages whose lines are run, and some of what they leave."""
ELSEWHERE = {
    "export --ckpt_path runs/dio_contrast": "of a training of an hour; tests/test_models.py exports such a card",
    "validate --ckpt_path runs/dio_contrast": "of the same; such settings are tried in tests/test_rules.py",
    "rerun": "starts processes; tests/test_rerun.py does",
    "study shift": "needs images of other contrasts; tests/test_study_shift.py runs it on small ones",
}
"""Beginnings of our lines that are read alone, and why."""
LIMITS = "--trainer.accelerator cpu --trainer.enable_progress_bar false"
LIMITS += "".join(f" --trainer.limit_{what}_batches 1" for what in ("train", "val", "test", "predict"))
MORE = {
    "fit": "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1",
    "register": "--stages deformable --jobs 1",
    "study": "--limit 1 --steps 2 --at 1 2",
}
AGAIN = {"register": "result", "fit": "runs/demo"}
"""Folders of lines of which a reader takes one."""


def run_here(page: str) -> set[tuple[str, ...]]:
    """The lines of a page that this file runs; of tests of one model with other settings the first, others are read."""
    lines, kinds, variables = set[tuple[str, ...]](), set[tuple[str, ...]](), {"DIO_DATA": "/data"}
    for block in blocks(page) if page in WRITTEN else ():
        for words in commands(block.code, variables) if block.language == "bash" else ():
            alike = words[1:2] == ["test"] and "--trainer.default_root_dir" not in words
            kind = tuple(words[1 : 4 if alike else None])
            ours = Path(words[0]).name == "dio-lightning" and not " ".join(kind).startswith(tuple(ELSEWHERE))
            if ours and kind not in kinds:
                kinds.add(kind)
                lines.add(tuple(words))
    return lines


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """The folder of a reader."""
    as_a_reader(tmp_path, monkeypatch)
    brains(tmp_path / "data/brains_2mm")
    real(tmp_path / "data/brain_real")
    scans(tmp_path)
    # pictures are looked at by tests of theirs
    monkeypatch.setattr("dio_lightning.callbacks.panels.Panels.on_test_batch_end", lambda *_: None)
    monkeypatch.setattr("dio_lightning.callbacks.html_report.Report.on_test_end", lambda *_: None)
    for name in ("my_folder", "FOLDER"):
        (tmp_path / name).symlink_to("data/brains_2mm")
    return tmp_path


def shortened(words: list[str]) -> list[str]:
    """A line with what makes it quick; the reader's own words win, but for numbers of processes and of study steps."""
    command, rest = words[0], words[1:]
    if command == "study":
        place = rest.index("--")
        return [command, *rest[:place], *MORE[command].split(), *rest[place:], *LIMITS.split()]
    if command == "register":
        more = MORE[command].split() if "--csv" in rest else MORE[command].split()[:2]
        return [command, *rest, *(more if "--stages" not in rest else [])]
    if command not in RUNS:
        return words
    few = (
        ["--model.layer.iterations", "[1, 1, 1]"] if re.search(r"dio/|brain-t1|classical/demo", " ".join(rest)) else []
    )
    return [command, *LIMITS.split(), *MORE.get(command, "").split(), *few, *rest]


def runs(words: list[str]) -> None:
    """Run a line of ours; a result that has failed is one, too: the scans are a few voxels wide."""
    if words[0] in AGAIN:
        shutil.rmtree(AGAIN[words[0]], ignore_errors=True)
    try:
        main(shortened(words))
    except SystemExit as stop:
        assert not stop.code, f"exit code {stop.code}"


@pytest.mark.slow
@pytest.mark.parametrize("page", WRITTEN)
def test_the_commands_of_a_page_run(page, reader, capsys) -> None:
    everything, variables, chosen = blocks(page), {"DIO_DATA": "/data"}, run_here(page)
    for block in everything:
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
    for block in everything:
        for words in commands(block.code, variables) if block.language == "bash" else ():
            if tuple(words) in chosen:
                try:
                    runs([re.sub(r"^/data", str(reader / "data"), word) for word in words[1:]])
                except BaseException as error:
                    said = capsys.readouterr().err[-500:]
                    raise AssertionError(f"{page}, below line {block.line}: {' '.join(words)}: {said}") from error
    lacking = [name for name in WRITTEN[page] if not Path(name).exists()]
    assert not lacking, lacking
