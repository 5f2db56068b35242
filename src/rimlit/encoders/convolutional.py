"""Frames through convolutions, to one vector or to a slot for each position."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.encoders.base import Encoder
from rimlit.errors import ConfigError


class ConvolutionalEncoder(Encoder):
    """Convolutions of 4 × 4 with stride 2, ELU and layer norm, then one vector or a set of slots.

    The sizes by default are those of van Steenkiste et al. 2018 (arXiv:1802.10353), whose encoder the paper takes.

    Args:
        frame_size: Pixels of a side of square frames that are dark or lit, 0 or 1; or channels, height and width
            of pictures of bytes, 0 to 255. Height and width are divisible by 2 for each entry of ``channels``.
        output_size: Features of the vector, or of each slot, at least 1.
        channels: Channels of each convolution.
        num_channels: Channels of a frame, at least 1; with several, frames are (B, T, channels, height, width).
        position_wise: Whether every position of the last feature map is an input slot of its own, with a learned
            embedding of its place added: the paper's input is a set (sec. 2). For backbones that read slots.

    Raises:
        ConfigError: A size is out of its range.

    Example:
        >>> frames = torch.zeros(2, 5, 64, 64)
        >>> ConvolutionalEncoder(64)(frames).shape
        torch.Size([2, 5, 512])
        >>> ConvolutionalEncoder(64, 32, position_wise=True)(frames).shape
        torch.Size([2, 5, 64, 32])
        >>> ConvolutionalEncoder((3, 32, 24))(torch.zeros(2, 5, 3, 32, 24, dtype=torch.uint8)).shape
        torch.Size([2, 5, 512])
    """

    def __init__(
        self,
        frame_size: int | Sequence[int],
        output_size: int = 512,
        *,
        channels: Sequence[int] = (16, 32, 64),
        num_channels: int = 1,
        position_wise: bool = False,
    ) -> None:
        super().__init__()
        whole = (num_channels, frame_size, frame_size) if isinstance(frame_size, int) else tuple(frame_size)
        if len(whole) != 3:
            raise ConfigError(
                "frame_size must be the pixels of a side, or channels, height and width; "
                f"got frame_size={frame_size}."
            )
        colours, *sides = whole
        require_positive(num_channels=colours, frame_size=min(sides), output_size=output_size)
        require_positive(num_convolutions=len(channels), channels=channels)
        if any(side % 2 ** len(channels) for side in sides):
            raise ConfigError(
                f"frame_size must be divisible by {2 ** len(channels)}, 2 for each convolution; got {frame_size}."
            )
        self.input_size = frame_size if isinstance(frame_size, int) else list(frame_size)
        self.num_channels = colours
        self.output_size = output_size
        self.position_wise = position_wise
        layers: list[nn.Module] = []
        for before, width in zip((colours, *channels[:-1]), channels, strict=True):
            # one group: layer norm over positions and channels
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.ELU(), nn.GroupNorm(1, width)]
        self.convolutions = nn.Sequential(*layers)
        self.num_positions = math.prod(side // 2 ** len(channels) for side in sides)
        size = channels[-1] if position_wise else channels[-1] * self.num_positions
        self.linear = nn.Sequential(nn.Linear(size, output_size), nn.ELU(), nn.LayerNorm(output_size))
        self.place = nn.Parameter(0.1 * torch.randn(self.num_positions, channels[-1])) if position_wise else None

    def example_inputs(self, batch_size: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """Return random frames: pixels 0 or 1, or bytes where the encoder reads pictures of bytes."""
        if not isinstance(self.input_size, int):
            return torch.randint(
                256, (batch_size, num_steps, *self.input_size), generator=generator, dtype=torch.uint8
            )
        channels = [self.num_channels] if self.num_channels > 1 else []
        shape = (batch_size, num_steps, *channels, self.input_size, self.input_size)
        return torch.randint(2, shape, generator=generator).float()

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, T, [channels,] height, width) to (B, T, output_size).

        With ``position_wise`` to slots (B, T, positions, output_size).
        """
        pictures, weight = frames.flatten(0, 1), self.convolutions[0].weight
        pictures = pictures[:, None] if pictures.dim() == 3 else pictures
        # faster on a CPU
        pictures = pictures.contiguous(memory_format=torch.channels_last).to(weight.dtype)  # type: ignore[arg-type]
        maps = self.convolutions(pictures if isinstance(self.input_size, int) else pictures / 255)
        if self.place is not None:
            maps = maps.flatten(2).mT + self.place  # (B·T, positions, channels)
        else:
            maps = maps.flatten(1)
        encoded: Tensor = self.linear(maps)
        return encoded.view(*frames.shape[:2], *encoded.shape[1:])
