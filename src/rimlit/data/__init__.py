"""Data modules: each supplies one dataset and declares its sizes as plain ints."""

from rimlit.data.base import DataModule
from rimlit.data.copying import Copying
from rimlit.data.text import Text

__all__ = ["Copying", "DataModule", "Text"]
