"""What comes out of a registration: a transform, and what it makes of images, labels and points."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from dio_lightning.files import expect_free, replacing_all, write_atomic
from dio_lightning.headers import Header, header_of, read_header
from dio_lightning.registration.outputs import OTHERS, Outputs
from dio_lightning.registration.quality import Quality
from dio_lightning.registration.scan import Image, Scan
from dio_lightning.reports.curves import Curves
from dio_lightning.scores.summary import versions
from dio_lightning.transforms import Chain, Inverse, warp_image, warp_points, write_transform
from dio_lightning.transforms.files import Format
from dio_lightning.transforms.resampling import Mode
from dio_lightning.volume_files import save_volume

if TYPE_CHECKING:
    from dio_lightning.pictures import Upright

Examine = Callable[[Path, Path], Mapping[str, Any]]
"""What looks at a written transform and a warped image."""


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
        curves: residual and energy over the steps of every deformable stage.
        labels: label maps on the grids of both images, for pictures; None: there are none.
    """

    fixed: Scan
    moving: Scan
    transform: Chain
    back: Inverse
    quality: Quality
    details: Mapping[str, Any]
    curves: Sequence[Curves] = ()
    labels: tuple[Scan, Scan] | None = None

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
        """All that is known of it, ready for JSON: what is no finite number is null."""
        inverse = {"mean_mm": self.back.mean, "largest_mm": self.back.largest, "covered": self.back.covered}
        files = {"fixed": self.fixed.name, "moving": self.moving.name}
        return _plain(
            {**files, **self.details, "quality": asdict(self.quality), "inverse": inverse, "versions": versions()}
        )

    def page(self) -> str:
        """The page that `save` writes as report.html: one HTML text with all that it shows in it."""
        from dio_lightning.registration.picture import page_of, standing, title_of

        pair = standing(self.fixed, self.moving, self.transform, self.labels)
        return page_of(pair, title_of(self.fixed, self.moving), self.report(), self.curves).html()

    def view(self) -> Any:  # noqa: ANN401
        """A widget of ipyniivue (the extra `notebook`): the fixed image with the warped one above it.

        Raises:
            ModuleNotFoundError: without ipyniivue.
        """
        from dio_lightning.registration.picture import widget

        folder = TemporaryDirectory()
        save_volume(Path(folder.name, "fixed.nii.gz"), self.fixed.values[0, 0].numpy(), self.fixed.grid.affine)
        save_image(Path(folder.name, "warped.nii.gz"), self.warp())
        made = widget(Path(folder.name))
        made.folder = folder  # its files are there as long as the widget
        return made

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from dio_lightning.registration.picture import notebook_html, standing, title_of

        pair = standing(self.fixed, self.moving, self.transform, self.labels)
        return notebook_html(pair, title_of(self.fixed, self.moving), self.report())

    def save(
        self,
        to: str | Path | Outputs,
        overwrite: bool = False,
        *,
        passengers: Mapping[Path, Callable[[Path], object]] | None = None,
        notes: Mapping[str, Any] | None = None,
        examine: Examine | None = None,
        keep: Sequence[Path] = (),
    ) -> list[Path]:
        """Write the image, transforms, a picture and reports: warped.nii.gz to report.json, as `Outputs` names them.

        Transforms are ITK's: SimpleITK, ANTs and Slicer read them. affine.tfm and displacement.nii.gz are the two parts
        of transform.h5; the second is there where something was deformed. Several fields in a row are one there,
        sampled on the fixed grid; where a field follows an affine, as it may after a transform to start from, all of it
        is in the displacement, and the affine is the identity. All of the files are written, or none.

        Args:
            to: a folder, or names of the files.
            overwrite: replace files that are there; those of the result before that this one does not have are removed.
            passengers: what writes further files, by their paths; each is given a path to write to.
            notes: what the report says besides.
            examine: is given the written transform and warped image before they take their places; what it says of them
                is the report's "export".
            keep: files that stay, whatever an earlier result's report says of them, as the two images do.

        Returns:
            The files.

        Raises:
            FileExistsError: if one of the files is there and may not be replaced.
            OSError: if the folder cannot be written to.
        """
        outputs, passengers = to if isinstance(to, Outputs) else Outputs.in_folder(Path(to)), passengers or {}
        fields, _ = self.transform.fields_and_affine()
        paths = {what: path for what, path in outputs.paths.items() if fields.links or what != "displacement"}
        files = [*paths.values(), *passengers, *outputs.beside]
        expect_free([*outputs.all, *passengers], overwrite)
        earlier, stay = outputs.earlier, {Path(path).resolve() for path in (*keep, self.fixed.name, self.moving.name)}
        from dio_lightning.registration.picture import title_of, write_page

        # the report comes last to its place
        with replacing_all([outputs.report, *(path for path in files if path != outputs.report)]) as temporary:
            pair = self._write({what: temporary[path] for what, path in paths.items()})
            for path, write in passengers.items():
                write(temporary[path])
            for path, text in outputs.beside.items():
                temporary[path].write_text(text, encoding="utf-8")
            written: dict[str, Any] = {what: path.name for what, path in paths.items()}
            written["passengers"] = [path.name for path in passengers]
            report = {**self.report(), **(notes or {}), "files": written}
            if examine is not None:
                report["export"] = examine(temporary[paths["transform"]], temporary[paths["warped"]])
            if "page" in paths:
                write_page(
                    temporary[paths["page"]], pair, title_of(self.fixed, self.moving), _plain(report), self.curves
                )
            temporary[outputs.report].write_text(json.dumps(_plain(report), indent=2) + "\n", encoding="utf-8")
        for path in {*outputs.paths.values(), *earlier} - {*files}:
            if path.resolve() not in stay:
                path.unlink(missing_ok=True)  # of an earlier result, to whose transform it belonged
        for path, text in outputs.shared.items():
            if not path.exists():
                write_atomic(path, text)
        return files

    def _write(self, paths: Mapping[str, Path]) -> "Upright":
        """Images and transforms, by what they are; returns what was drawn."""
        from dio_lightning.registration.picture import draw, standing, title_of

        fixed, moving = self.fixed.grid, self.moving.grid
        fields, affine = self.transform.fields_and_affine()
        written = {"transform": self.transform, "affine": affine, "displacement": fields}
        written |= dict.fromkeys(OTHERS, self.transform)
        save_image(paths["warped"], self.warp())
        write_transform(paths["inverse"], self.inverse, moving, fixed, overwrite=True)
        for what in written.keys() & paths.keys():
            format = cast(Format, what if what in OTHERS else "itk")
            write_transform(paths[what], written[what], fixed, moving, format, overwrite=True)
        pair = standing(self.fixed, self.moving, self.transform, self.labels)
        draw(paths["picture"], pair, title_of(self.fixed, self.moving))
        return pair

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


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def save_image(path: Path, image: Nifti1Image) -> None:
    """Write an image that `Registration.warp` made; whole or not at all."""
    header: Any = image.header
    slope, intercept = header.get_slope_inter()
    scale = None if slope is None else (float(slope), float(intercept))
    save_volume(path, np.asanyarray(image.dataobj), image.affine, scale)  # pyright: ignore[reportArgumentType]
