"""Grey and white matter of MNI152 and Colin27, for what they say of a registration of two acquired brains.

    python benchmarks/tissues.py $DIO_DATA/brain_real runs/tissues

MNI152 comes with probabilities: a voxel is the tissue that has more than half. Colin27 has none: its brain is divided
into three classes of intensity by k-means, of which the darkest is neither. Writes both label maps (1 grey, 2 white)
and pairs.csv, MNI152 fixed, for `--data PairsCSV`.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.cluster.vq import kmeans2

NEEDED = ("mni152_2mm", "mni152_2mm_gmprob", "mni152_2mm_wmprob", "colin27_2mm")


def tissues(folder: Path, out: Path) -> None:
    """Writes label maps of both brains, and the pair."""
    template = nib.Nifti1Image.from_filename(folder / "mni152_2mm.nii.gz")
    grey, white = (
        np.asarray(nib.Nifti1Image.from_filename(folder / f"mni152_2mm_{t}prob.nii.gz").dataobj) / 255.0
        for t in ("gm", "wm")
    )
    colin = nib.Nifti1Image.from_filename(folder / "colin27_2mm.nii.gz")
    values = np.asarray(colin.dataobj, dtype=float)
    inside = values > 0
    start = np.percentile(values[inside], [10, 50, 90])[:, None]
    means, classes = kmeans2(values[inside][:, None], start, minit="matrix")
    order = np.argsort(np.argsort(means[:, 0]))
    labels = np.zeros(values.shape, np.uint8)
    labels[inside] = order[classes]
    out.mkdir(parents=True, exist_ok=True)
    maps = {"mni152": ((grey > 0.5) + 2 * (white > 0.5), template), "colin27": (labels, colin)}
    for name, (label, image) in maps.items():
        nib.save(nib.Nifti1Image(label.astype(np.uint8), image.affine), out / f"{name}_tissues.nii.gz")
    row = [
        *(folder.resolve() / f"{n}_2mm.nii.gz" for n in maps),
        *(out.resolve() / f"{n}_tissues.nii.gz" for n in maps),
    ]
    (out / "pairs.csv").write_text("fixed,moving,fixed_label,moving_label\n" + ",".join(map(str, row)) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(f"{len(sys.argv) - 1} words given, expected the folder of brain_real and one to write to")
    source, target = map(Path, sys.argv[1:])
    for file in (source / f"{name}.nii.gz" for name in NEEDED):
        if not file.is_file():
            raise SystemExit(f"{file} does not exist, expected an image of brain_real")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SystemExit(f"{target} is there, expected a new or empty folder")
    tissues(source, target)
