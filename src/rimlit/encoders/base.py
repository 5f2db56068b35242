"""What every encoder is: a module that says how many features it gives."""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn


class Encoder(nn.Module):
    """Base of the encoders, which turn each step's input into features for the backbone.

    It names the kind in configs: with any module allowed there, the command line would list, and complete, all of
    torch and the tasks themselves inside each other without end.
    """

    input_size: Any
    """What its factory is called with: the number of features or tokens, the pixels of a side, or a shape."""

    output_size: int
    """Features of each step."""


EncoderFactory: TypeAlias = Callable[[Any], Encoder]
"""Builds an encoder from the size or the shape of what it reads. In YAML: ``class_path`` and ``init_args`` without
it."""
