"""The files that a reader of the documentation has, small: a Learn2Reg folder, and scans with all about them."""

from pathlib import Path

import numpy as np
from miniature import listed, write_json
from scans import affine_of, scene, write

from dio_lightning.models import model_paths
from dio_lightning.transforms import Affine, Chain, ImageGrid, write_transform

BRAIN = (20, 76, 20)
"""The laboratory takes slices 40 to 75 across the second axis."""
SCAN = (14, 16, 12)
SUBJECTS = (1, 2, 11, 12, 13, 14)


def brains(root: Path) -> Path:
    """A folder laid out as brains_2mm: images, labels 0 to 35, masks, a dataset JSON with every split."""
    for kind in ("images", "labels", "masks"):
        (root / f"{kind}Tr").mkdir(parents=True)
    affine = affine_of(BRAIN, 4.0)
    i, j, k = np.indices(BRAIN) // 3
    structures = 1 + (i + 5 * j + 11 * k) % 35
    for place, number in enumerate(SUBJECTS):
        values = scene(BRAIN, place)
        labels = np.where(values > 20, structures, 0)
        for kind, array in (("images", values), ("labels", labels), ("masks", values > 20)):
            write(root / f"{kind}Tr", Path(image(number)).name, array.astype(np.uint8), affine)
    pair = lambda *numbers: listed(*(tuple(map(image, two)) for two in numbers))  # noqa: E731
    entries = [{kind[:-1]: image(n).replace("images", kind) for kind in ("images", "labels", "masks")} for n in (1, 2)]
    write_json(
        root, "SynthSegBrain", pairings="unpaired", provided_data={"0": ["image", "label", "mask"]}, numTraining=2,
        tensorImageSize={"0": "3D"}, tensorImageShape={"0": list(BRAIN)}, training=entries, training_paired_images=[],
        labels={"0": {str(i): f"structure {i}" for i in range(36)}}, modality={"0": "MR"}, numRegistration_val=1,
        registration_val=pair((11, 12)), registration_test=pair((13, 14)),
    )  # fmt: skip
    return root


def real(root: Path) -> Path:
    """The files of brain_real that docs/data.md tests on."""
    root.mkdir(parents=True)
    affine, values = affine_of(SCAN, 8.0), scene(SCAN)
    for name in ("colin27_2mm", "native_colin27_ch2bet"):
        write(root, f"{name}.nii.gz", values.astype(np.uint8), affine)
        values = np.roll(values, 1, axis=1)
    for name in ("colin27_2mm_aal", "native_colin27_aal"):
        write(root, f"{name}.nii.gz", (values > 60).astype(np.uint8), affine)
    return root


def image(number: int) -> str:
    """The path of a subject's image, as the dataset JSON has it."""
    return f"./imagesTr/SynthSegBrain_{number:04d}_0000.nii.gz"


def scans(folder: Path) -> None:
    """The files that docs/register.md and docs/prompts.md call by short names."""
    affine, fixed = affine_of(SCAN, 8.0), scene(SCAN).astype(np.float32)
    moving, structure = np.roll(fixed, 1, axis=0), (fixed > 60).astype(np.uint8)
    for names, values in (
        ("fixed t1 in tpl-MNI152NLin2009cAsym_res-1_T1w", fixed),
        ("moving patient ex T2 sub-01_T1w", moving),
        ("atlas labels atlas_of_moving", structure),
        ("seg", 17 * structure),
        ("seg2", 17 * np.roll(structure, 1, axis=0)),
        ("no_lesion", np.ones(SCAN, np.uint8)),
    ):
        for name in names.split():
            write(folder, f"{name}.nii.gz", values, affine)
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    grid, linear = ImageGrid(SCAN, affine), Chain([Affine(shift)])
    write_transform(folder / "warp.h5", linear)
    write_transform(folder / "0GenericAffine.mat", linear)
    write_transform(folder / "1Warp.nii.gz", linear, grid)
    for name in ("in", "ex", "points", "electrodes"):
        (folder / f"{name}.csv").write_text("x,y,z\n10,-4,2\n-8,6,8\n3,9,-12\n-4,-5,-6\n")
    (folder / "pairs.csv").write_text("fixed,moving\nfixed.nii.gz,moving.nii.gz\n")
    (folder / "weights.safetensors").symlink_to(model_paths()["brain-t1"])
