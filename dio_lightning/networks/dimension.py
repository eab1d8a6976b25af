"""Of how many dimensions the images are that a method's networks take."""

from pathlib import Path

from torch import nn

from dio_lightning.networks.blocks import Conv2d, Conv3d


def dimension_of(module: nn.Module) -> int | None:
    """2 or 3; None where a method has no convolutions of ours, which take any image, or has both kinds."""
    kinds = {2 if isinstance(part, Conv2d) else 3 for part in module.modules() if isinstance(part, Conv2d | Conv3d)}
    return kinds.pop() if len(kinds) == 1 else None


def check_dimension(module: nn.Module, images: dict[str, int], weights: str | Path | None = None) -> None:
    """Raises ValueError if an image has another number of dimensions than the networks of a method take.

    Args:
        module: of the method.
        images: numbers of dimensions by the images' names.
        weights: the file that the method was loaded from; None: it was not.
    """
    own = dimension_of(module)
    for name, d in images.items() if own is not None else ():
        if d != own:
            title = getattr(module, "title", type(module).__name__)
            whose = f"{title} is made for" if weights is None else f"{Path(weights).name} was trained on"
            raise ValueError(f"{whose} {own} dimensions, {name} has {d}")
