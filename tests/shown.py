"""Pages of the commands that a reader runs, on few steps and pairs, for the tests that open them in a browser."""

import os
from contextlib import chdir
from pathlib import Path

import nibabel as nib
import numpy as np
from scans import write

from dio_lightning.cli import main

BRAINS = Path(os.environ.get("DIO_DATA", "."), "brains_2mm")
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.logger", "false")


class Pages(dict[str, Path]):
    """The page of each command, made when it is first opened: few steps and pairs of what a reader runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        with chdir(self.folder):
            self[name] = getattr(self, name)()
        return self[name]

    def demo(self) -> Path:
        """The demo's config, trained for one step."""
        data = ("--data.train_pairs", "4", "--data.val_pairs", "2", "--data.test_pairs", "5")
        steps = ("--trainer.max_epochs", "1", "--model.layer.iterations", "[4, 3, 2]")
        main(["fit", "--config", "dio/demo", *QUIET, *data, *steps])
        main(["test", "--ckpt_path", "runs/demo/dio/checkpoints/last.ckpt", *QUIET])
        return self.folder / "runs/demo/dio/test/report.html"

    def brains(self) -> Path:
        """A test of one pair at 2 mm."""
        pair = [
            f"{kind}Tr/SynthSegBrain_00{number}_0000.nii.gz" for kind in ("images", "labels") for number in (13, 14)
        ]
        Path("pair.csv").write_text(f"fixed,moving,fixed_label,moving_label\n{','.join(pair)}\n")
        data = ("--data", "PairsCSV", "--data.csv", "pair.csv", "--data.root", str(BRAINS))
        steps = ("--model.layer.iterations", "[3, 2, 1]", "--trainer.default_root_dir", "runs/brains")
        main(["test", "--config", "classical/intensity", *data, *steps, *QUIET])
        return self.folder / "runs/brains/report.html"

    def register(self) -> Path:
        """A registration of two scans at 4 mm, with their label maps."""
        for number in (13, 14):
            write(self.folder, f"{number}.nii.gz", *small("images", number))
            write(self.folder, f"{number}_seg.nii.gz", *small("labels", number))
        maps = ("--fixed-labels", "13_seg.nii.gz", "--moving-labels", "14_seg.nii.gz", "--prompt-label", "16")
        words = ("--stages", "deformable", "--out", "register", "--quiet")
        main(["register", "13.nii.gz", "14.nii.gz", *maps, *words])
        return self.folder / "register/report.html"


def small(kind: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A volume of brains_2mm at 4 mm, as it is stored (leftwards, downwards, forwards), and its affine."""
    image = nib.load(BRAINS / f"{kind}Tr/SynthSegBrain_00{number}_0000.nii.gz")
    return np.asarray(image.dataobj)[::2, ::2, ::2], image.affine @ np.diag([2, 2, 2, 1])


def original(name: str) -> nib.Nifti1Image:
    """The fixed image of a page, as its file has it."""
    if name == "register":
        return nib.Nifti1Image(*small("images", 13))
    return nib.load(BRAINS / "imagesTr/SynthSegBrain_0013_0000.nii.gz")
