"""Options of data modules that contradict each other."""

from collections.abc import Sequence

from data_modules.augment import Augmentation, Swap
from data_modules.layout import CasePair


def check_window(normalise: str, clip: Sequence[float] | None) -> None:
    """Intensities that are kept.

    Raises:
        ValueError: if there are none, or a window is missing.
    """
    if clip is not None and not clip[0] < clip[1]:
        raise ValueError(f"clip is {clip}, expected a least value below the largest")
    if normalise == "window" and clip is None:
        raise ValueError("normalise='window' needs clip, expected two intensities such as (-1000, 500)")


def check_cuts(
    plane: str | None, slices: Sequence[int] | None, every: int, crop: Sequence[int] | None, flips: Sequence[int]
) -> None:
    """Slices, crops and flips.

    Raises:
        ValueError: if sizes or axes cannot be, or are not those of a slice.
    """
    if (crop is not None and min(crop) < 1) or (flips and not {*flips} <= {0, 1, 2}):
        raise ValueError(f"crop is {crop} and flips {flips}, expected sizes of at least 1 and axes among 0, 1, 2")
    if plane is None and (slices is not None or every != 1):
        raise ValueError(f"slices is {slices} and every {every}, expected a plane with them")
    if plane is not None and (2 in flips or len(crop or ()) > 2):
        raise ValueError(f"crop is {crop} and flips {flips}, expected the two axes of a slice, 0 and 1")


def check_exchange(augment: Sequence[Augmentation], pairs: Sequence[CasePair], batch_size: int) -> None:
    """Exchanged and other pairs of one batch have the same: what one image of a pair has alone changes sides.

    Args:
        augment: what is done to training pairs.
        pairs: those that are listed for training.
        batch_size: of the loaders.

    Raises:
        ValueError: if an image has a label map or a mask, its partner none, and a batch may have pairs both ways.
    """
    if batch_size == 1 or not any(isinstance(step, Swap) and 0 < step.probability < 1 for step in augment):
        return
    for fixed, moving in pairs:
        for kind in ("label", "mask"):
            if (getattr(fixed, kind) is None) != (getattr(moving, kind) is None):
                raise ValueError(
                    f"Swap exchanges {fixed.id} and {moving.id}, one of which alone has a {kind}, in batches of "
                    f"{batch_size} pairs, expected it for both or neither; set batch_size to 1 or leave out Swap"
                )
