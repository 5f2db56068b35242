"""Frames through dense layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.encoders.base import Encoder


class DenseEncoder(Encoder):
    """Dense layers over all pixels of a frame, each with ELU and layer norm: much faster than convolutions.

    Args:
        frame_size: Pixels of a side, at least 1.
        output_size: Features of a frame, at least 1.
        hidden_sizes: Widths of the layers before the last.

    Raises:
        ConfigError: A size is below 1.

    Example:
        >>> import torch
        >>> DenseEncoder(16, 8)(torch.zeros(2, 5, 16, 16)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, frame_size: int, output_size: int = 256, *, hidden_sizes: Sequence[int] = (512,)) -> None:
        super().__init__()
        require_positive(frame_size=frame_size, output_size=output_size, hidden_sizes=hidden_sizes)
        self.input_size = frame_size
        self.output_size = output_size
        layers: list[nn.Module] = []
        before = frame_size**2
        for width in (*hidden_sizes, output_size):
            layers += [nn.Linear(before, width), nn.ELU(), nn.LayerNorm(width)]
            before = width
        self.layers = nn.Sequential(*layers)

    def example_inputs(self, batch_size: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """Return random frames (B, T, height, width) of pixels 0 or 1."""
        shape = (batch_size, num_steps, self.input_size, self.input_size)
        return torch.randint(2, shape, generator=generator).float()

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, T, height, width) to (B, T, output_size)."""
        encoded: Tensor = self.layers(frames.flatten(2).to(self.layers[0].weight.dtype))  # type: ignore[arg-type]
        return encoded
