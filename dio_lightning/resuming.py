"""Which checkpoint a command starts from."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from dio_lightning.callbacks.checkpoints import newest
from dio_lightning.checkpoint_files import damage, read_checkpoint
from dio_lightning.run_folders import queued_again


def starting_point(wanted: str | None, command: str, trainer: Trainer, model: LightningModule) -> str | Path | None:
    """The checkpoint or weights that a command starts from, whole; None for none, a word for Lightning to look up.

    A job that SLURM has queued again goes on from its newest checkpoint, whether it says `--ckpt_path last` or not.

    Args:
        wanted: as given to `--ckpt_path`.
        command: fit, validate, test or predict.
        trainer: with the run's folder and the checkpoints' callbacks.
        model: without weights it needs no checkpoint.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or none that is whole.
    """
    if wanted is None and command == "fit" and queued_again(Path(trainer.default_root_dir)):
        wanted = "last"
    if wanted is None or wanted == "hpc" or wanted.startswith("registry"):
        if wanted is None and command != "fit" and any(True for _ in model.parameters()):
            rank_zero_warn("no --ckpt_path: the network's weights are untrained")
        return wanted
    path: Path | None = Path(wanted)
    if wanted in ("last", "best"):
        callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        folders = [Path(c.dirpath) for c in callbacks if c.dirpath is not None]
        if wanted == "last":
            path = newest_of_run(Path(trainer.default_root_dir), folders)
        else:
            path = next((folder / "best.ckpt" for folder in folders if (folder / "best.ckpt").is_file()), None)
        if path is None and command == "fit":
            rank_zero_info(f"no {wanted} checkpoint under {trainer.default_root_dir} yet: starting afresh")
            return None
        if path is None:
            raise FileNotFoundError(f"there is no {wanted} checkpoint in {' or '.join(map(str, folders))}")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix != ".safetensors" and (reason := damage(path)):
        raise ValueError(f"{path} is not a readable checkpoint: {reason}")
    return path


def newest_of_run(root: Path, folders: Sequence[Path]) -> Path | None:
    """The checkpoint that is furthest on: last.ckpt of one of the folders, or what SLURM's signal left in the root.

    Raises:
        ValueError: if there are such files and none is whole.
    """
    problems, whole = [], []
    numbered = sorted(root.glob("hpc_ckpt_*.ckpt"), key=lambda p: int("0" + "".join(filter(str.isdigit, p.stem))))
    for path in reversed(numbered):
        if (reason := damage(path)) is None:
            whole.append(path)
            break
        problems.append(f"{path} is not a readable checkpoint: {reason}")
    for folder in folders:
        try:
            whole += [path for path in [newest(folder)] if path is not None]
        except ValueError as error:
            problems.append(str(error))
    if problems and not whole:
        raise ValueError("; ".join(problems))
    for problem in problems:
        rank_zero_warn(f"{problem}; {whole[0]} is used")
    if len(whole) < 2:
        return whole[0] if whole else None
    return max(whole, key=lambda path: int(read_checkpoint(path).get("global_step", 0)))
