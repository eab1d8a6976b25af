"""Pictures for loggers: those that take any, and how each is given one."""

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray


def takes_pictures(logger: Logger) -> bool:
    """Whether a logger has a place for pictures."""
    return isinstance(logger, WandbLogger | MLFlowLogger | TensorBoardLogger)


def show(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Give a logger that takes pictures one of them.

    Args:
        logger: W&B's, MLflow's or TensorBoard's; others are left alone.
        name: of the series, such as `val/panels`.
        figure: the picture.
        step: of the training.
    """
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels(figure)], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, f"{name}/{step:08d}.png")
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels(figure), step, dataformats="HWC")


def pixels(figure: Figure, dpi: float = 80) -> NDArray[np.uint8]:
    """A figure as red, green and blue, (height, width, 3)."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
