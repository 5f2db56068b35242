"""Heads that draw a frame: outputs are its pixels, row by row, before the sigmoid."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.checks import require_positive
from rimlit.errors import ConfigError
from rimlit.heads.base import Head


class ResizeConvolution(nn.Module):
    """Double every pixel, then convolve with 4 × 4 (Odena et al. 2016, on the checkerboards of deconvolution).

    Both together are one transposed convolution of 5 × 5 whose kernel sums neighbouring weights, which takes
    two fifths of the products and no large map of doubled pixels.

    Args:
        input_channels: Channels read.
        output_channels: Channels written.

    Example:
        >>> ResizeConvolution(2, 3)(torch.zeros(1, 2, 8, 8)).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, input_channels: int, output_channels: int) -> None:
        super().__init__()
        bound = (16 * input_channels) ** -0.5
        # kept flipped, as a transposed convolution takes it
        self.weight = nn.Parameter(torch.empty(input_channels, output_channels, 4, 4).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(output_channels).uniform_(-bound, bound))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (frames, input_channels, height, width) to twice the height and width."""
        wide = functional.pad(self.weight, (1, 1, 1, 1))
        rows = wide[..., 1:, :] + wide[..., :-1, :]
        kernel = rows[..., 1:] + rows[..., :-1]  # (in, out, 5, 5)
        return functional.conv_transpose2d(maps, kernel, self.bias, stride=2, padding=2, output_padding=1)


def side_of(output_size: int) -> int:
    """Return the side of a square frame of ``output_size`` pixels.

    Raises:
        ConfigError: It is not a square.
    """
    side = math.isqrt(output_size)
    if side**2 != output_size:
        raise ConfigError(
            "output_size must be a square frame's number of pixels, as with prediction='pixels'; got "
            f"output_size={output_size}."
        )
    return side


class FrameDecoder(nn.Sequential):
    """A vector to the pixels of a frame: dense layers, then resize convolutions.

    Args:
        input_size: Features read.
        frame_size: Pixels of a side, divisible by 2 for each resize convolution.
        output_channels: Channels of the frame.
        hidden_size: Width of the dense layer.
        channels: Channels of the first map and of each but the last resize convolution.
    """

    def __init__(
        self, input_size: int, frame_size: int, output_channels: int, *, hidden_size: int, channels: Sequence[int]
    ) -> None:
        require_positive(hidden_size=hidden_size, num_convolutions=len(channels), channels=channels)
        if frame_size % 2 ** len(channels):
            raise ConfigError(
                f"frame_size must be divisible by {2 ** len(channels)}, 2 for each convolution; got {frame_size}."
            )
        side = frame_size // 2 ** len(channels)
        pixels = channels[0] * side**2
        layers: list[nn.Module] = [nn.Linear(input_size, hidden_size), nn.ReLU(), nn.LayerNorm(hidden_size)]
        layers += [nn.Linear(hidden_size, pixels), nn.ReLU(), nn.LayerNorm(pixels)]
        layers.append(nn.Unflatten(1, (channels[0], side, side)))
        for before, width in itertools.pairwise(channels):
            layers += [ResizeConvolution(before, width), nn.ReLU(), nn.GroupNorm(1, width)]
        super().__init__(*layers, ResizeConvolution(channels[-1], output_channels))


class FrameHead(Head):
    """Draw a frame from all features: dense layers, then three resize convolutions.

    The sizes by default are those of van Steenkiste et al. 2018 (arXiv:1802.10353), whose decoder the paper takes.

    Args:
        input_size: Features of the backbone.
        output_size: Pixels of a square frame, times its channels.
        num_mechanisms: Not used: all features are read alike.
        hidden_size: Width of the dense layer, at least 1.
        channels: Channels of the first map and of each but the last resize convolution, which writes the frame.
        num_channels: Channels of the frame, at least 1.

    Raises:
        ConfigError: A size is out of its range.

    Example:
        >>> FrameHead(12, 64 * 64)(torch.zeros(2, 5, 12)).shape
        torch.Size([2, 5, 4096])
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_mechanisms: int = 1,
        *,
        hidden_size: int = 512,
        channels: Sequence[int] = (64, 32, 16),
        num_channels: int = 1,
    ) -> None:
        super().__init__(input_size, output_size, num_mechanisms)
        require_positive(num_channels=num_channels)
        side = side_of(output_size // num_channels)
        self.decoder = FrameDecoder(input_size, side, num_channels, hidden_size=hidden_size, channels=channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, input_size) to logits (B, T, pixels), channel by channel."""
        frames: Tensor = self.decoder(features.flatten(0, 1))
        return frames.reshape(*features.shape[:2], self.output_size)
