"""The LSTM under the backbone contract, on ``torch.nn.LSTM``."""

import torch
from torch import Tensor, nn

from rimlit.backbones.base import (
    Backbone,
    LearnedState,
    layers_first,
    require_dropout,
    require_input,
    require_positive,
    segments,
)
from rimlit.types import LSTMState, State, replace_state


class LSTM(Backbone):
    """An ``nn.LSTM`` with resets and an optional learned initial state.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of each layer, at least 1.
        num_layers: Layers, at least 1.
        dropout: Dropout between layers, 0 to 1.
        learn_initial_state: Whether the initial state is learned; otherwise it is zero.
        forget_bias: What is added to the forget gates' bias at the start.

    Raises:
        ValueError: A size is below 1 or the dropout out of range.

    Example:
        >>> features, state = LSTM(3, 8)(torch.ones(2, 5, 3))
        >>> features.shape, state.memory.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 1, 8]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        learn_initial_state: bool = False,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        require_dropout(dropout=dropout)
        self.input_size = input_size
        self.output_size = hidden_size
        self.recurrent = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.initial = LearnedState((num_layers, hidden_size), LSTMState._fields, learn=learn_initial_state)
        with torch.no_grad():
            for layer in range(num_layers):
                getattr(self.recurrent, f"bias_ih_l{layer}")[hidden_size : 2 * hidden_size] += forget_bias

    def initial_state(self, batch_size: int) -> LSTMState:
        """Return hidden and memory, each (B, num_layers, hidden_size)."""
        return LSTMState(*self.initial(batch_size, self.recurrent.weight_hh_l0))

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Run over (B, T, input_size); see :meth:`Backbone.forward`."""
        require_input(self, inputs, resets)
        state, initial = self.starting_state(inputs, state)
        if resets is None:
            features, state = self.recurrent(inputs, layers_first(tuple(state)))
            return features, layers_first(LSTMState(*state))
        pieces = []
        for start, stop in segments(resets):
            state = replace_state(state, initial, resets[:, start])
            features, state = self.recurrent(inputs[:, start:stop], layers_first(tuple(state)))
            state = layers_first(LSTMState(*state))
            pieces.append(features)
        return torch.cat(pieces, dim=1), state
