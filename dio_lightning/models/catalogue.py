"""Names of models, and the files that they stand for."""

from os import PathLike, sep
from pathlib import Path

from dio_lightning.usage import nearest

FOLDER = Path(__file__).parent
"""Where the files lie: NAME.safetensors."""


def model_paths() -> dict[str, Path]:
    """The files of the models by name, sorted."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def weights_path(given: str | PathLike[str]) -> Path:
    """The file of weights that is meant: of a model by its name, or the path that was given.

    What has a separator or a suffix is a path. A single word is the name of a model, even where a file of that name
    lies here; if it is no model's, such a file is meant.

    Raises:
        FileNotFoundError: a single word that is neither a model's name nor a file.
    """
    path = Path(given)
    models = model_paths()
    if _has_separator(given) or path.suffix:
        return path
    if path.name in models:
        return models[path.name]
    if path.exists():
        return path
    names = ", ".join(models) or "none"
    raise FileNotFoundError(
        f"{path} is neither a file of weights nor a model that comes with the package, which are {names}"
        f"{nearest(path.name, models)}"
    )


def with_models(words: list[str]) -> list[str]:
    """A command line on which the model that --ckpt_path names is its file.

    Words that stand for a checkpoint of a run (`last`, `best`, ...) stay.

    Raises:
        FileNotFoundError: as `weights_path`.
    """
    result: list[str] = []
    for word in words:
        option, sign, value = word.partition("=")
        if sign and option == OPTION:
            word = f"{option}={_of_command(value)}"
        elif result and result[-1] == OPTION:
            word = _of_command(word)
        result.append(word)
    return result


OPTION = "--ckpt_path"
OF_A_RUN = ("last", "best", "hpc", "null", "None", "")
"""What --ckpt_path takes for checkpoints of the run itself."""


def _of_command(checkpoint: str) -> str:
    if checkpoint in OF_A_RUN or checkpoint.startswith(("registry", "-")):
        return checkpoint
    path = weights_path(checkpoint)
    return checkpoint if path == Path(checkpoint) else str(path)


def _has_separator(given: str | PathLike[str]) -> bool:
    return sep in str(given) or "/" in str(given)
