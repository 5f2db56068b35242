"""Write pictures to a run's folder and to the trackers that support them, encode GIFs, load the font."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from rimlit.files import encode_png, refuse_link, write_file
from rimlit.tracking.mlflow_tracker import MLflowTracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont


def write_and_track(trainer: L.Trainer, name: str, content: str | bytes) -> Path:
    """Write a file into the run's folder and log it to MLflow.

    Args:
        trainer: Its ``default_root_dir`` is the run's folder.
        name: Path in it, such as ``figures/activity.png``.
        content: The whole file.

    Raises:
        StorageError: It cannot be written.
    """
    path = Path(trainer.default_root_dir) / name
    refuse_link(path.parent)
    write_file(path, content)
    for logger in trainer.loggers:
        if isinstance(logger, MLflowTracker):
            logger.log_file(path, name.rpartition("/")[0])
    return path


def save_figure(trainer: L.Trainer, figure: "Figure", name: str) -> None:
    """Write a figure to ``figures/`` of the run's folder and log it to MLflow and TensorBoard."""
    write_and_track(trainer, f"figures/{name}", encode_png(figure))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(Path(name).stem, figure, trainer.global_step)


def encode_gif(frames: list["Image"], pause: list[int]) -> bytes:
    """Encode pictures as a repeating GIF.

    Args:
        frames: At least one picture.
        pause: Duration of each, ms.
    """
    gif = io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=pause, loop=0, optimize=False)
    return gif.getvalue()


def font(size: int) -> "FreeTypeFont":
    """Return the font of all pictures: DejaVu Sans, which is part of matplotlib and also used in its figures.

    Args:
        size: Height in pixels.
    """
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
