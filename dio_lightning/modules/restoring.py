"""A trained module from its checkpoint alone."""

from argparse import ArgumentError
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from torch import nn

from dio_lightning.checkpoint_files import CONFIG, config_text, migrated, read_checkpoint
from dio_lightning.errors import one_sentence
from dio_lightning.models import weights_path

Module = TypeVar("Module", bound=LightningModule)


def restored(
    kind: type[Module],
    path: str | PathLike[str],
    map_location: Any,  # noqa: ANN401
    strict: bool,
    weights_only: bool,
    arguments: Mapping[str, Any],
) -> Module:
    """The module of a checkpoint; see `RegistrationModule.load_from_checkpoint`."""
    path = weights_path(path)
    checkpoint = read_checkpoint(path, map_location, weights_only)
    # a config beside the file may be that of another run: with arguments at hand it is not looked for
    beside = CONFIG not in checkpoint and not arguments
    config = _model_config(path, checkpoint) if CONFIG in checkpoint or beside else None
    module = _built(kind, path, config, arguments)
    fill(module, path, checkpoint, strict)
    devices = {value.device for value in checkpoint["state_dict"].values()}
    return module.to(devices.pop()) if len(devices) == 1 else module


def untrained(kind: type[Module], config: Path) -> Module:
    """The module of a config, of a method that has nothing to train.

    Raises:
        ValueError: if it names no method, or one that has weights.
    """
    model = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{config} names no model, expected the config of a method")
    module = _built(kind, config, model, {})
    weights = sum(p.numel() for p in module.parameters())
    if weights:
        raise ValueError(f"{config} has {weights:,} weights to be trained, expected a file that holds them")
    return module


def fill(module: LightningModule, path: str | PathLike[str], checkpoint: dict[str, Any], strict: bool = True) -> None:
    """Put the weights of a checkpoint, read from `path`, into a module.

    Raises:
        ValueError: weights are missing, unknown (unless not `strict`) or of another shape.
    """
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
    except RuntimeError as error:
        first, *others = str(error).splitlines()[1:] or [str(error)]
        raise ValueError(
            f"{path}: weights do not fit the module: {first.strip()} ({1 + len(others)} such problems)"
        ) from error


def migrate(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Keys of weights that an earlier version saved become today's; see `checkpoint_files.migrated`."""
    if not prefix:
        own = module.state_dict()
        for old, new in migrated(state, own).items():
            state[new] = state.pop(old)


def _model_config(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    try:
        config = yaml.safe_load(config_text(path, checkpoint)) or {}
    except FileNotFoundError:
        return None
    return config.get("model")


def _built(kind: type[Module], path: Path, config: dict[str, Any] | None, arguments: Mapping[str, Any]) -> Module:
    if config is None:
        try:
            return kind(**arguments)
        except TypeError as error:
            raise ValueError(
                f"{path} has no config, so that all arguments of {kind.__name__} must be given ({error})"
            ) from error
    place, _, name = config["class_path"].rpartition(".")
    try:
        method = getattr(import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} was trained with {config['class_path']}, which cannot be imported") from error
    if not issubclass(method, kind):
        raise ValueError(f"{path} is a checkpoint of {name}, expected one of {kind.__name__}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(method, "model", skip=set(arguments), instantiate=False)
    given = {key: value for key, value in config.get("init_args", {}).items() if key not in arguments}
    try:
        settings = parser.parse_object({"model": given})
    except ArgumentError as error:
        raise ValueError(f"{path}: its config is not one of {name}: {one_sentence(str(error))}") from error
    parts = parser.instantiate_classes(settings)["model"]
    return method(**parts.as_dict(), **arguments)
