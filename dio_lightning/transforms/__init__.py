"""Transforms between any two grids of the world, as values and as files."""

from dio_lightning.transforms.base import Inverse, Transform
from dio_lightning.transforms.chain import Chain
from dio_lightning.transforms.files import read_transform, write_transform
from dio_lightning.transforms.links import Affine, Field
from dio_lightning.transforms.resampling import Moved, warp_image, warp_points
from dio_lightning.transforms.world import ImageGrid

__all__ = [
    "Affine",
    "Chain",
    "Field",
    "ImageGrid",
    "Inverse",
    "Moved",
    "Transform",
    "read_transform",
    "warp_image",
    "warp_points",
    "write_transform",
]
