"""Options of data modules that contradict each other."""

from collections.abc import Sequence


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
