"""Frames to slots that compete for the positions of a feature map (Locatello et al. 2020, arXiv:2006.15055)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.encoders.base import Encoder
from rimlit.encoders.convolutional import ConvolutionalEncoder


class ObjectEncoder(Encoder):
    """Slots that are gathered from the positions of a feature map by attention, so that each may hold an object.

    At each position of the map the attention is a softmax over slots: they share it out. A slot reads the mean of
    the positions' values, weighted by its attention, is updated by it, and asks again (sec. 2.1, algorithm 1).
    Values hold the place of their position, so that a slot says what is where, and a mechanism of a RIM can follow
    an object by attending to the slot that fits its state. For backbones that read slots.

    Departs from the paper: slots start from learned vectors, not from random ones. Nothing is drawn then, and a
    slot begins every frame alike.

    Args:
        frame_size: Pixels of a side of binary frames, or channels, height and width of pictures of bytes; see
            :class:`ConvolutionalEncoder`.
        output_size: Features of each slot, at least 1.
        num_slots: Slots, at least 1: as many as there are objects, and one or two for the rest.
        num_iterations: How often slots read, at least 1 (paper: 3).
        channels: Channels of each convolution.

    Raises:
        ConfigError: A size is out of its range.

    Example:
        >>> encoder = ObjectEncoder(64, 32, num_slots=5)
        >>> frames = torch.zeros(2, 3, 64, 64)
        >>> encoder(frames).shape, encoder.attention(frames).shape
        (torch.Size([2, 3, 5, 32]), torch.Size([2, 3, 5, 64]))
    """

    def __init__(
        self,
        frame_size: int | Sequence[int],
        output_size: int = 64,
        *,
        num_slots: int = 6,
        num_iterations: int = 2,
        channels: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        require_positive(num_slots=num_slots, num_iterations=num_iterations)
        self.map = ConvolutionalEncoder(frame_size, output_size, channels=channels, position_wise=True)
        self.input_size = self.map.input_size
        self.output_size = output_size
        self.num_iterations = num_iterations
        self.start = nn.Parameter(torch.randn(num_slots, output_size))
        self.key_value = nn.Linear(output_size, 2 * output_size, bias=False)
        self.query = nn.Sequential(nn.LayerNorm(output_size), nn.Linear(output_size, output_size, bias=False))
        self.update = nn.GRUCell(output_size, output_size)
        self.refine = nn.Sequential(
            nn.LayerNorm(output_size),
            nn.Linear(output_size, 2 * output_size),
            nn.ReLU(),
            nn.Linear(2 * output_size, output_size),
        )

    def example_inputs(self, batch_size: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """Return random frames; see :meth:`ConvolutionalEncoder.example_inputs`."""
        return self.map.example_inputs(batch_size, num_steps, generator)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, T, height, width) to slots (B, T, N, output_size).

        Pictures of bytes are (B, T, channels, height, width).
        """
        return self._gather(frames)[0]

    def attention(self, frames: Tensor) -> Tensor:
        """Return which slot has which position in the last reading, (B, T, N, positions): 1 over all slots."""
        return self._gather(frames)[1]

    def _gather(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.key_value(self.map(frames).flatten(0, 1)).chunk(2, dim=-1)  # (B·T, positions, D) each
        slots = self.start.expand(key.shape[0], *self.start.shape)
        for _ in range(self.num_iterations):
            scores = self.query(slots) @ key.mT / math.sqrt(self.output_size)  # (B·T, N, positions)
            attention = scores.softmax(dim=1)
            read = attention / (attention.sum(dim=-1, keepdim=True) + 1e-6) @ value
            slots = self.update(read.flatten(0, 1), slots.flatten(0, 1)).view(slots.shape)
            slots = slots + self.refine(slots)
        leading = frames.shape[:2]
        return slots.view(*leading, *slots.shape[1:]), attention.view(*leading, *attention.shape[1:])
