"""One experiment from its configs and the command line: checkpoint < config < command line."""

import importlib
import importlib.util
import logging
import os
import reprlib
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dio_lightning.arguments import ordered, short, without_leftovers
from dio_lightning.callbacks.dimensions import Dimensions
from dio_lightning.callbacks.loggers import finish, stay_in
from dio_lightning.callbacks.run_config import RunConfig
from dio_lightning.callbacks.scores import RegistrationScores
from dio_lightning.checkpoint_files import read_checkpoint
from dio_lightning.checkpoints import AtomicCheckpointIO, load_weights
from dio_lightning.default_callbacks import with_defaults
from dio_lightning.errors import TERMINATED
from dio_lightning.folder_cli import FolderCLI
from dio_lightning.models.catalogue import with_models
from dio_lightning.modules import RegistrationModule
from dio_lightning.modules.restoring import fill
from dio_lightning.ops import chosen
from dio_lightning.parsing import Parser, with_checkpoint_config
from dio_lightning.resuming import starting_point
from dio_lightning.run_folders import default_folder, names_folder
from dio_lightning.shipped_configs import with_shipped
from dio_lightning.variants import variant

TRAINER_DEFAULTS = {
    # the solver differentiates inside validation, test and prediction too
    "inference_mode": False,
}


SUBCOMMAND_DEFAULTS = {
    # RegistrationScores prints a better table
    "test": {"verbose": False},
    # fields of all pairs together need not fit into memory: FieldWriter has them on disk
    "predict": {"return_predictions": False},
}


class RegistrationCLI(FolderCLI):
    """LightningCLI with our defaults; a command line that changes the solver at test time is obeyed."""

    def __init__(self, args: list[str], folder: Path | None = None, runs: bool = True) -> None:
        """Build the experiment and run it.

        Args:
            args: the command line, the command first.
            folder: of the run, where neither the command line nor a config names one.
            runs: whether it runs at once; without, `restore` and `start` wait to be called.

        Raises:
            FileNotFoundError, ValueError: for a command line that cannot be parsed or built.
        """
        self.runs, args = runs, with_models(with_shipped(args))
        self.command = next(iter(args), "")
        self.named = folder is None and names_folder(args)
        self.folder = folder or default_folder(args)
        super().__init__(
            RegistrationModule,
            LightningDataModule,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS | {"default_root_dir": str(self.folder)},
            seed_everything_default=0,
            parser_class=Parser,
            # an abbreviation is a misspelt key that happens to work
            parser_kwargs={"allow_abbrev": False} | {name: {"allow_abbrev": False} for name in self.subcommands()},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse the command line behind the config of the checkpoint that it names."""
        typed = ordered(args)
        sources = with_checkpoint_config(typed)
        self.variant = variant(sources, trained=sources is not typed)
        words, changes = without_leftovers(sources)
        for change in changes:
            for key, value in change.left.items():
                place, kinds = ".".join((*change.place, key)), f"{short(change.old)}, not {short(change.new)}"
                rank_zero_info(f"{place} is no longer {reprlib.repr(value)}: it was set for {kinds}")
        self.config = parser.parse_args(words)
        self.take_overwrite()

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would put the checkpoint's settings over the command line, silently."""

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        root = self._root(config)
        if config["logger"] in (None, True):
            csv = CSVLogger(root, name="logs")
            config["logger"] = [csv, TensorBoardLogger(root, name="logs", version=csv.version)]
        elif config["logger"]:
            loggers = config["logger"] if isinstance(config["logger"], list) else [config["logger"]]
            here = any(isinstance(logger, CSVLogger) for logger in loggers)
            config["logger"] = loggers if here else [*loggers, CSVLogger(root, name="logs")]
        stay_in(root, config["logger"], anew=self.overwrite)
        config["callbacks"] = with_defaults(str(self.subcommand), given, root, config)
        for callback in config["callbacks"]:
            if isinstance(callback, Dimensions) and (weights := self._config_now["ckpt_path"]) is not None:
                callback.weights = Path(weights)
            if isinstance(callback, RegistrationScores):
                callback.config_text, callback.variant = self._config_text, self.variant
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        trainer = super()._instantiate_trainer(config, callbacks)
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, RunConfig):
                callback.text = self._config_text
        return trainer

    def restore(self) -> None:
        """Put the weights that the command line names into the model, as the command would.

        Raises:
            FileNotFoundError, ValueError: no such checkpoint, not one, or one that does not fit.
        """
        path = self._prepare_subcommand_kwargs(str(self.subcommand))["ckpt_path"]
        if path is not None:
            fill(self.model, path, read_checkpoint(path))

    def start(self) -> None:
        """Run the command."""
        super()._run_subcommand(str(self.subcommand))

    def _run_subcommand(self, subcommand: str) -> None:
        # run=False of LightningCLI knows no commands, and so neither their options nor their callbacks
        if self.runs:
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Refuse what cannot be trained, or would replace another training, before the run's folder is made."""
        self.model.check_trainable()
        super().before_fit()
        self._examine()
        self.claim_folder()

    def before_validate(self) -> None:
        """Refuse faulty data before anything is written."""
        self._examine()

    def before_test(self) -> None:
        """Refuse faulty data, and to replace other scores, before anything is written."""
        super().before_test()
        self._examine()

    def before_predict(self) -> None:
        """Refuse faulty data before anything is written."""
        super().before_predict()
        self._examine()

    def _examine(self) -> None:
        """Read the data before loggers open their files; what is in memory is not read again by the trainer."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            self.datamodule.setup(self.subcommand)
            self.model.examine(self.datamodule, str(self.subcommand))

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401
        if self.command in self.subcommands() and subcommand != self.command:
            # bare, for it is not read: options of one command take as long as the rest of the parser
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"weights_only": True} | SUBCOMMAND_DEFAULTS.get(subcommand, {}))
        return parser

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        path = starting_point(kwargs.get("ckpt_path"), subcommand, self.trainer, self.model)
        if isinstance(path, Path) and path.suffix == ".safetensors":
            load_weights(self.model, path)
            path = None
        kwargs["ckpt_path"] = None if path is None else str(path)
        return kwargs


def prepare() -> None:
    """Make the process ready to build an experiment.

    Raises:
        ValueError: if the environment names operators that are not to be had (`ops.chosen`).
    """
    chosen()
    # Lightning advertises services in its log
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    # The one place that knows both packages, so that `--data SyntheticPairs` needs no module path. By name and only if
    # installed: the library itself never depends on a data set.
    if importlib.util.find_spec("data_modules") is not None:
        importlib.import_module("data_modules")
    # A config may name a class of a file in the working folder, as under `python -m`; last, so that it hides nothing.
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())


def run(args: list[str]) -> None:
    """Parse the arguments, build the experiment and run it."""
    prepare()
    try:
        trainer = RegistrationCLI(args).trainer
        finish(trainer.loggers)
        terminated = trainer.received_sigterm
    except SIGTERMException:
        terminated = True
    if terminated:
        raise SystemExit(TERMINATED)
