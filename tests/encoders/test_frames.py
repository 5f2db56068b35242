"""Encoders of frames: sizes of the paper, slots, refusals."""

from typing import Any

import pytest
import torch
from torch import nn

from rimlit.encoders import ConvolutionalEncoder, DenseEncoder


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_by_default_the_convolutions_have_the_published_sizes() -> None:
    encoder = ConvolutionalEncoder(64)
    convolutions = 16 * 16 + 16 + 16 * 16 * 32 + 32 + 32 * 16 * 64 + 64
    norms = 2 * (16 + 32 + 64)
    dense = 64 * 64 * 512 + 512 + 2 * 512
    assert parameters(encoder) == convolutions + norms + dense


def test_slots_are_the_positions_of_the_feature_map() -> None:
    encoder = ConvolutionalEncoder(32, 5, channels=(2, 3), position_wise=True)
    one = torch.zeros(1, 1, 32, 32)
    one[0, 0, 13, 22] = 1  # in row 3 and column 5 of 8 × 8
    for layer in encoder.convolutions:
        if isinstance(layer, nn.GroupNorm):
            layer.weight.data.zero_()  # it sees the whole frame
    assert torch.equal(encoder(one), encoder(torch.zeros(1, 1, 32, 32)))
    encoder.convolutions = nn.Sequential(*(m for m in encoder.convolutions if not isinstance(m, nn.GroupNorm)))
    changed = (encoder(one) - encoder(torch.zeros(1, 1, 32, 32))).abs().sum(dim=-1)[0, 0].view(8, 8)
    assert changed[3, 5] > 0
    assert changed[:2].sum() == changed[:, :4].sum() == 0


def test_slots_differ_by_their_place() -> None:
    encoded = ConvolutionalEncoder(16, 6, channels=(2, 3), position_wise=True)(torch.zeros(1, 1, 16, 16))
    assert not torch.allclose(encoded[0, 0, 0], encoded[0, 0, 5])


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (ConvolutionalEncoder, {"frame_size": 20}, "frame_size must be divisible by 8, .* got 20"),
        (ConvolutionalEncoder, {"frame_size": 16, "channels": (4, 0)}, r"channels\[1\]=0"),
        (ConvolutionalEncoder, {"frame_size": 16, "channels": ()}, "num_convolutions=0"),
        (DenseEncoder, {"frame_size": 16, "hidden_sizes": (0,)}, r"hidden_sizes\[0\]=0"),
        (DenseEncoder, {"frame_size": 16, "output_size": 0}, "output_size=0"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(cls: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)
