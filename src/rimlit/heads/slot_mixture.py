"""A head that draws a frame as a mixture of one picture per mechanism."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.heads.base import Head
from rimlit.heads.frames import FrameDecoder, side_of


class SlotMixtureHead(Head):
    """Let every mechanism draw a frame and a mask by one shared decoder; the masks weigh the frames at each pixel.

    At each pixel the masks are a softmax over mechanisms, α, and the probability that it is lit is
    Σ α_m · sigmoid(logit_m), as in models of objects (Greff et al. 2017, arXiv:1708.03498). Not in the paper,
    which names structured decoders as future work.

    Args:
        input_size: Features of the backbone, divisible by ``num_mechanisms``.
        output_size: Pixels of a square frame.
        num_mechanisms: Mechanisms, each of which draws.
        hidden_size: Width of the decoder's dense layer, at least 1.
        channels: Channels of the decoder's first map and of each but the last resize convolution.

    Raises:
        ConfigError: A size is out of its range.

    Example:
        >>> head = SlotMixtureHead(12, 16 * 16, num_mechanisms=4)
        >>> features = torch.ones(2, 5, 12)
        >>> head(features).shape, head.masks(features).shape
        (torch.Size([2, 5, 256]), torch.Size([2, 5, 4, 256]))
    """

    mechanism_rows: ClassVar = {"names": 0}

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_mechanisms: int = 1,
        *,
        hidden_size: int = 64,
        channels: Sequence[int] = (16, 8, 8),
    ) -> None:
        super().__init__(input_size, output_size, num_mechanisms)
        size, side = input_size // num_mechanisms, side_of(output_size)
        # one decoder draws for all: an embedding of each mechanism is added to its input
        self.names = nn.Parameter(0.1 * torch.randn(num_mechanisms, size))
        self.decoder = FrameDecoder(size, side, 2, hidden_size=hidden_size, channels=channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, input_size) to the logits (B, T, pixels) of the mixture."""
        logits, masks = self._draw(features)
        weights = masks.log_softmax(dim=-2)
        lit = (weights + functional.logsigmoid(logits)).logsumexp(dim=-2)
        dark = (weights + functional.logsigmoid(-logits)).logsumexp(dim=-2)
        return lit - dark

    def masks(self, features: Tensor) -> Tensor:
        """Return the weight of each mechanism's frame, α (B, T, M, pixels), summing to 1 over mechanisms."""
        return self._draw(features)[1].softmax(dim=-2)

    def _draw(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of every mechanism's frame and mask, each (B, T, M, pixels)."""
        mechanisms = self.by_mechanism(features) + self.names
        drawn = self.decoder(mechanisms.flatten(0, -2))  # (B·T·M, 2, height, width)
        drawn = drawn.to(torch.promote_types(drawn.dtype, torch.float32))  # logarithms in bfloat16 are coarse
        frames, masks = drawn.view(*mechanisms.shape[:-1], 2, self.output_size).unbind(dim=-2)
        return frames, masks
