"""Checkpoints that carry their config, are never half-written, and can be published as plain weights."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import torch
import yaml
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import save
from torch import nn

from dio_lightning import __version__
from dio_lightning.callbacks.checkpoints import Best, Last, newest
from dio_lightning.checkpoint_files import (
    CONFIG,
    VERSION_KEY,
    complete_weights,
    config_text,
    migrated,
    read_checkpoint,
    read_weights,
)
from dio_lightning.files import replacing, write_atomic
from dio_lightning.models.card import CARD, Card

__all__ = [
    "CONFIG",
    "AtomicCheckpointIO",
    "Best",
    "Last",
    "export_weights",
    "load_weights",
    "newest",
    "trained_config",
]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: Lightning's own goes through /tmp, where a rename may become a copy."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: object = None
    ) -> None:
        """Write a checkpoint; whoever opens the path sees the old one or the new one, even if the machine stops.

        Raises:
            OSError: with the path, if it cannot be written.
        """
        with replacing(path) as temporary, temporary.open("wb") as file:
            remembering = _Remembering(file)
            try:
                torch.save(checkpoint, cast(IO[bytes], remembering))
            except RuntimeError:
                if remembering.error is not None:
                    raise remembering.error from None
                raise
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, location: storage,  # noqa: ANN401
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint that is whole; plain data alone unless `weights_only` is False.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a checkpoint, or one that has been cut or altered since it was written.
        """
        return read_checkpoint(path, map_location, weights_only is not False)


class _Remembering:
    """A file to write to that keeps what the system said: torch makes `unexpected pos` of a full disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write it."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Nothing waits here."""


def trained_config(path: Path) -> dict[str, Any]:
    """What a checkpoint was trained with, as far as it concerns other runs: model, data, seed, callbacks.

    Raises:
        FileNotFoundError: no such checkpoint, or no config in it or beside it.
        ValueError: not a checkpoint.
    """
    return _lasting(config_text(path))


def _lasting(text: str) -> dict[str, Any]:
    """What of a resolved config (its YAML) concerns other runs."""
    config = yaml.safe_load(text) or {}
    kept = {key: config[key] for key in ("seed_everything", "model", "data") if config.get(key) is not None}
    callbacks = (config.get("trainer") or {}).get("callbacks")
    return kept | ({"trainer": {"callbacks": callbacks}} if callbacks else {})


def load_weights(model: nn.Module, path: Path) -> None:
    """Weights of a .safetensors file into a model that must have exactly these.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or weights are missing, unknown or of another shape.
    """
    weights, own = read_weights(path), model.state_dict()
    for old, new in migrated(weights, own).items():
        weights[new] = weights.pop(old)
    wrong = {
        "missing in the file": sorted(own.keys() - weights.keys()),
        "unknown to the model": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape),
    }
    problems = [f"{len(names)} {what} (first: {names[0]})" for what, names in wrong.items() if names]
    if problems:
        raise ValueError(f"{path}: weights do not fit the configured model: {', '.join(problems)}")
    model.load_state_dict(weights)


def export_weights(
    checkpoint: Path,
    out: Path,
    overwrite: bool = False,
    half: bool = False,
    card: Path | None = None,
    config: Path | None = None,
) -> list[Path]:
    """Write a checkpoint's weights to `out` (.safetensors) and its resolved config to the .yaml beside it.

    With `half`, weights are rounded to float16, in half the space; they are float32 again when loaded. With a card (a
    YAML file of `models.Card`), config and card lie in the file itself, and there is none beside it. The config may be
    another than the training's: one that a test or validation left, with other settings of the solver.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: no such checkpoint, card or config.
        FileExistsError: an output is there and overwrite is off.
        ValueError: `out` does not end in .safetensors, not a checkpoint, or not a card.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: weights are exported to a file that ends in .safetensors")
    files = [out] if card is not None else [out, out.with_suffix(".yaml")]
    for file in files:
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists: choose another name, or pass --overwrite")
    resolved = config_text(checkpoint) if config is None else config.read_text(encoding="utf-8")
    text = yaml.safe_dump(_portable(_lasting(resolved)), sort_keys=False)
    state = read_checkpoint(checkpoint)["state_dict"]
    weights = {name: value.detach().clone().contiguous() for name, value in state.items()}
    if half:
        weights = {name: value.half() if value.dtype == torch.float32 else value for name, value in weights.items()}
    if card is not None:
        about = replace(Card.parsed(card.read_text(encoding="utf-8"), str(card)), version=__version__)
        with replacing(out) as temporary:
            temporary.write_bytes(complete_weights(weights, text, {CARD: about.text(), VERSION_KEY: __version__}))
        return files
    digest = hashlib.sha256(text.encode()).hexdigest()
    with replacing(out) as temporary:
        # save_file would make a file that only its owner may read
        temporary.write_bytes(save(weights, metadata={"format": "pt", "config_sha256": digest}))
    write_atomic(out.with_suffix(".yaml"), text)
    return files


def _portable(value: Any) -> Any:  # noqa: ANN401
    """Absolute paths cut to their last part: a published file names no folder of one machine."""
    if isinstance(value, dict):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    if isinstance(value, str) and "\n" not in value and Path(value).is_absolute():
        return Path(value).name
    return value
