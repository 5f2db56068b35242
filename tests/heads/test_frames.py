"""Heads that draw frames: the fast resize convolution is the plain one; the slot mixture is a mixture."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from rimlit.heads import DenseHead, FrameHead, SlotMixtureHead
from rimlit.heads.frames import ResizeConvolution
from tests.conftest import random_tensor


def test_the_resize_convolution_is_doubling_and_then_a_convolution_in_outputs_and_gradients() -> None:
    layer = ResizeConvolution(3, 2).double()
    maps = random_tensor(2, 3, 5, 4, seed=1, dtype=torch.float64).requires_grad_()
    weight = random_tensor(2, 2, 10, 8, seed=2, dtype=torch.float64)

    def plain() -> torch.Tensor:
        doubled = functional.interpolate(maps, scale_factor=2.0, mode="nearest")
        kernel = layer.weight.transpose(0, 1).flip(2, 3)
        return functional.conv2d(functional.pad(doubled, (1, 2, 1, 2)), kernel, layer.bias)

    torch.testing.assert_close(layer(maps), plain(), rtol=1e-12, atol=1e-12)
    leaves = (maps, layer.weight, layer.bias)
    fast = torch.autograd.grad((layer(maps) * weight).sum(), leaves)
    slow = torch.autograd.grad((plain() * weight).sum(), leaves)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_by_default_the_decoder_has_the_published_sizes() -> None:
    count = sum(parameter.numel() for parameter in FrameHead(600, 64 * 64).parameters())
    dense = 600 * 512 + 512 + 2 * 512 + 512 * 4096 + 4096 + 2 * 4096
    convolutions = 16 * 64 * 32 + 32 + 2 * 32 + 16 * 32 * 16 + 16 + 2 * 16 + 16 * 16 + 1
    assert count == dense + convolutions


def test_the_slot_mixture_is_the_masks_mean_of_what_the_mechanisms_draw() -> None:
    head, features = SlotMixtureHead(12, 64, 3, hidden_size=6, channels=(4, 2)), random_tensor(2, 5, 12)
    masks, (frames, _) = head.masks(features), head._draw(features)
    torch.testing.assert_close(masks.sum(dim=2), torch.ones(2, 5, 64))
    expected = (masks * frames.sigmoid()).sum(dim=2)
    torch.testing.assert_close(head(features).sigmoid(), expected, rtol=1e-5, atol=1e-6)


def test_one_decoder_draws_for_all_mechanisms() -> None:
    head = SlotMixtureHead(12, 64, 3, hidden_size=6, channels=(4, 2))
    head.names.data.zero_()
    features = random_tensor(1, 1, 12)
    turned = head.by_mechanism(features).roll(1, dims=2).flatten(2)
    torch.testing.assert_close(head(turned), head(features))
    torch.testing.assert_close(head.masks(turned), head.masks(features).roll(1, dims=2))


def test_logits_of_the_mixture_stay_finite_where_all_mechanisms_are_sure() -> None:
    head = SlotMixtureHead(12, 64, 3, hidden_size=6, channels=(4, 2))
    head.decoder[-1].weight.data.mul_(1e4)  # type: ignore[union-attr, operator]
    assert head(random_tensor(1, 2, 12)).isfinite().all()


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (FrameHead, {"output_size": 250}, "output_size must be a square .* got output_size=250"),
        (FrameHead, {"output_size": 400}, "frame_size must be divisible by 8, .* got 20"),
        (FrameHead, {"output_size": 256, "channels": (4, 0)}, r"channels\[1\]=0"),
        (FrameHead, {"output_size": 256, "hidden_size": 0}, "hidden_size=0"),
        (SlotMixtureHead, {"output_size": 256, "num_mechanisms": 5}, "input_size=12, num_mechanisms=5"),
        (DenseHead, {"output_size": 256, "hidden_size": 0}, "hidden_size=0"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(cls: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(12, **arguments)
