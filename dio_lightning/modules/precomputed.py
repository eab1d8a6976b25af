"""Displacements out of files: any tool as a method like any other."""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from dio_lightning.fields.files import find_field, read_displacement
from dio_lightning.modules.base import RegistrationModule
from dio_lightning.pair import Pair


class Precomputed(RegistrationModule):
    """Reads the displacement of every pair from a folder, so that every score applies to fields made by any tool.

    Files are disp_<fixed>_<moving> in .nii.gz or .npz with Learn2Reg's short or long names (`fields.files.pair_names`),
    in any layout and resolution of `fields.files.read_displacement`. Values are voxels of the fixed grid, but for the
    files of ITK and ANTs. It has no weights and nothing to train.

    Args:
        folder: where the files are, such as `predictions` of `dio-lightning predict`.

    Raises:
        FileNotFoundError: if there is no such folder; in `setup`, naming every pair that has no file.
        ValueError: in `setup`, if two files fit one pair or one file fits two pairs; when a pair is read, if its file
            has another shape or values that are not finite.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is no folder, expected one with displacement fields")

    @property
    def title(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def setup(self, stage: str) -> None:
        """Looks for the files of all pairs before the first one is scored."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        loader = {"validate": "val_dataloader", "test": "test_dataloader", "predict": "predict_dataloader"}.get(stage)
        if loader is not None:
            samples = samples_of(getattr(data, loader)().dataset)
            find_all(self.folder, [(s["fixed_id"], s["moving_id"]) for s in samples])

    def register(self, pair: Pair) -> Float[Tensor, "b d *s"]:
        """The displacement on the pair's grid."""
        fixed = pair["fixed"]
        if "fixed_id" not in pair or "moving_id" not in pair:
            raise ValueError("displacements in files need pairs with a fixed_id and a moving_id")
        ids = zip(pair["fixed_id"], pair["moving_id"], strict=True)
        fields = [read_displacement(find_field(self.folder, *names), fixed.shape[2:]) for names in ids]
        return torch.stack(fields).to(fixed.device)

    def _evaluate(self, pair: Pair, stage: str) -> dict[str, Tensor]:
        return {"displacement": self.register(pair)}


def samples_of(dataset: Dataset) -> Iterable[dict]:
    """The pairs of a map-style data set, in order."""
    sequence = cast(list[dict], dataset)
    return (sequence[index] for index in range(len(sequence)))


def find_all(folder: Path, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """The file of every pair (fixed, moving).

    Raises:
        FileNotFoundError: naming all pairs without a file.
        ValueError: if two files fit one pair or one file fits two.
    """
    found: dict[tuple[str, str], Path] = {}
    owners: dict[Path, tuple[str, str]] = {}
    missing: list[str] = []
    for pair in pairs:
        try:
            path = find_field(folder, *pair)
        except FileNotFoundError as error:
            missing.append(str(error).removeprefix(f"{folder} has no "))
            continue
        owner = owners.setdefault(path, pair)
        if owner != pair:
            raise ValueError(f"{path} fits the pairs {' <- '.join(owner)} and {' <- '.join(pair)}, expected long names")
        found[pair] = path
    if missing:
        count = f"{len(missing)} of {len(missing) + len(found)} displacement fields"
        raise FileNotFoundError(f"{folder} lacks {count}: {'; '.join(missing)}")
    return found
