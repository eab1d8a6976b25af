"""Images in the world with known transforms between them, files of them, and files that are none."""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from dio_lightning.registration.starts import rotation

SPACING = 4.0


def scene(size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A head of sorts: an egg with structures inside, none of its mirror images like itself, between 0 and 200."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1.25, 1.25, n) for n in size], indexing="ij")
    radius = sum((x * (1 + 0.25 * k)) ** 2 for k, x in enumerate(axes)) + 0.25 * axes[0] * axes[1]
    inside = 1 / (1 + np.exp(30 * (radius - 0.9)))
    texture = gaussian_filter(generator.normal(size=size), 1.6)
    return 200 * inside * (0.6 + 0.12 * texture / texture.std()).clip(0.1, 1)


def affine_of(size: tuple[int, ...], spacing: float = SPACING) -> np.ndarray:
    affine = np.diag([*[spacing] * len(size), *[1.0] * (4 - len(size))])
    affine[: len(size), 3] = -spacing * (np.array(size) - 1) / 2
    return affine


def turned(size: tuple[int, ...], degrees: float, shift: float, scale: float = 1.0) -> np.ndarray:
    """A world transform (4, 4): about an oblique axis in 3-D, in the plane in 2-D."""
    angle = np.radians(degrees)
    turn = rotation(angle, -0.6 * angle, 0.8 * angle) if len(size) == 3 else rotation(0, 0, angle)
    matrix = np.eye(4)
    matrix[: len(size), : len(size)] = scale * turn[: len(size), : len(size)]
    matrix[: len(size), 3] = shift * np.array([1, -0.7, 0.5])[: len(size)]
    return matrix


def moved(image: np.ndarray, affine: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The image on its own grid with moving(T x) = fixed(x): SciPy's cubic splines."""
    d = image.ndim
    voxels = np.linalg.inv(affine) @ np.linalg.inv(truth) @ affine
    return affine_transform(image, voxels[:d, :d], voxels[:d, 3], order=3, mode="constant").clip(0)


def write(folder: Path, name: str, values: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1]) if affine is None else affine), folder / name)
    return str(folder / name)


def singular(folder: Path, values: np.ndarray) -> str:
    """A file whose sform has no third axis."""
    path = Path(write(folder, "singular.nii", values))
    image = nib.load(path)
    image.header["srow_z"] = [0, 0, 0, 0]
    with open(path, "r+b") as file:
        image.header.write_to(file)
    return str(path)


def wrong_inputs(folder: Path) -> dict[str, tuple[str, str]]:
    """What may be given for an image, and what the sentence says of it."""
    good = scene((12, 12, 12)).astype(np.float32)
    (folder / "text.nii.gz").write_text("no image")
    cut = Path(write(folder, "cut.nii.gz", good)).read_bytes()
    (folder / "cut.nii.gz").write_bytes(cut[: len(cut) // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    holes = good.copy()
    holes[3, 3, 3] = np.nan
    rgb = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return {
        "nowhere": (str(folder / "none.nii.gz"), "does not exist"),
        "text": (str(folder / "text.nii.gz"), "cannot be read"),
        "cut": (str(folder / "cut.nii.gz"), "cannot be read"),
        "empty": (str(folder / "empty.nii.gz"), "cannot be read"),
        "4-D": (write(folder, "4d.nii.gz", np.stack([good, good], -1)), "has 4 dimensions"),
        "constant": (write(folder, "constant.nii.gz", 0 * good + 3), "is 3 everywhere"),
        "NaN": (write(folder, "nan.nii.gz", holes), "1 values that are NaN"),
        "singular": (singular(folder, good), "affine that is not invertible"),
        "thin": (write(folder, "thin.nii.gz", good[:1]), "expected at least 4 along axis 0"),
        "complex": (write(folder, "complex.nii.gz", good.astype(np.complex64)), "complex64"),
        "colour": (write(folder, "colour.nii.gz", rgb), "expected real numbers"),
    }
