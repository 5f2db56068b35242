"""The GRU under the backbone contract, on ``torch.nn.GRU``."""

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
from rimlit.types import GRUState, State, replace_state


class GRU(Backbone):
    """An ``nn.GRU`` with resets and an optional learned initial state.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of each layer, at least 1.
        num_layers: Layers, at least 1.
        dropout: Dropout between layers, 0 to 1.
        learn_initial_state: Whether the initial state is learned; otherwise it is zero.

    Raises:
        ValueError: A size is below 1 or the dropout out of range.

    Example:
        >>> features, state = GRU(3, 8)(torch.ones(2, 5, 3))
        >>> features.shape, state.hidden.shape
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
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        require_dropout(dropout=dropout)
        self.input_size = input_size
        self.output_size = hidden_size
        self.recurrent = nn.GRU(input_size, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.initial = LearnedState((num_layers, hidden_size), GRUState._fields, learn=learn_initial_state)

    def initial_state(self, batch_size: int) -> GRUState:
        """Return the hidden state (B, num_layers, hidden_size)."""
        return GRUState(*self.initial(batch_size, self.recurrent.weight_hh_l0))

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, GRUState]:
        """Run over (B, T, input_size); see :meth:`Backbone.forward`."""
        require_input(self, inputs, resets)
        state, initial = self.starting_state(inputs, state)
        if resets is None:
            features, hidden = self.recurrent(inputs, layers_first(state.hidden))
            return features, GRUState(layers_first(hidden))
        pieces = []
        for start, stop in segments(resets):
            state = replace_state(state, initial, resets[:, start])
            features, hidden = self.recurrent(inputs[:, start:stop], layers_first(state.hidden))
            state = GRUState(layers_first(hidden))
            pieces.append(features)
        return torch.cat(pieces, dim=1), state
