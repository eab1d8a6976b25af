"""Checkpoints as files: whether one is whole, what it holds, and the config that belongs to it."""

import errno
import hashlib
import re
import struct
import zipfile
from collections.abc import Container, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

CONFIG = "dio_lightning_config"
"""Key of a checkpoint under which its resolved config lies, as YAML text."""

LAYOUT, LAYOUT_KEY = "1", "dio_lightning_layout"
"""How a weights file that carries its config is laid out, and the key of its metadata that says so."""
VERSION_KEY, DIGEST_KEY = "dio_lightning_version", "dio_lightning_sha256"
"""The package that wrote it, and the SHA-256 of its config and weights."""

NO_ARCHIVE = "it was cut off, or is no checkpoint"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that a training left in its folder."""
    return sorted((folder / "checkpoints").glob("*.ckpt"))


def damage(path: str | PathLike[str]) -> str | None:
    """What is wrong with a checkpoint's bytes, in a few words; None if they are as they were written.

    A checkpoint is a ZIP archive, in which torch stores the CRC-32 of every tensor. It never looks at them when it
    reads: a bit that has flipped on a disk would be a wrong weight.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        return "it is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            # torch compresses nothing: an entry that says so has been altered, and must not be unpacked
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            broken = packed[0] if packed else archive.testzip()
    except (zipfile.BadZipFile, struct.error, EOFError, OverflowError, RuntimeError, ValueError):
        # what is no whole archive raises any of these, by where it is broken
        return NO_ARCHIVE
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # an altered offset, before the file's begin
        return NO_ARCHIVE
    return None if broken is None else f"the bytes of {broken} are not those that were written"


def read_checkpoint(path: str | PathLike[str], map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:  # noqa: ANN401
    """A Lightning checkpoint whose bytes are whole; of a .safetensors file the weights alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or one that has been cut or altered since it was written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        # torch.load takes functions and tables too
        device = str(map_location) if isinstance(map_location, str | torch.device) else "cpu"
        return {"state_dict": read_weights(path, device)}
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if reason := damage(path):
        raise ValueError(f"{path} is not a readable checkpoint: {reason}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=weights_only)
    except Exception as error:  # torch raises a dozen kinds for bytes that are no checkpoint
        raise ValueError(f"{path} is not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    return checkpoint


def read_weights(path: str | PathLike[str], device: str = "cpu") -> dict[str, Tensor]:
    """Weights by name, of a .safetensors file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, one of another layout, or one that carries its config and has been altered.
    """
    metadata = weights_metadata(path)
    if (digest := metadata.get(DIGEST_KEY)) and digest != _digest(metadata[CONFIG], Path(path).read_bytes()):
        raise ValueError(f"{path} is not a readable safetensors file: its bytes are not those that were written")
    return load_file(path, device)


def weights_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """What a .safetensors file says of itself; of a file that carries its config, that lies under `CONFIG`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or one of a layout that this version does not read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights {path} do not exist")
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error
    layout = metadata.get(LAYOUT_KEY, LAYOUT)
    if layout != LAYOUT:
        raise ValueError(
            f"{path} has layout {layout}, expected {LAYOUT}: it was written by dio-lightning "
            f"{metadata.get(VERSION_KEY, 'of another version')}"
        )
    return metadata


def complete_weights(weights: dict[str, Tensor], config: str, about: dict[str, str]) -> bytes:
    """A .safetensors file that carries its config, and what else is said about it: it needs no file beside it."""
    digest = _digest(config, save(weights))
    return save(weights, {"format": "pt", LAYOUT_KEY: LAYOUT, CONFIG: config, DIGEST_KEY: digest, **about})


def _digest(config: str, file: bytes) -> str:
    """SHA-256 of a config and of the weights in a .safetensors file, whatever its metadata."""
    data = 8 + int.from_bytes(file[:8], "little")  # behind the header and its length
    return hashlib.sha256(config.encode() + file[data:]).hexdigest()


def config_text(path: Path, checkpoint: dict[str, Any] | None = None) -> str:
    """The resolved config, as YAML, that lies in a checkpoint or beside it, likewise for .safetensors.

    Args:
        path: the file.
        checkpoint: what `read_checkpoint` gave for it, so that it is not read again.

    Raises:
        FileNotFoundError: no such checkpoint, or no config.
        ValueError: not a checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        if text := weights_metadata(path).get(CONFIG):
            return text
        places = [path.with_suffix(".yaml")]
    else:
        text = (checkpoint or read_checkpoint(path)).get(CONFIG)
        if isinstance(text, str):
            return text
        places = [folder / "config.yaml" for folder in list(path.resolve().parents)[:3]]
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{path} has no config: expected {' or '.join(map(str, places))}")


def migrated(keys: Iterable[str], own: Container[str]) -> dict[str, str]:
    """Old keys of weights to today's, for those that a model with keys `own` has under another name.

    Up to version 0.1 DEQReg and the unrolled methods held their update themselves; now their layer does.
    """
    renamed = {}
    for key in keys:
        name = re.sub(r"^updates\.(?=\d)", "layer.update.rules.", re.sub(r"^update\.", "layer.update.", key))
        if name != key and key not in own and name in own:
            renamed[key] = name
    return renamed
