"""The fixed image becomes the moving one, and the moving image the fixed one."""

from dataclasses import dataclass

from data_modules.augment.base import Augmentation, check_probability, happens
from data_modules.base import Sample
from dio_lightning.fields import inverse


@dataclass(frozen=True)
class Swap(Augmentation):
    """Exchanges fixed and moving image with all that belongs to them; a true displacement is inverted.

    Args:
        probability: Of the exchange.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.probability)

    def __call__(self, sample: Sample) -> Sample:
        """The pair, exchanged or not.

        Raises:
            ValueError: if there is a true displacement between two grids.
        """
        if not happens(self.probability):
            return sample
        exchanged = {_other(key): value for key, value in sample.items()}
        if "displacement" in sample:
            if "moving_affine" in sample:
                raise ValueError("the pair has a displacement and a moving_affine, expected one grid to swap images")
            exchanged["displacement"] = inverse(sample["displacement"][None]).value[0]
        if "moving_affine" in sample:
            exchanged |= {"affine": sample["moving_affine"], "moving_affine": sample["affine"]}
            d = sample["fixed"].ndim - 1
            exchanged["spacing"] = exchanged["affine"][:3, :d].norm(dim=0).float()
        return exchanged


def _other(key: str) -> str:
    """The key of the other image: fixed_label for moving_label."""
    for one, other in (("fixed", "moving"), ("moving", "fixed")):
        if key == one or (key.startswith(f"{one}_") and key != "moving_affine"):
            return other + key.removeprefix(one)
    return key
