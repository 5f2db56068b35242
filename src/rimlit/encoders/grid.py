"""What an agent sees of a grid world: a few integers for each cell."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.encoders.base import Encoder
from rimlit.errors import ConfigError, DataError
from rimlit.nn.surroundings import is_traced

VALUES = 16
"""Values that each integer of a cell may have, from 0: MiniGrid has 11 objects, 6 colours and 4 states."""


class GridEncoder(Encoder):
    """A vector for each value of each cell, added up over the cell's integers, and a dense layer of all cells.

    Args:
        observation_shape: Height, width and integers of a cell, for MiniGrid (7, 7, 3).
        output_size: Features, at least 1.
        cell_size: Features of a cell, at least 1.

    Raises:
        ConfigError: A size is out of its range.

    Example:
        >>> view = torch.zeros(2, 5, 7, 7, 3, dtype=torch.uint8)
        >>> GridEncoder((7, 7, 3))(view).shape
        torch.Size([2, 5, 64])
    """

    offsets: Tensor

    def __init__(self, observation_shape: Sequence[int], output_size: int = 64, *, cell_size: int = 16) -> None:
        super().__init__()
        require_positive(output_size=output_size, cell_size=cell_size)
        if len(observation_shape) != 3 or min(observation_shape) < 1:
            raise ConfigError(
                "observation_shape must be (height, width, integers of a cell); "
                f"got observation_shape={tuple(observation_shape)}."
            )
        *sides, kinds = observation_shape
        self.input_size = list(observation_shape)
        self.output_size = output_size
        self.table = nn.Embedding(kinds * VALUES, cell_size)
        self.linear = nn.Sequential(nn.ReLU(), nn.Linear(math.prod(sides) * cell_size, output_size), nn.ReLU())
        self.register_buffer("offsets", VALUES * torch.arange(kinds), persistent=False)

    def example_inputs(self, batch_size: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """Return random views (B, T, height, width, integers)."""
        shape = (batch_size, num_steps, *self.input_size)
        return torch.randint(VALUES, shape, generator=generator, dtype=torch.uint8)

    def forward(self, views: Tensor) -> Tensor:
        """Map views (B, T, height, width, integers) to (B, T, output_size).

        Raises:
            DataError: An integer is 16 or greater.
        """
        if (
            not is_traced() and views.numel() and views.max() >= VALUES
        ):  # it would be read as a value of the next kind
            raise DataError(f"GridEncoder reads integers from 0 to {VALUES - 1}; got {int(views.max())}.")
        cells: Tensor = self.table(views.long() + self.offsets).sum(dim=-2)  # (B, T, height, width, cell_size)
        encoded: Tensor = self.linear(cells.flatten(2))
        return encoded
