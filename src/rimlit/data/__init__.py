"""Data modules: each supplies one dataset and declares its sizes as plain ints."""

import rimlit._train  # noqa: F401
from rimlit.data.adding import Adding
from rimlit.data.base import DataModule
from rimlit.data.blinking_balls import BlinkingBalls
from rimlit.data.bouncing_balls import BouncingBalls
from rimlit.data.copying import Copying
from rimlit.data.frames import Frames
from rimlit.data.images import SequentialImages
from rimlit.data.sequences import Sequences
from rimlit.data.series import Series
from rimlit.data.text import Text

__all__ = [
    "Adding",
    "BlinkingBalls",
    "BouncingBalls",
    "Copying",
    "DataModule",
    "Frames",
    "Sequences",
    "SequentialImages",
    "Series",
    "Text",
]
