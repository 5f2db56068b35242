"""Encoders of what an agent sees: sizes of the paper, bytes, which integer is which, refusals."""

from typing import Any

import pytest
import torch
from torch import nn

from rimlit.encoders import GridEncoder, ScreenEncoder
from rimlit.errors import DataError
from tests.conftest import random_tensor


def screens(batch: int = 2, time: int = 3, side: int = 36) -> torch.Tensor:
    return (random_tensor(batch, time, 4, side, side, seed=1).abs() * 90).clamp(0, 255).to(torch.uint8)


def test_by_default_the_screens_pass_the_network_of_the_paper() -> None:
    encoder = ScreenEncoder((4, 84, 84))
    convolutions = 4 * 8 * 8 * 32 + 32 + 32 * 4 * 4 * 64 + 64 + 64 * 3 * 3 * 32 + 32
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + 32 * 7 * 7 * 510 + 510


def test_bytes_are_read_as_shares_of_white() -> None:
    encoder = ScreenEncoder((4, 36, 36), 6)
    picture = screens()
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    seen: list[torch.Tensor] = []
    torch.testing.assert_close(encoder(picture), encoder(picture.float()))
    assert seen[0].dtype == torch.float32 and seen[0].shape == (6, 4, 36, 36)
    torch.testing.assert_close(seen[0], picture.flatten(0, 1).float() / 255)


def test_weights_start_orthogonal() -> None:
    for layer in ScreenEncoder((4, 36, 36)).layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.flatten(1)
            weight = weight if weight.shape[0] <= weight.shape[1] else weight.T
            torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(len(weight)), rtol=0, atol=1e-5)
            assert not layer.bias.any()


def test_a_cell_s_integers_have_different_vectors() -> None:
    encoder = GridEncoder((1, 1, 2), 6)
    pairs = torch.tensor([[3, 5], [5, 3], [3, 3], [0, 8]])[:, None, None, None]
    encoded = encoder(pairs)[:, 0]
    assert all(not torch.allclose(encoded[i], encoded[j]) for i in range(4) for j in range(i))


def test_an_integer_that_has_no_vector_is_refused() -> None:
    with pytest.raises(DataError, match="integers from 0 to 15; got 16"):
        GridEncoder((1, 1, 2), 6)(torch.tensor([16, 0]).view(1, 1, 1, 1, 2))


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (ScreenEncoder, {"observation_shape": (4, 35, 84)}, r"at least 36; got observation_shape=\(4, 35, 84\)"),
        (ScreenEncoder, {"observation_shape": (84, 84)}, r"got observation_shape=\(84, 84\)"),
        (ScreenEncoder, {"observation_shape": (4, 84, 84), "output_size": 0}, "output_size=0"),
        (GridEncoder, {"observation_shape": (4,)}, r"got observation_shape=\(4,\)"),
        (GridEncoder, {"observation_shape": (7, 7, 3), "cell_size": 0}, "cell_size=0"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(cls: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)
