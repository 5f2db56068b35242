"""No encoding: the backbone reads the inputs as they are."""

from torch import nn

from rimlit.checks import require_positive
from rimlit.encoders.base import Encoder


class Identity(nn.Identity, Encoder):
    """Return inputs (B, T, input_size) unchanged.

    Args:
        input_size: Features of each step, at least 1.

    Example:
        >>> Identity(3).output_size
        3
    """

    def __init__(self, input_size: int) -> None:
        super().__init__()
        require_positive(input_size=input_size)
        self.input_size = input_size
        self.output_size = input_size
