"""What of the command line is about folders: where a run goes, what it may replace, and where its results lie."""

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from dio_lightning.callbacks.writer import FieldWriter
from dio_lightning.checkpoint_files import checkpoints
from dio_lightning.run_folders import NAMED, check_checkpoints, check_scores, claim, numbered, of_another


class FolderCLI(LightningCLI):
    """LightningCLI that replaces no other run's files unless it is told to, and says where its own lie."""

    folder: Path
    """Of the run, where neither the command line nor a config names one."""
    named: bool
    """Whether the command line names the folder."""
    overwrite: bool = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of ours."""
        replaced = "replace what another run left in the folder: checkpoints (fit), scores (test), fields (predict)"
        parser.add_argument("--overwrite", action="store_true", help=replaced)

    def take_overwrite(self) -> None:
        """Take --overwrite out of the config: one that is used again must not bring it back."""
        self.overwrite = self.config[self.config["subcommand"]].pop("overwrite")

    def before_fit(self) -> None:
        """Refuse to replace the checkpoints of another training."""
        root = Path(self.trainer.default_root_dir)
        if self._dry or not self.trainer.checkpoint_callbacks:
            return
        if not self.overwrite:
            check_checkpoints(root, self._config_now["ckpt_path"])
        elif self.trainer.is_global_zero and not self._config_now["ckpt_path"]:
            for path in checkpoints(root):
                path.unlink()

    def claim_folder(self) -> None:
        """Keep other trainings out of the run's folder."""
        if not self._dry and self.trainer.is_global_zero:
            claim(Path(self.trainer.default_root_dir))

    def before_test(self) -> None:
        """Refuse to replace the scores of another configuration."""
        if not self._dry and not self.overwrite:
            check_scores(Path(self.trainer.default_root_dir), self._config_text)

    def before_predict(self) -> None:
        """Let fields be replaced if --overwrite says so; the writer refuses it otherwise."""
        for writer in self._writers:
            writer.overwrite = writer.overwrite or self.overwrite

    def after_fit(self) -> None:
        """Say where the results lie."""
        self._say_where()

    after_validate = after_test = after_fit

    def after_predict(self) -> None:
        """Say where the fields lie."""
        self._say_where(*(writer.folder(self.trainer) for writer in self._writers))

    @property
    def _writers(self) -> list[FieldWriter]:
        return [c for c in self.trainer.callbacks if isinstance(c, FieldWriter)]  # pyright: ignore

    @property
    def _dry(self) -> bool:
        return bool(getattr(self.trainer, "fast_dev_run", False))

    def _say_where(self, *folders: Path) -> None:
        if self.trainer.is_global_zero and not self._dry:
            for folder in folders or [Path(self.trainer.default_root_dir)]:
                print(f"wrote {folder}")

    def _root(self, config: dict[str, Any]) -> Path:
        """The folder of the run; unless the command line names it, a test takes the first without scores of another.

        One of `last` or `best` stays with the training that it belongs to.
        """
        root = Path(config["default_root_dir"])
        if self.subcommand != "test" or self.named or self.overwrite or self._config_now["ckpt_path"] in NAMED:
            return root
        for folder in numbered(root):
            if str(folder) != config["default_root_dir"]:
                config["default_root_dir"] = self._config_now["trainer"]["default_root_dir"] = str(folder)
                vars(self).pop("_config_text", None)
            if not of_another(folder, self._config_text):
                return folder
        return root

    @property
    def _config_now(self) -> Any:  # noqa: ANN401
        return self.config[str(self.subcommand)]

    @cached_property
    def _config_text(self) -> str:
        """The resolved config as YAML; written once for all that keep it, for that is a tenth of a second each time."""
        return self._parser(self.subcommand).dump(self._config_now, skip_none=False)

    def _dump_config(self) -> None:
        """Keep the same for the hyperparameters of model and data."""
        if not hasattr(self, "config_dump"):
            self.config_dump = yaml.safe_load(self._config_text)
