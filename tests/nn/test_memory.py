"""Addressing by content, and the LSTM step around a memory."""

import torch
from torch import nn

from rimlit.nn import LSTMController, address_content
from tests.conftest import random_tensor


def test_content_weights_are_a_softmax_of_scaled_cosines() -> None:
    memory, keys = random_tensor(2, 5, 3, seed=1), random_tensor(2, 4, 3, seed=2)
    strengths = random_tensor(2, 4, seed=3).abs()
    cosines = nn.functional.cosine_similarity(keys[:, :, None], memory[:, None], dim=-1)
    expected = (strengths[..., None] * cosines).softmax(dim=-1)
    torch.testing.assert_close(address_content(memory, keys, strengths), expected, rtol=1e-4, atol=1e-5)


def test_an_empty_memory_is_addressed_evenly_and_with_a_finite_gradient() -> None:
    memory = torch.zeros(1, 4, 3, requires_grad=True)
    weights = address_content(memory, torch.ones(1, 1, 3), torch.ones(1, 1))
    torch.testing.assert_close(weights, torch.full((1, 1, 4), 0.25))
    weights[..., 0].sum().backward()
    assert memory.grad is not None and memory.grad.isfinite().all()


def test_a_controller_is_an_lstm_that_also_reads_the_memory() -> None:
    controller, cell = LSTMController(3, 4, 5), nn.LSTMCell(7, 5)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([controller.project.weight, controller.recur.weight[:, :4]], dim=1))
        cell.weight_hh.copy_(controller.recur.weight[:, 4:])
        cell.bias_ih.copy_(controller.project.bias)
        cell.bias_hh.zero_()
    inputs, reads, hidden, memory = (random_tensor(2, size, seed=size + 1) for size in (3, 4, 5, 5))
    expected = cell(torch.cat([inputs, reads], dim=1), (hidden, memory))
    torch.testing.assert_close(controller(controller.project(inputs), reads, hidden, memory), expected)


def test_a_forget_bias_is_added_to_the_forget_gates_only() -> None:
    torch.manual_seed(1)
    plain = LSTMController(3, 4, 2)
    torch.manual_seed(1)
    biased = LSTMController(3, 4, 2, 1.5)
    added = biased.project.bias - plain.project.bias
    torch.testing.assert_close(added, torch.tensor([0, 0, 1.5, 1.5, 0, 0, 0, 0]))
