"""What a resumed training takes from its config, and what from its checkpoint."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

CONFIGURED = "dio_lightning_optimizers"
"""Key of a checkpoint under which lies how its optimizers and schedulers were configured."""
RATES = ("lr", "initial_lr", "base_lrs", "_last_lr")


class ConfiguredOptimizers(Callback):
    """A resumed training has the learning rate, and all else, that its config says now.

    Lightning takes the settings of optimizers and schedulers from the checkpoint, along with their states. Here those
    that were configured otherwise than in the run before are set to what is configured now; the learning rate goes on
    at the share of its first value that the schedulers had come to.
    """

    def __init__(self) -> None:
        self._before: list[dict[str, Any]] | None = None
        self._now: list[dict[str, Any]] = []

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note how the run before was configured."""
        self._before = checkpoint.get(CONFIGURED)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how this run is configured; the checkpoint's states come after.

        Raises:
            ValueError: if an optimizer or a scheduler is of another class than the one whose state is resumed.
        """
        self._now = [_settings(part) for part in _parts(trainer)]
        if self._before is None:
            return
        before, now = ([part["class"] for part in parts] for parts in (self._before, self._now))
        if before != now:
            raise ValueError(
                f"the training to go on with has {' and '.join(before)}, expected the same, not {' and '.join(now)}: "
                "start from its weights alone (export, then --ckpt_path WEIGHTS.safetensors)"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add how this run is configured."""
        checkpoint[CONFIGURED] = self._now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set what is configured otherwise now."""
        before, self._before = self._before, None
        for part, old, new in zip(_parts(trainer), before or [], self._now, strict=bool(before)):
            if isinstance(part, Optimizer):
                for group, was, now in zip(part.param_groups, old["groups"], new["groups"], strict=True):
                    _change(group, was, now, new["class"])
            else:
                _change(vars(part), old["settings"], new["settings"], new["class"])
        for config in trainer.lr_scheduler_configs if before else []:
            for scheduler in _with_inner(config.scheduler):
                if hasattr(scheduler, "base_lrs"):
                    scheduler.base_lrs = [_first_rate(group) for group in scheduler.optimizer.param_groups]


def _parts(trainer: Trainer) -> list[Any]:
    """The optimizers, then the schedulers."""
    return [*trainer.optimizers, *(config.scheduler for config in trainer.lr_scheduler_configs)]


def _with_inner(scheduler: Any) -> Iterator[Any]:  # noqa: ANN401
    """A scheduler, and those that it is made of."""
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", []):
        yield from _with_inner(inner)


def _settings(part: Any) -> dict[str, Any]:  # noqa: ANN401
    """Class and plain settings of an optimizer, by group, or of a scheduler."""
    name = type(part).__name__.removeprefix("Lightning")
    if isinstance(part, Optimizer):
        groups = [{**_plain(group), "lr": _first_rate(group)} for group in part.param_groups]
        return {"class": name, "groups": groups}
    return {"class": name, "settings": _plain(part.state_dict())}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers, words and lists of them; rates aside, which follow from the first one."""
    kinds = (bool, int, float, str, type(None))
    return {
        key: value
        for key, value in values.items()
        if key not in RATES
        and (isinstance(value, kinds) or (isinstance(value, list | tuple) and all(isinstance(x, kinds) for x in value)))
    }


def _first_rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))


def _change(values: dict[str, Any], old: dict[str, Any], new: dict[str, Any], name: str) -> None:
    """Set what differs between the two configurations."""
    for key in (key for key in old.keys() & new.keys() if old[key] != new[key]):
        if key == "lr":
            share = values["lr"] / old["lr"] if old["lr"] else 1.0
            values["lr"] = new["lr"] * share
            if "initial_lr" in values:
                values["initial_lr"] = new["lr"]
        else:
            values[key] = new[key]
        rank_zero_info(f"{name}: {key} is {new[key]} from here on, in the checkpoint it was {old[key]}")
