"""An image and where it lies: whatever a user has, checked before anything is done with it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.headers import Header, header_of, read_header
from dio_lightning.registration.images import check_header, checked_values
from dio_lightning.transforms import ImageGrid

Image = str | Path | SpatialImage | NDArray | Tensor
"""What is taken for an image: a file, a nibabel image, or values."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One image in the world.

    Attributes:
        values: (1, 1, *s) float32, as they are.
        grid: its voxels in the world, RAS millimetres.
        header: of its file or nibabel image, in whose type results are stored; None for bare values.
        name: what sentences call it.
    """

    values: Float[Tensor, "1 1 *s"]
    grid: ImageGrid
    header: Header | None
    name: str

    @classmethod
    def of(cls, image: Image, affine: NDArray | None = None, name: str = "the image") -> "Scan":
        """A scan of a file, of a nibabel image, or of values (*s) with an affine.

        Args:
            image: of two or three dimensions, in any orientation, type and unit.
            affine: (4, 4), voxels to RAS millimetres, for bare values alone; None: voxels of 1 mm.
            name: what sentences call it where it has no file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: if it is no image of real, finite numbers in two or three dimensions, is constant, or does not
                say where it lies.
        """
        if isinstance(image, SpatialImage | str | Path):
            if affine is not None:
                raise ValueError(f"{name} has an affine of its own, expected none beside it")
            header = header_of(image, Path(name)) if isinstance(image, SpatialImage) else read_header(Path(image))
            name = str(header.path)
            check_header(header, name)
            return cls(_checked(header.values(), name), ImageGrid.of(header), header, name)
        values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
        matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
        return cls(_checked(values, name), ImageGrid(values.shape, matrix), None, name)

    @cached_property
    def normalised(self) -> Float[Tensor, "1 1 *s"]:
        """Intensities between 0 and 1: from the 0.5 % to the 99.5 % quantile of the values above the least."""
        flat = self.values.flatten().numpy()
        low = float(np.quantile(flat, 0.005))
        inside = flat[flat > low]
        high = float(np.quantile(inside if len(inside) else flat, 0.995))
        if not high > low:
            low, high = float(flat.min()), float(flat.max())
        return ((self.values - low) / (high - low)).clamp(0, 1)


def _checked(values: NDArray, name: str) -> Float[Tensor, "1 1 *s"]:
    return torch.from_numpy(checked_values(values, name))[None, None]
