"""One picture a pair: what was registered, how well, and how the space was bent."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from nibabel.orientations import io_orientation
from torch import Tensor

from dio_lightning.callbacks.drawing import Array, Plane, draw
from dio_lightning.callbacks.volumes import grid_affine
from dio_lightning.callbacks.writer import pair_ids
from dio_lightning.fields import identity, jacobian_determinant, on_one_grid, warp
from dio_lightning.fields.names import full_name, pair_name
from dio_lightning.files import replacing
from dio_lightning.pair import Pair

SIDES = (("L", "R"), ("P", "A"), ("I", "S"))


class Panels(Callback):
    """Writes panels/<fixed>_<moving>.png for the first pairs of a test, under the trainer's default_root_dir.

    Volumes are cut across the given axis of the standing body (0 sagittal, 1 coronal, 2 axial) through the middle of
    the fixed labels or mask, and stand upright whatever the order of their axes: the affine says where up is.
    """

    def __init__(self, pairs: int = 3, axis: int = 1) -> None:
        """Choose the pictures.

        Args:
            pairs: how many pairs are drawn.
            axis: the axis that a slice is perpendicular to.

        `written` lists the pictures of the test.

        Raises:
            ValueError: pairs is negative, or axis not one of 0, 1, 2.
        """
        if pairs < 0 or axis not in (0, 1, 2):
            raise ValueError(f"Panels: expected pairs >= 0 and axis 0, 1 or 2, not pairs={pairs} and axis={axis}")
        self.pairs, self.axis = pairs, axis
        self.written: list[Path] = []
        self._names: dict[str, tuple[str, str]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from zero."""
        self.written = []
        self._names = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the pairs of the batch while there are pictures left; one process draws."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        for sample in range(min(len(batch["fixed"]), self.pairs - len(self.written))):
            fixed, moving = pair_ids(batch, sample, f"{dataloader_idx}x{len(self.written)}")
            figure = draw(cut(batch, outputs["displacement"], sample, self.axis), f"{moving} onto {fixed}")
            name = pair_name(fixed, moving)
            if self._names.setdefault(name, (fixed, moving)) != (fixed, moving):
                name = full_name(fixed, moving)
            path = Path(trainer.default_root_dir) / "panels" / f"{name}.png"
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=110)
            self.written.append(path)


def cut(batch: Pair, displacement: Tensor, sample: int, axis: int) -> Plane:
    """The slice of one pair of a batch to draw; displacement is (b, d, *s)."""
    u = displacement[sample : sample + 1].detach().float().cpu()
    batch = on_one_grid(batch)
    fixed, moving = (batch[name][sample : sample + 1].detach().float().cpu() for name in ("fixed", "moving"))
    channels = [fixed[0, 0], moving[0, 0], warp(moving, u)[0, 0], jacobian_determinant(u)[0]]
    inside = batch.get("fixed_label", batch.get("fixed_mask", batch["fixed"]))[sample, 0]
    deformation = (identity(u.shape[2:], u) + u)[0]
    stack = np.stack([c.numpy() for c in (*channels, inside.float().cpu() > 0, *deformation)])
    d = u.shape[1]
    affine = grid_affine(batch, sample)
    stack, spacing = _upright(stack, affine, d)
    # a 2-D image is its own slice
    across = [axis] if d > 2 else []
    index = [_middle(stack[4], a) for a in across]
    shown = [a for a in range(d) if a not in across]
    for a, i in zip(across, index, strict=True):
        stack = np.take(stack, i, axis=a + 1)
    names = ("fixed", "moving", "warped", "determinant")
    letters = [letter for a in shown for letter in SIDES[a]] if "affine" in batch and d > 2 else [""] * 4
    return Plane(
        dict(zip(names, stack[:4], strict=True)),
        stack[5:][shown],
        float(spacing[shown[1]] / spacing[shown[0]]),
        (letters[0], letters[1], letters[2], letters[3]),
    )


def _upright(stack: Array, affine: Array, d: int) -> tuple[Array, Array]:
    """Channels (4 images, inside, d coordinates; each *s) with axes to the right, front and top, and their spacing."""
    turn = io_orientation(affine)[:d].astype(int)
    # a slice keeps two of the body's three axes, in their order
    turn[:, 0] = turn[:, 0].argsort().argsort()
    spacing = np.empty(d)
    coordinates = np.empty_like(stack[5:])
    for old, (new, flip) in enumerate(turn):
        spacing[new] = np.linalg.norm(affine[:, old])
        extent = stack.shape[1 + old] - 1
        coordinates[new] = stack[5 + old] if flip > 0 else extent - stack[5 + old]
    stack = np.concatenate([stack[:5], coordinates])
    order = np.argsort(turn[:, 0])
    stack = np.transpose(stack, (0, *(order + 1)))
    backwards = [1 + new for new, old in enumerate(order) if turn[old, 1] < 0]
    return np.flip(stack, tuple(backwards)), spacing


def _middle(inside: Array, axis: int) -> int:
    """Centre of the object along an axis; that of the grid if there is none."""
    area = inside.sum(axis=tuple(a for a in range(inside.ndim) if a != axis))
    return int(np.average(np.arange(len(area)), weights=area)) if area.any() else len(area) // 2
