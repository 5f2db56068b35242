"""Screens of games through convolutions (the network of the paper's Atari experiment, Goyal et al. 2021)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.encoders.base import Encoder
from rimlit.errors import ConfigError

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (32, 3, 1))  # channels, side of the kernel, stride


class ScreenEncoder(Encoder):
    """Three convolutions and a dense layer, each with ReLU, over the last screens of a game.

    Weights start orthogonal with the gain of ReLU and biases at zero, as is usual for this network in
    reinforcement learning.

    Args:
        observation_shape: Screens that are seen together, height and width, both at least 36.
        output_size: Features, at least 1; 510 as in the paper.

    Raises:
        ConfigError: A size is out of its range.

    Example:
        >>> screens = torch.zeros(2, 5, 4, 84, 84, dtype=torch.uint8)
        >>> ScreenEncoder((4, 84, 84))(screens).shape
        torch.Size([2, 5, 510])
    """

    def __init__(self, observation_shape: Sequence[int], output_size: int = 510) -> None:
        super().__init__()
        require_positive(output_size=output_size)
        if len(observation_shape) != 3 or min(observation_shape) < 1 or min(observation_shape[1:]) < 36:
            raise ConfigError(
                "observation_shape must be (screens, height, width), height and width at least 36; "
                f"got observation_shape={tuple(observation_shape)}."
            )
        self.input_size = list(observation_shape)
        self.output_size = output_size
        before, *sides = observation_shape
        layers: list[nn.Module] = []
        for width, kernel, stride in CONVOLUTIONS:
            layers += [nn.Conv2d(before, width, kernel, stride), nn.ReLU()]
            sides = [(side - kernel) // stride + 1 for side in sides]
            before = width
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(before * math.prod(sides), output_size), nn.ReLU()
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=nn.init.calculate_gain("relu"))
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def example_inputs(self, batch_size: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """Return random screens of bytes (B, T, screens, height, width)."""
        shape = (batch_size, num_steps, *self.input_size)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def forward(self, screens: Tensor) -> Tensor:
        """Map screens (B, T, screens, height, width), bytes or 0 to 255, to (B, T, output_size)."""
        # bytes are moved, not floats; many times faster on a CPU
        pictures = screens.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        weight: Tensor = self.layers[0].weight  # type: ignore[assignment]
        encoded: Tensor = self.layers(pictures.to(weight.dtype) / 255)
        return encoded.view(*screens.shape[:2], self.output_size)
