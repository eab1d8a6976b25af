"""Checkpoints that carry their config, are never half-written, and can be published as plain weights."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dio_lightning.callbacks.files import replacing, write_atomic

CONFIG = "dio_lightning_config"
"""Key of a checkpoint under which its resolved config lies, as YAML text."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: Lightning's own goes through /tmp, where a rename may become a copy."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: object = None
    ) -> None:
        """Write a checkpoint; whoever opens the path sees the old one or the new one."""
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


class Best(ModelCheckpoint):
    """best.ckpt by validation Dice; data without labels have none."""

    def __init__(self, dirpath: str | Path, monitor: str = "val/dice", mode: str = "max") -> None:
        super().__init__(dirpath, "best", monitor, mode=mode, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score so far; that of a run in another folder says nothing of this one."""
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # Lightning raises here when validation ran and did not log the score
        if self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)


class Last(ModelCheckpoint):
    """last.ckpt after every epoch; ModelCheckpoint's own `save_last` follows the best and may be epochs behind."""

    def __init__(self, dirpath: str | Path) -> None:
        super().__init__(dirpath, "last", save_on_train_epoch_end=True, enable_version_counter=False)


def trained_config(path: Path) -> dict[str, Any]:
    """What a checkpoint was trained with, as far as it concerns other runs: model, data, seed, callbacks.

    Raises:
        FileNotFoundError: no such checkpoint, or no config in it or beside it.
        ValueError: not a checkpoint.
    """
    config = yaml.safe_load(_config_text(path)) or {}
    kept = {key: config[key] for key in ("seed_everything", "model", "data") if config.get(key) is not None}
    callbacks = (config.get("trainer") or {}).get("callbacks")
    return kept | ({"trainer": {"callbacks": callbacks}} if callbacks else {})


def load_weights(model: nn.Module, path: Path) -> None:
    """Weights of a .safetensors file into a model that must have exactly these.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or weights are missing, unknown or of another shape.
    """
    weights = _read_weights(path)
    own = model.state_dict()
    wrong = {
        "missing in the file": sorted(own.keys() - weights.keys()),
        "unknown to the model": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape),
    }
    found = [f"{len(names)} {what} (first: {names[0]})" for what, names in wrong.items() if names]
    if found:
        raise ValueError(f"{path}: weights do not fit the configured model: {', '.join(found)}")
    model.load_state_dict(weights)


def export_weights(checkpoint: Path, out: Path, overwrite: bool = False, half: bool = False) -> None:
    """Write a checkpoint's weights to `out` (.safetensors) and its resolved config to the .yaml beside it.

    With `half`, weights are rounded to float16, in half the space; they are float32 again when loaded.

    Raises:
        FileNotFoundError: no such checkpoint.
        FileExistsError: an output is there and overwrite is off.
        ValueError: `out` does not end in .safetensors, or not a checkpoint.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: weights are exported to a file that ends in .safetensors")
    for file in (out, out.with_suffix(".yaml")):
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists: choose another name, or pass --overwrite")
    text = yaml.safe_dump(_portable(trained_config(checkpoint)), sort_keys=False)
    state = _load(checkpoint)["state_dict"]
    weights = {name: value.detach().clone().contiguous() for name, value in state.items()}
    if half:
        weights = {name: value.half() if value.dtype == torch.float32 else value for name, value in weights.items()}
    digest = hashlib.sha256(text.encode()).hexdigest()
    with replacing(out) as temporary:
        # save_file would make a file that only its owner may read
        temporary.write_bytes(save(weights, metadata={"format": "pt", "config_sha256": digest}))
    write_atomic(out.with_suffix(".yaml"), text)


def _config_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        places = [path.with_suffix(".yaml")]
    else:
        text = _load(path).get(CONFIG)
        if isinstance(text, str):
            return text
        places = [folder / "config.yaml" for folder in list(path.resolve().parents)[:3]]
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{path} has no config: expected {' or '.join(map(str, places))}")


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for bytes that are no checkpoint
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    return checkpoint


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error


def _portable(value: Any) -> Any:  # noqa: ANN401
    """Absolute paths cut to their last part: a published file names no folder of one machine."""
    if isinstance(value, dict):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    if isinstance(value, str) and "\n" not in value and Path(value).is_absolute():
        return Path(value).name
    return value
