"""Slots that compete for positions, and frames of more than one colour."""

from typing import Any

import pytest
import torch

from rimlit.encoders import ConvolutionalEncoder, ObjectEncoder
from tests.conftest import random_tensor

FRAMES = (random_tensor(2, 3, 16, 16, seed=1) > 0.5).to(torch.uint8)


@pytest.mark.parametrize("num_iterations", [1, 2, 3])
def test_slots_follow_the_algorithm(num_iterations: int) -> None:
    encoder = ObjectEncoder(16, 6, num_slots=3, num_iterations=num_iterations, channels=(2, 3)).double()
    features = encoder.map(FRAMES[:1, :1])[0, 0]  # (positions, 6)
    key, value = encoder.key_value(features).chunk(2, dim=-1)
    slots = encoder.start
    for _ in range(num_iterations):
        scores = torch.stack([key @ encoder.query(slot) / 6**0.5 for slot in slots])  # (slots, positions)
        shares = scores.exp() / scores.exp().sum(dim=0)
        means = [(share[:, None] * value).sum(dim=0) / (share.sum() + 1e-6) for share in shares]
        slots = torch.stack([encoder.update(mean, slot) for mean, slot in zip(means, slots, strict=True)])
        slots = slots + encoder.refine(slots)
    torch.testing.assert_close(encoder(FRAMES)[0, 0], slots)
    torch.testing.assert_close(encoder.attention(FRAMES)[0, 0], shares)


def test_every_position_is_shared_out_among_the_slots() -> None:
    attention = ObjectEncoder(16, 6, num_slots=5, channels=(2, 3)).attention(FRAMES)
    assert attention.shape == (2, 3, 5, 16)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(2, 3, 16))


def test_slots_hold_the_place_of_what_they_read() -> None:
    encoder = ObjectEncoder(16, 6, num_slots=16, channels=(2, 3), num_iterations=1)
    slots = encoder(torch.zeros(1, 1, 16, 16))[0, 0]
    assert torch.pdist(slots).min() > 0
    place = encoder.map.place
    assert place is not None
    place.data = place.data.flip(0)  # nothing is seen, and yet what is where has changed
    assert not torch.allclose(encoder(torch.zeros(1, 1, 16, 16))[0, 0], slots)


def test_in_mixed_precision_slots_stay_near() -> None:
    encoder = ObjectEncoder(16, 6, num_slots=3, channels=(2, 3))
    expected = encoder(FRAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        slots = encoder(FRAMES)
    torch.testing.assert_close(slots.float(), expected, rtol=0.1, atol=0.1)


def test_pictures_of_bytes_are_read_as_shares_of_white_in_every_channel() -> None:
    encoder = ConvolutionalEncoder((3, 16, 8), 6, channels=(2, 3))
    pictures = (random_tensor(1, 2, 3, 16, 8, seed=2).abs() * 90).clamp(0, 255).to(torch.uint8)
    seen: list[torch.Tensor] = []
    encoder.convolutions[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(pictures)
    torch.testing.assert_close(seen[0], pictures[0].float() / 255)
    assert encoder.num_positions == 4 * 2 and encoder.input_size == [3, 16, 8]


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (ObjectEncoder, {"frame_size": 16, "num_slots": 0}, "num_slots must be at least 1; got num_slots=0"),
        (ObjectEncoder, {"frame_size": 16, "num_iterations": 0}, "num_iterations=0"),
        (ObjectEncoder, {"frame_size": 20}, "frame_size must be divisible by 8, .* got 20"),
        (ConvolutionalEncoder, {"frame_size": (3, 16)}, r"channels, height and width; got frame_size=\(3, 16\)"),
        (ConvolutionalEncoder, {"frame_size": (3, 16, 12)}, r"divisible by 8, .* got \(3, 16, 12\)"),
        (ConvolutionalEncoder, {"frame_size": (0, 16, 16)}, "num_channels=0"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(cls: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)
