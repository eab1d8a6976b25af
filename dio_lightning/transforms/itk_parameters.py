"""ITK's transforms as lists of numbers, whatever file holds them, and ours.

ITK counts in LPS millimetres: x and y point the other way. Its matrices turn about a centre c, x → M (x − c) + c + t.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from dio_lightning.errors import times
from dio_lightning.transforms.base import Transform
from dio_lightning.transforms.chain import Chain
from dio_lightning.transforms.links import Affine, Field

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS to LPS and back."""
IN_PLANE = 1e-6
"""Share of a length by which a plane's transform may leave the plane x, y."""


class Numbers(NamedTuple):
    """One transform of a file: ITK's name of its class without types, its dimension, and its two lists."""

    name: str
    d: int
    parameters: NDArray
    fixed: NDArray[np.float64]


Read = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Parameters to a matrix and a translation."""


def _versor(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation of a versor's vector part, whose scalar part is not negative."""
    return Rotation.from_quat([*p[:3], np.sqrt(max(0.0, 1 - float(p[:3] @ p[:3])))]).as_matrix()


def _turn(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _affine(d: int) -> Read:
    return lambda p: (p[: d * d].reshape(d, d), p[d * d :])


def _euler(order: str) -> Read:
    return lambda p: (Rotation.from_euler(order, [p["XYZ".index(axis)] for axis in order]).as_matrix(), p[3:])


LINEAR: dict[tuple[str, int], tuple[int, Read]] = {
    **{(name, d): (d * d + d, _affine(d)) for name in ("AffineTransform", "MatrixOffsetTransformBase") for d in (2, 3)},
    **{("TranslationTransform", d): (d, lambda p: (np.eye(len(p)), p)) for d in (2, 3)},
    **{("ScaleTransform", d): (d, lambda p: (np.diag(p), np.zeros(len(p)))) for d in (2, 3)},
    **{("IdentityTransform", d): (0, lambda p, d=d: (np.eye(d), np.zeros(d))) for d in (2, 3)},
    ("VersorTransform", 3): (3, lambda p: (_versor(p), np.zeros(3))),
    ("VersorRigid3DTransform", 3): (6, lambda p: (_versor(p), p[3:])),
    ("Similarity3DTransform", 3): (7, lambda p: (_versor(p) * p[6], p[3:6])),
    ("Euler2DTransform", 2): (3, lambda p: (_turn(p[0]), p[1:])),
    ("Rigid2DTransform", 2): (3, lambda p: (_turn(p[0]), p[1:])),
    ("Similarity2DTransform", 2): (4, lambda p: (_turn(p[1]) * p[0], p[2:])),
    ("Euler3DTransform", 3): (6, _euler("ZXY")),
}
"""ITK's linear transforms: number of parameters, and what they are."""


def from_numbers(numbers: Numbers) -> Affine | Field:
    """One transform of ITK.

    Raises:
        ValueError: for a class that is not read, or lists that do not belong to it.
    """
    if numbers.name == "DisplacementFieldTransform":
        return _field(numbers)
    if (numbers.name, numbers.d) not in LINEAR:
        read = sorted({name for name, _ in LINEAR})
        raise ValueError(
            f"holds a {numbers.name} in {numbers.d} dimensions, expected one of {', '.join(read)}, "
            "DisplacementFieldTransform or CompositeTransform"
        )
    count, read = LINEAR[numbers.name, numbers.d]
    if len(numbers.parameters) != count:
        raise ValueError(f"holds a {numbers.name} of {len(numbers.parameters)} parameters, expected {count}")
    if numbers.name == "Euler3DTransform" and len(numbers.fixed) > 3 and numbers.fixed[3]:
        read = _euler("ZYX")
    matrix, translation = read(numbers.parameters)
    d, centre = numbers.d, np.zeros(numbers.d)
    if numbers.name not in ("TranslationTransform", "IdentityTransform") and len(numbers.fixed) >= d:
        centre = numbers.fixed[:d]
    lps = np.eye(4)
    lps[:d, :d], lps[:d, 3] = matrix, centre + translation - matrix @ centre
    return Affine(FLIP @ lps @ FLIP)


def to_numbers(transform: Transform, d: int) -> Numbers:
    """A transform as ITK's, with the world's origin as its centre.

    Raises:
        ValueError: if one of two dimensions leaves the plane x, y.
    """
    if isinstance(transform, Field):
        v, size, lps = field_parts(transform)
        spacing = np.linalg.norm(lps[:d, :d], axis=0)
        fixed = [np.array(size, dtype=float), lps[:d, 3], spacing, (lps[:d, :d] / spacing).ravel()]
        parameters = np.asarray(v.movedim(0, -1).permute(*range(d - 1, -1, -1), d).numpy()).ravel()
        return Numbers("DisplacementFieldTransform", d, parameters, np.concatenate(fixed))
    if not isinstance(transform, Affine):
        raise TypeError(f"{type(transform).__name__} is no Affine and no Field")
    lps = FLIP @ transform.matrix @ FLIP
    if d == 2 and max(np.abs(lps[2, :2]).max(), np.abs(lps[:2, 2]).max()) > IN_PLANE:
        raise ValueError("an affine leaves the plane x, y, which ITK's transforms of two dimensions cannot")
    return Numbers("AffineTransform", d, np.concatenate([lps[:d, :d].ravel(), lps[:d, 3]]), np.zeros(d))


def field_parts(field: Field) -> tuple[Float[Tensor, "d *s"], tuple[int, ...], NDArray[np.float64]]:
    """LPS displacement of d components, size, and affine (4, 4) of the grid to LPS millimetres.

    Raises:
        ValueError: if a plane's field leaves the plane x, y of the world.
    """
    size, lps = field.grid.size, FLIP @ field.affine
    d = len(size)
    v = field.displacement * torch.tensor([-1.0, -1.0, 1.0], dtype=field.displacement.dtype).view(3, *[1] * d)
    if d == 2:
        beside = float(v[2].abs().max()) > IN_PLANE * max(1.0, float(v.abs().max()))
        if beside or np.abs(lps[2, :2]).max() > IN_PLANE * np.linalg.norm(lps[:3, :2]):
            raise ValueError("a field leaves the plane x, y, which ITK's fields of two dimensions cannot")
    return v[:d], size, lps


def chain_of(listed: Sequence[Numbers]) -> Chain:
    """The transforms of a file in the order in which they are applied: ITK applies the last one first.

    Raises:
        ValueError: as `from_numbers`; also for a composite that is not the file's first transform.
    """
    composite = bool(listed) and listed[0].name == "CompositeTransform"
    links = listed[1:] if composite else listed
    if not composite and len(links) != 1:
        raise ValueError(f"holds {len(links)} transforms and no CompositeTransform, expected one or a composite")
    return Chain([from_numbers(numbers) for numbers in reversed(links)])


def numbers_of(chain: Chain, d: int) -> list[Numbers]:
    """A chain as ITK stores it: a composite, and its transforms with the first one last; a single one as itself."""
    links = chain.links or (Affine(np.eye(4)),)
    listed = [to_numbers(link, d) for link in reversed(links)]
    empty = np.zeros(0)
    return listed if len(listed) == 1 else [Numbers("CompositeTransform", d, empty, empty), *listed]


def _field(numbers: Numbers) -> Field:
    d, fixed = numbers.d, numbers.fixed
    if d not in (2, 3) or len(fixed) != 3 * d + d * d:
        raise ValueError(f"holds a field of {len(fixed)} fixed parameters, expected {3 * d + d * d}")
    size = tuple(int(extent) for extent in fixed[:d])
    if min(size) < 1 or len(numbers.parameters) != d * int(np.prod(size)):
        raise ValueError(f"holds a field of {len(numbers.parameters)} numbers, expected {d} for each of {times(size)}")
    lps = np.eye(4)
    lps[:d, :d] = fixed[3 * d :].reshape(d, d) * fixed[2 * d : 3 * d]
    lps[:d, 3] = fixed[d : 2 * d]
    values = numbers.parameters.reshape(*size[::-1], d).transpose(d, *range(d - 1, -1, -1))
    return field_of(values, FLIP @ lps)


def field_of(values: NDArray, affine: NDArray[np.float64]) -> Field:
    """That of LPS displacements (d, *s) on a grid; affine (4, 4) leads to RAS millimetres."""
    v = np.zeros(
        (3, *values.shape[1:]),
        dtype=np.float32 if values.dtype.itemsize <= 4 and values.dtype.kind == "f" else np.float64,
    )
    v[: len(values)] = values
    v[:2] *= -1
    return Field(torch.from_numpy(v), affine)
