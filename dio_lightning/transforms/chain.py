"""Transforms one after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dio_lightning.transforms.base import Inverse, Transform
from dio_lightning.transforms.links import Affine
from dio_lightning.transforms.world import ImageGrid


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Transforms applied first to last to points of the fixed world; none is the identity."""

    parts: Sequence[Transform] = ()

    @property
    def links(self) -> Sequence[Transform]:
        """Affines and fields; chains among the parts are opened."""
        return [link for part in self.parts for link in part.links]

    @property
    def planar(self) -> bool:
        """Whether all links are."""
        return all(link.planar for link in self.links)

    def __add__(self, after: Transform) -> "Chain":
        """First this one, then `after`."""
        return Chain([self, after])

    def map(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """Where points of the fixed world lie in the moving one."""
        for link in self.links:
            points = link.map(points)
        return points

    def at(self, grid: ImageGrid) -> Float[Tensor, "3 *s"]:
        """Where the voxels of a grid lie in the moving world."""
        if not self.links:
            return grid.points()
        return Chain(self.links[1:]).map(self.links[0].at(grid))

    def origins(self, points: Float[Tensor, "3 *t"]) -> Float[Tensor, "3 *t"]:
        """The points of the fixed world that lie at these of the moving one."""
        for link in reversed(self.links):
            points = link.origins(points)
        return points

    def inverse(self, grid: ImageGrid | None = None) -> Inverse:
        """The inverses of all links, last to first; distances of several fields are added, as their errors may be.

        A grid, in the moving world, is carried to each field through the affines behind it.
        """
        links: list[Transform] = []
        mean = largest = 0.0
        covered = 1.0
        for link in reversed(self.links):
            back = link.inverse(grid)
            links += back.transform.links
            mean, largest, covered = mean + back.mean, largest + back.largest, min(covered, back.covered)
            if grid is not None and isinstance(link, Affine):
                grid = ImageGrid(grid.size, np.linalg.inv(link.matrix) @ grid.affine)
        return Inverse(Chain(links), mean, largest, covered)

    def merged(self) -> "Chain":
        """The same map with neighbouring affines multiplied."""
        links: list[Transform] = []
        for link in self.links:
            if links and isinstance(link, Affine) and isinstance(last := links[-1], Affine):
                links[-1] = Affine(link.matrix @ last.matrix)
            else:
                links.append(link)
        return Chain(links)

    def fields_and_affine(self) -> "tuple[Chain, Chain]":
        """The same map as fields, followed by one affine.

        Where a field follows an affine, both are among the fields, and the affine is the identity.
        """
        links = self.merged().links
        fields = list(takewhile(lambda link: not isinstance(link, Affine), links))
        rest = links[len(fields) :]
        if len(rest) > 1:
            fields, rest = [*links], []
        return Chain(fields), Chain([Affine(np.eye(4)), *rest]).merged()
