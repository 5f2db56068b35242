"""One step of the cells of ``torch.nn`` in plain arithmetic, which transforms of torch.func can follow."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def step_plain(
    mode: str, inputs: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the state after a step of ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``.

    Args:
        mode: ``LSTM``, ``GRU``, ``RNN_TANH`` or ``RNN_RELU``, as ``nn.RNNBase`` names them.
        inputs: (B, input_size).
        state: Hidden state and, of an LSTM, memory, each (B, hidden_size).
        weights: Weights and biases of one layer in torch's order: of the input, of the hidden state.

    Example:
        >>> cell, hidden = torch.nn.GRUCell(2, 3), torch.ones(1, 3)
        >>> (new,) = step_plain("GRU", torch.ones(1, 2), (hidden,), list(cell.parameters()))
        >>> torch.allclose(new, cell(torch.ones(1, 2), hidden))
        True
    """
    input_weight, hidden_weight, *biases = weights
    input_bias, hidden_bias = biases or (None, None)
    from_input = functional.linear(inputs, input_weight, input_bias)
    from_hidden = functional.linear(state[0], hidden_weight, hidden_bias)
    if mode == "LSTM":
        enter, forget, new, output = (from_input + from_hidden).chunk(4, dim=-1)
        memory = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
        return output.sigmoid() * memory.tanh(), memory
    if mode == "GRU":
        input_gates, input_new = from_input.tensor_split([2 * state[0].shape[-1]], dim=-1)
        hidden_gates, hidden_new = from_hidden.tensor_split([2 * state[0].shape[-1]], dim=-1)
        reset, update = (input_gates + hidden_gates).sigmoid().chunk(2, dim=-1)
        new = (input_new + reset * hidden_new).tanh()
        return (new + update * (state[0] - new),)
    total = from_input + from_hidden
    return (total.tanh() if mode == "RNN_TANH" else torch.relu(total),)
