"""An image and where it lies: whatever a user has, checked before anything is done with it."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.findings import grey_mask
from dio_lightning.headers import Header, header_of, read_header
from dio_lightning.intensities import between, limits
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
        mask: (1, 1, *s) bool, which of its voxels count; None: all of them.
    """

    values: Float[Tensor, "1 1 *s"]
    grid: ImageGrid
    header: Header | None
    name: str
    mask: Bool[Tensor, "1 1 *s"] | None = None

    @classmethod
    def of(cls, image: Image, affine: NDArray | None = None, name: str = "the image", contrast: bool = True) -> "Scan":
        """A scan of a file, of a nibabel image, or of values (*s) with an affine.

        Args:
            image: of two or three dimensions, in any orientation, type and unit.
            affine: (4, 4), voxels to RAS millimetres, for bare values alone; None: voxels of 1 mm.
            name: what sentences call it where it has no file.
            contrast: whether it may not be the same everywhere.

        Raises:
            FileNotFoundError: no such file.
            ValueError: if it is no image of real, finite numbers in two or three dimensions, has no contrast, or does
                not say where it lies.
        """
        if isinstance(image, SpatialImage | str | Path):
            if affine is not None:
                raise ValueError(f"{name} has an affine of its own, expected none beside it")
            header = header_of(image, Path(name)) if isinstance(image, SpatialImage) else read_header(Path(image))
            name = str(header.path)
            check_header(header, name)
            return cls(_checked(header.values(), name, contrast), ImageGrid.of(header), header, name)
        values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
        matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
        return cls(_checked(values, name, contrast), ImageGrid(values.shape, matrix), None, name)

    def companion(self, image: Image, name: str, contrast: bool = True) -> "Scan":
        """What lies on the same voxels, such as a label map or a mask; bare values lie where this image does.

        Raises:
            FileNotFoundError, ValueError: as `of`, and if it lies on another grid.
        """
        bare = not isinstance(image, SpatialImage | str | Path)
        other = Scan.of(image, self.grid.affine if bare else None, name, contrast)
        if not other.grid.like(self.grid):
            raise ValueError(f"{other.name} lies on another grid than {self.name}, expected the same voxels")
        return other

    def masked(self, image: Image) -> "Scan":
        """The scan with a mask: where the image is above 0, voxels count, as data modules have it.

        One of several values above 0, such as a map of probabilities, is warned of.

        Raises:
            FileNotFoundError, ValueError: if it is no image on the same voxels, holds none of them, or holds only such
                where this image is the same.
        """
        mask = self.companion(image, f"the mask of {self.name}", contrast=False)
        inside = mask.values > 0
        if not bool(inside.any()):
            raise ValueError(
                f"{mask.name} is {'0 everywhere' if bool((mask.values == 0).all()) else 'nowhere above 0'}, expected "
                f"numbers above 0 where {self.name} counts"
            )
        if sentence := grey_mask(mask.values.numpy()):
            warnings.warn(f"{mask.name} {sentence}", stacklevel=2)
        counted = self.values[inside]
        if counted.min() == counted.max():
            raise ValueError(f"{self.name} is {counted[0]:g} wherever {mask.name} holds it, expected some contrast")
        return replace(self, mask=inside)

    @cached_property
    def normalised(self) -> Float[Tensor, "1 1 *s"]:
        """Intensities between 0 and 1: from the 0.5 % quantile to the 99.5 % quantile of the values above it.

        Those are the least and the largest value where nothing lies between (`intensities.limits`). Of a masked scan
        the values that count say which they are.
        """
        flat = (self.values.flatten() if self.mask is None else self.values[self.mask]).numpy()
        return between(self.values, *limits(flat, foreground=True))


def _checked(values: NDArray, name: str, contrast: bool) -> Float[Tensor, "1 1 *s"]:
    return torch.from_numpy(checked_values(values, name, contrast))[None, None]
