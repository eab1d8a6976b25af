"""What comes out of a registration: a transform, and what it makes of images, labels and points."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from dio_lightning.files import expect_free, replacing, write_atomic
from dio_lightning.headers import Header, header_of, read_header
from dio_lightning.registration.quality import Quality
from dio_lightning.registration.scan import Image, Scan
from dio_lightning.scores.summary import versions
from dio_lightning.transforms import Chain, Inverse, warp_image, warp_points, write_transform
from dio_lightning.transforms.resampling import Mode
from dio_lightning.volume_files import save_volume

FILES = (
    "warped.nii.gz",
    "transform.h5",
    "inverse.h5",
    "affine.tfm",
    "displacement.nii.gz",
    "picture.png",
    "report.json",
)
"""What `Registration.save` writes; the displacement only where something was deformed."""


@dataclass(frozen=True, eq=False)
class Registration:
    """A transform from the fixed world to the moving one, where moving values are found, and how good it is.

    Attributes:
        fixed: the image that stayed.
        moving: the image that is brought to it.
        transform: RAS millimetres of the fixed world to those of the moving one.
        back: the inverse, on the moving image's grid, and how far it is from being one.
        quality: a verdict, and what it rests on.
        details: what was run, and for how long.
    """

    fixed: Scan
    moving: Scan
    transform: Chain
    back: Inverse
    quality: Quality
    details: Mapping[str, Any]

    @property
    def inverse(self) -> Chain:
        """The transform from the moving world to the fixed one."""
        back = self.back.transform
        return back if isinstance(back, Chain) else Chain([back])

    def warp(self, image: Image | None = None, affine: NDArray | None = None, mode: Mode = "linear") -> Nifti1Image:
        """An image of the moving world on the fixed grid: interpolated once, in its own type and intensities.

        Args:
            image: the moving image if None, or any other that lies in its world.
            affine: of bare values, voxels to RAS millimetres; None: those of the moving image.
            mode: `linear`, or `nearest` for labels.

        Raises:
            FileNotFoundError, ValueError: if it is no image, or none of its voxels come to the fixed grid.
        """
        header = self._header(image, affine)
        values = warp_image(header, self.transform, self.fixed.grid, mode)
        warped = Nifti1Image(values, self.fixed.grid.affine, dtype=values.dtype)
        if header.scale != (1.0, 0.0):
            warped.header.set_slope_inter(*header.scale)
        return warped

    def warp_labels(self, image: Image, affine: NDArray | None = None) -> Nifti1Image:
        """A label map of the moving world on the fixed grid; see `warp`."""
        return self.warp(image, affine, "nearest")

    def warp_points(self, points: ArrayLike, to: Literal["moving", "fixed"] = "moving") -> NDArray[np.float64]:
        """Points of the fixed image where the moving image has them, RAS millimetres (n, 3); `to="fixed"` goes back."""
        return warp_points(points, self.transform, to).points

    def report(self) -> dict[str, Any]:
        """All that is known of it, ready for JSON."""
        quality = {key: _plain(value) for key, value in asdict(self.quality).items()}
        inverse = {"mean_mm": self.back.mean, "largest_mm": self.back.largest, "covered": self.back.covered}
        files = {"fixed": self.fixed.name, "moving": self.moving.name}
        return {**files, **self.details, "quality": quality, "inverse": inverse, "versions": versions()}

    def save(self, folder: str | Path, overwrite: bool = False) -> list[Path]:
        """Write warped.nii.gz, transform.h5, inverse.h5, affine.tfm, displacement.nii.gz and report.json.

        Transforms are ITK's: SimpleITK, ANTs and Slicer read them. affine.tfm and displacement.nii.gz are the two parts
        of transform.h5; the second is there where something was deformed. Several fields in a row are one there,
        sampled on the fixed grid; where a field follows an affine, as it may after a transform to start from, all of it
        is in the displacement, and the affine is the identity.

        Raises:
            FileExistsError: if one of the files is there and may not be replaced.
            OSError: if the folder cannot be written to.
        """
        folder = Path(folder)
        fields, affine = self.transform.fields_and_affine()
        paths = {name: folder / name for name in FILES if fields.links or name != "displacement.nii.gz"}
        expect_free(list(paths.values()), overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        save_image(paths["warped.nii.gz"], self.warp())
        both = self.fixed.grid, self.moving.grid
        write_transform(paths["transform.h5"], self.transform, *both, overwrite=True)
        write_transform(paths["inverse.h5"], self.inverse, self.moving.grid, self.fixed.grid, overwrite=True)
        write_transform(paths["affine.tfm"], affine, *both, overwrite=True)
        if fields.links:
            write_transform(paths["displacement.nii.gz"], fields, *both, overwrite=True)
        self._draw(paths["picture.png"])
        write_atomic(paths["report.json"], json.dumps(self.report(), indent=2) + "\n")
        return list(paths.values())

    def _draw(self, path: Path) -> None:
        """A slice of both images, before and after, as the panels of a test."""
        import torch

        from dio_lightning.callbacks.drawing import draw
        from dio_lightning.callbacks.panels import cut
        from dio_lightning.pair import Pair
        from dio_lightning.registration.grids import seen_at

        image = seen_at(self.moving.normalised, self.moving.grid, np.eye(4)[None], self.fixed.grid)
        affine = torch.from_numpy(self.fixed.grid.affine)[None]
        u = self.transform.on_grid(self.fixed.grid.size, self.fixed.grid.affine).float()
        pair = Pair(fixed=self.fixed.normalised, moving=image, affine=affine)
        figure = draw(cut(pair, u, 0, 1), f"{Path(self.moving.name).name} onto {Path(self.fixed.name).name}")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=110)

    def _header(self, image: Image | None, affine: NDArray | None) -> Header:
        if image is None:
            if self.moving.header is not None:
                return self.moving.header
            image, affine = self.moving.values[0, 0], self.moving.grid.affine
        if isinstance(image, SpatialImage):
            return header_of(image, Path("the image"))
        if isinstance(image, str | Path):
            return read_header(Path(image))
        values = np.asarray(image)
        values = values.astype(np.int32 if values.dtype.kind in "iub" else np.float32)
        return header_of(Nifti1Image(values, self.moving.grid.affine if affine is None else affine), Path("the image"))


def _plain(value: object) -> object:
    return float(value) if isinstance(value, float | np.floating) else value


def save_image(path: Path, image: Nifti1Image) -> None:
    """Write an image that `Registration.warp` made; whole or not at all."""
    header: Any = image.header
    slope, intercept = header.get_slope_inter()
    scale = None if slope is None else (float(slope), float(intercept))
    save_volume(path, np.asanyarray(image.dataobj), image.affine, scale)  # pyright: ignore[reportArgumentType]
