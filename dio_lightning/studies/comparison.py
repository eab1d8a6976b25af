"""One table out of finished test runs, with paired significance."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dio_lightning.callbacks.files import replacing
from dio_lightning.studies.comparison_runs import read_methods
from dio_lightning.studies.comparison_study import study
from dio_lightning.studies.comparison_text import latex, markdown, p_values_csv, table_csv


def compare(
    runs: Sequence[str],
    out: Path,
    reference: str | None = None,
    metrics: Sequence[str] | None = None,
    alpha: float = 0.05,
    overwrite: bool = False,
) -> str:
    """Write OUT.md, OUT.tex, OUT.csv and OUT_pvalues.csv, all or none; returns the Markdown.

    Args:
        runs: folders that `dio-lightning test` wrote, as FOLDER or NAME=FOLDER; one NAME several times: its seeds.
        out: the Markdown file; the others lie beside it.
        reference: the method that the others are tested against; by default the last.
        metrics: columns, by their name in metrics.csv.
        alpha: level of significance.
        overwrite: replace files that are there.

    Raises:
        FileNotFoundError: a folder without metrics.csv.
        FileExistsError: an output is there.
        ValueError: runs that cannot be compared, or an option that cannot be.
    """
    if out.suffix != ".md":
        raise ValueError(f"{out}: expected a file ending in .md")
    paths = [out, out.with_suffix(".tex"), out.with_suffix(".csv"), out.with_name(f"{out.stem}_pvalues.csv")]
    for path in paths:
        if path.is_dir() or (path.exists() and not overwrite):
            raise FileExistsError(f"{path} exists: {'it is a folder' if path.is_dir() else 'give --overwrite'}")
    result = study(read_methods(runs), metrics, reference, alpha)
    text = markdown(result)
    contents = [text, latex(result, out.stem), table_csv(result), p_values_csv(result)]
    with ExitStack() as stack:
        temporary = [stack.enter_context(replacing(path)) for path in paths]
        for path, content in zip(temporary, contents, strict=True):
            path.write_text(content, encoding="utf-8", newline="")
    return text
