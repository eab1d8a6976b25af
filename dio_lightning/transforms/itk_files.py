"""ITK's files of transforms: HDF5, text, MATLAB (ANTs' affines), and displacements as NIfTI images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat, savemat

from dio_lightning.errors import times
from dio_lightning.fields.files import VECTOR, Stored
from dio_lightning.files import replacing, write_atomic
from dio_lightning.transforms.chain import Chain
from dio_lightning.transforms.itk_parameters import Numbers, chain_of, field_of, field_parts, numbers_of
from dio_lightning.transforms.links import Field
from dio_lightning.volume_files import save_volume

HEAD = "#Insight Transform File V1.0"
ORTHONORMAL = 1e-4
"""Share of an edge by which the axes of an image of ITK may miss a right angle."""
DAMAGED = (OSError, KeyError, TypeError, RuntimeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What h5py raises for a file that is none, or damaged."""
_NAME = re.compile(r"(\w+?)_(?:double|float)_([23])_([23])")


def read_h5(path: Path) -> Chain:
    """A transform in HDF5, as ITK, SimpleITK, Slicer and antsRegistration (--write-composite-transform) write it.

    Raises:
        ValueError: if the file is damaged, or holds what is no such transform.
    """
    import h5py  # only who reads HDF5 waits for it

    listed = []
    try:
        with h5py.File(path, "r") as file:
            groups: Any = file["TransformGroup"]
            for key in sorted(groups, key=int):
                name = bytes(groups[key]["TransformType"][0]).decode("ascii")
                # ITK before version 5 forgot a letter
                lists = [
                    next((np.asarray(groups[key][k]) for k in names if k in groups[key]), np.zeros(0))
                    for names in (
                        ("TransformParameters", "TranformParameters"),
                        ("TransformFixedParameters", "TranformFixedParameters"),
                    )
                ]
                listed.append(_numbers(name, *lists))
    except DAMAGED as error:
        raise ValueError(f"cannot be read as ITK's HDF5 ({_first_line(error)})") from error
    return chain_of(listed)


def write_h5(path: Path, chain: Chain, d: int) -> None:
    """Write a chain as one composite in HDF5; float32 fields stay float32."""
    import h5py

    text = h5py.string_dtype("ascii")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, value in (("ITKVersion", "5.4.0"), ("HDFVersion", h5py.version.hdf5_version)):
            file.create_dataset(name, data=[value], dtype=text)
        listed = numbers_of(chain, d)
        for index, numbers in enumerate(listed):
            group = file.create_group(f"TransformGroup/{index}")
            group.create_dataset("TransformType", data=[_typed(numbers)], dtype=text)
            if numbers.name != "CompositeTransform":
                group.create_dataset("TransformFixedParameters", data=numbers.fixed)
                packed = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
                few = len(numbers.parameters) < 100
                group.create_dataset("TransformParameters", data=numbers.parameters, **({} if few else packed))


def read_text(text: str) -> Chain:
    """A transform in ITK's text, .tfm or .txt.

    Raises:
        ValueError: if it is none.
    """
    listed: list[Numbers] = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Transform":
            listed.append(_numbers(value.strip(), np.zeros(0), np.zeros(0)))
        elif key.strip() in ("Parameters", "FixedParameters"):
            if not listed:
                raise ValueError("has parameters before the first transform")
            try:
                values = np.array(value.split(), dtype=float)
            except ValueError as error:
                raise ValueError(f"has parameters that are no numbers ({error})") from error
            field = "parameters" if key.strip() == "Parameters" else "fixed"
            listed[-1] = listed[-1]._replace(**{field: values})
        elif line.strip() and not line.startswith("#"):
            raise ValueError(f"has the line {line[:40]!r}, expected Transform, Parameters or FixedParameters")
    if not listed:
        raise ValueError("holds no transform")
    return chain_of(listed)


def write_text(path: Path, chain: Chain, d: int) -> None:
    """Write affines as ITK's text, 17 digits each.

    Raises:
        ValueError: if the chain has a field: text would take a hundred bytes a voxel.
    """
    _no_fields(chain, path)
    lines = [HEAD]
    for index, numbers in enumerate(numbers_of(chain, d)):
        lines += [f"#Transform {index}", f"Transform: {_typed(numbers)}"]
        if numbers.name != "CompositeTransform":
            lines += [f"Parameters: {_row(numbers.parameters)}", f"FixedParameters: {_row(numbers.fixed)}"]
    write_atomic(path, "\n".join(lines) + "\n")


def read_mat(path: Path) -> Chain:
    """An affine as ANTs writes it, 0GenericAffine.mat: a MATLAB file of version 4.

    Raises:
        ValueError: if it is damaged, or holds something else.
    """
    try:
        content = loadmat(path)
    except Exception as error:  # scipy names no exceptions for what it cannot read
        raise ValueError(f"cannot be read as a MATLAB file ({_first_line(error)})") from error
    names = [name for name in content if _NAME.fullmatch(name)]
    if len(names) != 1 or content[names[0]].dtype.kind not in "fiu":
        raise ValueError("holds no transform of ITK, expected one such as AffineTransform_double_3_3")
    fixed = content.get("fixed", np.zeros(0))
    return chain_of([_numbers(names[0], content[names[0]].astype(float).ravel(), np.asarray(fixed, float).ravel())])


def write_mat(path: Path, chain: Chain, d: int) -> None:
    """Write affines, multiplied, as ANTs' MATLAB file.

    Raises:
        ValueError: if the chain has a field.
    """
    _no_fields(chain, path)
    (numbers,) = numbers_of(chain.merged(), d)
    lists = {_typed(numbers): numbers.parameters, "fixed": numbers.fixed}
    with replacing(path) as temporary, temporary.open("wb") as file:
        savemat(file, lists, format="4", oned_as="column")


def read_field(file: Stored) -> Chain:
    """A displacement image: five axes, NIfTI's intent `vector`, LPS millimetres, with the grid of its header.

    Raises:
        ValueError: for another shape, or a header that does not say where it lies.
    """
    assert file.header is not None
    shape, d = file.values.shape, file.values.shape[-1]
    if d not in (2, 3) or shape[d:4] != (1,) * (4 - d):
        raise ValueError(f"has shape {times(shape)}, expected a grid of 2 or 3 axes and as many components")
    if not file.header.invertible:
        raise ValueError("has an affine that is not invertible, expected one that says where it lies")
    return Chain([field_of(np.moveaxis(file.values, -1, 0).reshape(d, *shape[:d]), file.header.affine)])


def write_field(path: Path, field: Field) -> None:
    """Write a displacement image for ITK, ANTs and Slicer, float32.

    Raises:
        ValueError: if its grid is sheared, which ITK does not read, or a plane's field leaves the plane.
    """
    v, size, _ = field_parts(field)
    edges = field.affine[:3, :3] / np.linalg.norm(field.affine[:3, :3], axis=0).clip(1e-12)
    angles = (edges.T @ edges - np.eye(3))[: len(size), : len(size)]
    if np.abs(angles).max() > ORTHONORMAL:
        raise ValueError("a field's grid is sheared, which ITK's images cannot be: name another grid, or write .h5")
    array = v.movedim(0, -1).float().numpy().reshape(*size, *[1] * (4 - len(size)), len(size))
    save_volume(path, array, field.affine, intent=VECTOR)


def _numbers(typed: str, parameters: np.ndarray, fixed: np.ndarray) -> Numbers:
    match = _NAME.fullmatch(typed)
    if match is None or match[2] != match[3]:
        raise ValueError(f"holds {typed[:60]!r}, expected a transform such as AffineTransform_double_3_3")
    if not (np.isfinite(parameters).all() and np.isfinite(fixed).all()):
        raise ValueError("has parameters that are NaN or infinite, expected finite ones")
    return Numbers(match[1], int(match[2]), parameters, fixed)


def _typed(numbers: Numbers) -> str:
    return f"{numbers.name}_double_{numbers.d}_{numbers.d}"


def _row(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{value:.17g}" for value in values)


def _no_fields(chain: Chain, path: Path) -> None:
    if any(isinstance(link, Field) for link in chain.links):
        raise ValueError(f"{path.name} cannot hold a displacement field, expected .h5, .nii.gz or .npz")


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
