"""The one reader of headers: NIfTI's rules against the raw header, units, other formats, damaged files."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_modules.checking.places import apart
from dio_lightning.headers import Unreadable, is_image, read_header, stem

SHAPE = (5, 6, 7)


def rotated(rng: np.random.Generator, spacing: np.ndarray, flip: bool) -> np.ndarray:
    """A rigid affine with these voxel sizes."""
    matrix = Rotation.random(random_state=rng).as_matrix() * spacing
    if flip:
        matrix[:, 0] *= -1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, rng.uniform(-100, 100, 3)
    return affine


def write(path: Path, data: np.ndarray | None = None, **fields: object) -> Path:
    """A NIfTI file whose header has these fields, whatever they mean together."""
    image = fields.pop("image", None) or nib.Nifti1Image(np.ones(SHAPE, np.float32) if data is None else data, None)
    for name, value in fields.items():
        if name == "qform":
            image.header.set_qform(value, code=1)
        elif name == "sform":
            for row, values in zip(("srow_x", "srow_y", "srow_z"), np.asarray(value)[:3], strict=True):
                image.header[row] = values
        elif name == "unit":
            image.header.set_xyzt_units(value)
        else:
            image.header[name] = value
    nib.save(image, path)
    return path


def from_quaternion(header: nib.Nifti1Header) -> np.ndarray:
    """Method 2 of the NIfTI-1 standard, from the raw fields."""
    b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
    matrix = Rotation.from_quat([b, c, d, np.sqrt(max(0.0, 1 - b * b - c * c - d * d))]).as_matrix()
    pixdim = np.asarray(header["pixdim"], dtype=float)
    affine = np.eye(4)
    affine[:3, :3] = matrix * pixdim[1:4] * [1, 1, -1 if pixdim[0] < 0 else 1]
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


@pytest.mark.parametrize("seed", range(24))
def test_the_forms_of_many_headers(tmp_path: Path, seed: int) -> None:
    """A1: sform by its code, else qform, else voxel sizes; pixdim that disagrees changes nothing of the sform."""
    rng = np.random.default_rng(seed)
    codes = int(rng.integers(0, 5)), int(rng.integers(0, 5))
    sform = rotated(rng, rng.uniform(0.3, 4, 3), bool(rng.integers(2)))
    sform[:3, :3] @= np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3)) * (seed % 2)  # shear, which a qform cannot have
    path = write(
        tmp_path / "image.nii.gz",
        qform=rotated(rng, rng.uniform(0.3, 4, 3), bool(rng.integers(2))),
        sform=sform,
        qform_code=codes[0],
        sform_code=codes[1],
    )
    raw = nib.load(path).header
    pixdim = np.asarray(raw["pixdim"], dtype=float)
    header = read_header(path)
    if codes[1] > 0:
        expected, source = sform, "sform"
    elif codes[0] > 0:
        expected, source = from_quaternion(raw), "qform"
    else:
        expected, source = None, "voxel size"
    assert header.source == source
    if expected is not None:
        np.testing.assert_allclose(header.affine, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        header.spacing, pixdim[1:4] if codes[1] == 0 else np.linalg.norm(sform[:3, :3], axis=0), rtol=1e-5
    )
    assert header.right_handed == (np.linalg.det(header.affine[:3, :3]) > 0)
    assert header.axes == "".join(nib.aff2axcodes(header.affine))


def test_a_scale_of_the_sform_is_kept(tmp_path: Path) -> None:
    """A1: an sform that is not quite what pixdim says is the sform all the same."""
    sform = np.diag([2.0, 2, 2, 1])
    sform[0, 0] *= 1 + 1e-4
    qform = np.diag([2.0, 2, 2, 1])
    qform[:3, 3] = 12, -8, 10
    path = write(tmp_path / "image.nii.gz", qform=qform, sform=sform, qform_code=1, sform_code=2)
    np.testing.assert_allclose(read_header(path).affine, sform, rtol=1e-6)
    sform[:3, :3] *= 1.25
    path = write(tmp_path / "image.nii.gz", qform=qform, sform=sform, qform_code=1, sform_code=2)
    np.testing.assert_allclose(read_header(path).spacing, [2.5 * (1 + 1e-4), 2.5, 2.5], rtol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("unknown", 1), ("mm", 1), ("micron", 1e-3), ("meter", 1e3)])
@pytest.mark.parametrize("form", ["sform", "qform", "pixdim"])
def test_units_become_millimetres(tmp_path: Path, unit: str, factor: float, form: str) -> None:
    """A5: also voxels of 1e-5 m, which have a determinant of 1e-15."""
    in_mm = np.diag([0.01, 0.02, 0.03, 1])
    in_mm[:3, 3] = 5, -6, 7
    stored = in_mm.copy()
    stored[:3] /= factor
    codes = {"sform": (0, 1), "qform": (1, 0), "pixdim": (0, 0)}[form]
    path = write(tmp_path / "a.nii", qform=stored, sform=stored, unit=unit, qform_code=codes[0], sform_code=codes[1])
    header = read_header(path)
    assert header.unit == unit and header.invertible
    np.testing.assert_allclose(header.spacing, [0.01, 0.02, 0.03], rtol=1e-6)
    if form != "pixdim":
        np.testing.assert_allclose(header.affine, in_mm, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_freesurfer_files(tmp_path: Path, suffix: str, kind: type) -> None:
    """B3: the affine in RAS millimetres, values, and no footer taken for a damage."""
    data = np.random.default_rng(0).integers(0, 200, SHAPE).astype(kind)
    affine = np.array([[-1.0, 0, 0, 90], [0, 0, 1, -126], [0, -1, 0, 72], [0, 0, 0, 1]])
    header = nib.MGHImage(data, affine).header
    # nibabel cannot save integers of 32 bits beside NumPy 2; a footer follows the data, as FreeSurfer writes it
    content = (
        header.binaryblock
        + bytes(284 - len(header.binaryblock))
        + data.astype(data.dtype.newbyteorder(">")).tobytes("F")
    )
    packed = gzip.compress(content + bytes(20)) if suffix == ".mgz" else content + bytes(20)
    (tmp_path / f"brain{suffix}").write_bytes(packed)
    header = read_header(tmp_path / f"brain{suffix}")
    assert header.shape == SHAPE and header.source == "MGH" and header.cut_off is None and header.axes == "LIA"
    np.testing.assert_allclose(header.affine, affine)
    np.testing.assert_array_equal(header.values(), data)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".img"])
def test_files_that_were_cut_off(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    data = np.random.default_rng(0).integers(0, 200, (20, 20, 20)).astype(np.int16)
    kind = {".mgz": nib.MGHImage, ".img": nib.Nifti1Pair}.get(suffix, nib.Nifti1Image)
    nib.save(kind(data, np.eye(4)), path)
    assert read_header(path).cut_off is None
    whole = path.read_bytes()
    content = gzip.decompress(whole) if suffix in (".nii.gz", ".mgz") else whole
    packed = suffix in (".nii.gz", ".mgz")
    path.write_bytes(gzip.compress(content[: len(content) // 2]) if packed else content[: len(content) // 2])
    assert read_header(path).cut_off is not None
    with pytest.raises(Unreadable, match=r"image\S+ cannot be read \(.*\), expected a NIfTI, MGH or Analyze file$"):
        read_header(path).values()


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_are_refused_in_one_sentence(tmp_path: Path, seed: int) -> None:
    """B1: a header may say anything; nothing but `Unreadable` comes out of the reader."""
    rng = np.random.default_rng(seed)
    path = write(tmp_path / "image.nii")
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, 352, 30):
        content[place] = int(rng.integers(256))
    path.write_bytes(content)
    try:
        header = read_header(path)
    except Unreadable as error:
        assert str(error).startswith(f"{path} ") and "\n" not in str(error)
    else:
        assert header.affine.shape == (4, 4) and len(header.axes) == min(header.dimension, 3)


def test_an_sform_of_zeros_is_singular(tmp_path: Path) -> None:
    """B1."""
    path = write(tmp_path / "image.nii", sform=np.zeros((4, 4)), sform_code=1, pixdim=np.zeros(8))
    header = read_header(path)
    assert not header.invertible and header.axes == "???"


def test_values_keep_their_integers_and_scales_are_applied(tmp_path: Path) -> None:
    data = np.zeros(SHAPE, np.int32)
    data[1, 2, 3] = 576073732
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "labels.nii.gz")
    header = read_header(tmp_path / "labels.nii.gz")
    assert header.values().dtype.kind == "i" and header.values()[1, 2, 3] == 576073732 and header.scale == (1.0, 0.0)
    image = nib.Nifti1Image(np.full(SHAPE, 30, np.int16), np.eye(4))
    image.header.set_slope_inter(0.1, 2)
    nib.save(image, tmp_path / "scaled.nii")
    header = read_header(tmp_path / "scaled.nii")
    assert header.scale == pytest.approx((0.1, 2.0)) and header.values() == pytest.approx(np.full(SHAPE, 5.0))


def test_names() -> None:
    assert [stem(name) for name in ("a.nii.gz", "a.b.mgz", "a.IMG", "a.mgh.gz", "a.csv")] == [
        "a",
        "a.b",
        "a",
        "a",
        "a.csv",
    ]
    assert is_image(Path("a.nii")) and not is_image(Path("._a.nii")) and not is_image(Path("a.csv"))


@pytest.mark.parametrize("seed", range(60))
def test_images_are_apart_where_no_point_lies_in_both(tmp_path: Path, seed: int) -> None:
    """A2: against a dense grid of points; boxes that only just touch are left out."""
    rng = np.random.default_rng(seed)
    d = 2 + seed % 2
    headers = []
    for name in ("one", "two"):
        shape = tuple(int(n) for n in rng.integers(4, 12, d))
        affine = rotated(rng, rng.uniform(0.5, 2, 3), bool(rng.integers(2))) if d == 3 else np.eye(4)
        if d == 2:
            angle = rng.uniform(0, np.pi)
            affine[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * rng.uniform(
                0.5, 2
            )
        affine[:3, 3] = 0
        affine[:d, 3] = rng.uniform(-9, 9, d)
        nib.save(nib.Nifti1Image(rng.random(shape, np.float32), affine), tmp_path / f"{name}.nii")
        headers.append(read_header(tmp_path / f"{name}.nii"))
    one, two = headers
    fine = np.stack(np.meshgrid(*(np.linspace(-0.5, n - 0.5, 30) for n in one.shape), indexing="ij")).reshape(d, -1)
    change = np.linalg.solve(two.affine, one.affine)
    there = change[:d, :d] @ fine + change[:d, 3:]
    last = np.array(two.shape)[:, None] - 1

    def any_inside(margin: float) -> bool:
        return bool(((there >= -0.5 - margin) & (there <= last + 0.5 + margin)).all(0).any())

    if any_inside(0.0):
        assert not apart(one, two) and not apart(two, one)
    elif not any_inside(1.0):
        assert apart(one, two) and apart(two, one)
