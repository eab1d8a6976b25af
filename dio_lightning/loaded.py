"""A trained method and its test pairs, built as `dio-lightning test` builds them, without a run."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import LightningDataModule

from dio_lightning.api import build
from dio_lightning.callbacks.scores import RegistrationScores
from dio_lightning.models import weights_path
from dio_lightning.modules import RegistrationModule
from dio_lightning.networks.dimension import check_dimension
from dio_lightning.pair import Pair
from dio_lightning.scores.registered import ScoreOptions
from dio_lightning.scores.rows import PairId


@dataclass(frozen=True)
class Loaded:
    """A method in evaluation mode on the device that the trainer would use, and the data set up for its test."""

    name: str
    weights: Path
    module: RegistrationModule
    data: LightningDataModule
    scores: ScoreOptions
    given: str = ""
    """What it was loaded by."""

    def batches(self, limit: int | None = None, labels: bool = True) -> Iterator[tuple[list[PairId], Pair]]:
        """Test batches on the module's device with the ids of their pairs, `limit` pairs at most.

        Args:
            limit: of pairs; None: all of them.
            labels: whether every pair has to have labels to score it by.

        Raises:
            ValueError: if a pair has no labels, or not as many dimensions as the method's networks take.
        """
        source = None if self.weights.suffix in (".yaml", ".yml") else self.weights
        read = 0
        for batch in self.data.test_dataloader():
            count = len(batch["fixed"]) if limit is None else min(len(batch["fixed"]), limit - read)
            if count == 0:
                return
            batch = {key: value[:count] for key, value in batch.items()}
            names = [batch.get(key, [str(read + i) for i in range(count)]) for key in ("fixed_id", "moving_id")]
            ids = [(str(fixed), str(moving)) for fixed, moving in zip(*names, strict=True)]
            check_dimension(self.module, {ids[0][0]: batch["fixed"].ndim - 2}, source)
            if labels and ("fixed_label" not in batch or "moving_label" not in batch):
                raise ValueError(f"the test pair (fixed {ids[0][0]}, moving {ids[0][1]}) has no labels to score it by")
            read += count
            yield ids, self.data.transfer_batch_to_device(batch, self.module.device, 0)


def load_all(weights: Sequence[str], options: Sequence[str], ready: bool = True) -> list[Loaded]:
    """`load` of each.

    Raises:
        FileNotFoundError, ValueError: as `load`, or if weights are given twice.
    """
    given: set[tuple[str, str]] = set()
    for name, path in map(_split, weights):
        if (name, str(path.resolve())) in given:
            raise ValueError(f"{path} is given twice{f' as a seed of {name!r}' if name else ''}")
        given.add((name, str(path.resolve())))
    return [load(text, options, ready) for text in weights]


def load(text: str, options: Sequence[str] = (), ready: bool = True) -> Loaded:
    """A method from WEIGHTS or NAME=WEIGHTS, named by its module's title if no name is given.

    Args:
        text: a checkpoint (.ckpt), weights with their config in them or beside them (.safetensors), a model by its
            name, or a config alone (.yaml).
        options: overrides, as `dio-lightning test` takes them.
        ready: whether its own data are set up; a study may bring others.

    Raises:
        FileNotFoundError: no such file, no config beside the weights, or no data.
        ValueError: weights that do not fit, data that are not as expected, or a trainer of another precision.
    """
    name, path = _split(text)
    source = ["--config" if path.suffix in (".yaml", ".yml") else "--ckpt_path", str(path)]
    with _quiet():
        built = build(["test", *source, "--trainer.logger", "false", "--trainer.devices", "1", *options])
    if built.trainer.precision != "32-true":
        raise ValueError(f"trainer.precision is {built.trainer.precision}, studies run with 32-true alone")
    scores = next(c for c in built.trainer.callbacks if isinstance(c, RegistrationScores))  # pyright: ignore
    module = built.module.eval().to(built.trainer.strategy.root_device)
    if ready:
        built.data.prepare_data()
        built.data.setup("test")
    return Loaded(name or module.title, path, module, built.data, scores.test_options, text)


def _split(text: str) -> tuple[str, Path]:
    """Name ("": not given) and file, which exists; a config whose weights lie beside it stands for them."""
    name, sign, file = text.partition("=")
    if not sign or Path(text).exists():
        name, file = "", text
    elif not name.strip() or not file:
        raise ValueError(f"{text!r}: expected WEIGHTS or NAME=WEIGHTS")
    path = weights_path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected weights (.safetensors, .ckpt) or a config (.yaml)")
    beside = path.with_suffix(".safetensors")
    return " ".join(name.split()), beside if path.suffix == ".yaml" and beside.is_file() else path


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning announces seeds, devices and itself at every build."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
