"""What the recurrent networks of ``torch.nn`` share: layers, resets, an optional learned initial state."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.base import Backbone, LearnedState, layers_first, require_input, segments
from rimlit.checks import require_dropout, require_positive
from rimlit.nn.cells import step_plain
from rimlit.nn.surroundings import is_autocast_enabled, is_transformed, without_autocast
from rimlit.types import State, conform_state, replace_state

CELLS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}
"""Mode of a network of ``torch.nn`` → its single step."""


class TorchRecurrent(Backbone):
    """Base of the backbones that run on a network of ``torch.nn``; a subclass gives :meth:`initial_state`.

    A sequence with resets runs in the pieces between them.

    Args:
        network: ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``.
        state_names: Fields of the state.
        input_size: Features of each step, at least 1.
        hidden_size: Width of each layer, at least 1.
        num_layers: Layers, at least 1.
        dropout: Dropout between layers, 0 to 1.
        learn_initial_state: Whether the initial state is learned; otherwise it is zero.
        options: Further arguments of ``network``.
    """

    def __init__(
        self,
        network: Callable[..., nn.RNNBase],
        state_names: tuple[str, ...],
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int,
        dropout: float,
        learn_initial_state: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        require_dropout(dropout=dropout)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.recurrent = network(input_size, hidden_size, num_layers, batch_first=True, dropout=dropout, **options)
        self.initial = LearnedState((num_layers, hidden_size), state_names, learn=learn_initial_state)

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over (B, T, input_size); see :meth:`Backbone.forward`."""
        require_input(self, inputs, resets)
        state, initial = self.starting_state(inputs, state)
        run = self._run_cells if is_transformed() else self._run
        if resets is None:
            return run(inputs, state)
        pieces = []
        for start, stop in segments(resets):
            state = replace_state(state, initial, resets[:, start])
            features, state = run(inputs[:, start:stop], state)
            pieces.append(features)
        return torch.cat(pieces, dim=1), state

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step; see :meth:`Backbone.step`."""
        if torch.is_grad_enabled():  # learned initial states then stay in the graph
            return super().step(inputs, state)
        require_input(self, inputs.unsqueeze(1))
        features, state = self._run(inputs.unsqueeze(1), self._named(state, inputs))
        return features.squeeze(1), state

    def stepper(self, batch_size: int = 1) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """Return :meth:`step` without what ``torch.nn`` prepares for a sequence; see :meth:`Backbone.stepper`."""
        network, layers = self.recurrent, self.recurrent.all_weights
        is_dropping = self.training and network.dropout > 0
        is_hooked = bool(network._forward_hooks or network._forward_pre_hooks)
        if is_dropping or is_hooked or torch.is_autocast_enabled(layers[0][0].device.type):
            return super().stepper(batch_size)

        cell = CELLS[network.mode]

        @torch.no_grad()
        def step(inputs: Tensor, state: State) -> tuple[Tensor, State]:
            require_input(self, inputs.unsqueeze(1))
            state = self._named(state, inputs)
            news = []
            for index, weights in enumerate(layers):
                olds = tuple(part[:, index] for part in state)
                new = cell(inputs, olds if len(olds) > 1 else olds[0], *weights)
                news.append(new if len(olds) > 1 else (new,))
                inputs = news[-1][0]
            return inputs, _stack(type(state), news)

        return step

    def _run_cells(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run in plain arithmetic: torch.func has no rules for the networks and cells of ``torch.nn``."""
        features, news = inputs, []
        for index, weights in enumerate(self.recurrent.all_weights):
            if index > 0:
                features = functional.dropout(features, self.recurrent.dropout, self.training)
            now, pieces = tuple(part[:, index] for part in state), []
            for given in features.unbind(dim=1):
                now = step_plain(self.recurrent.mode, given, now, weights)
                pieces.append(now[0])
            features = torch.stack(pieces, dim=1)
            news.append(now)
        return features, _stack(type(state), news)

    def _named(self, state: State, inputs: Tensor) -> State:
        """Return a state for one step of ``inputs`` (B, input_size) with the names of its fields."""
        return state if hasattr(state, "_fields") else conform_state(state, self.initial_state(inputs.shape[0]))

    def _run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        if is_autocast_enabled("cpu") and inputs.device.type == "cpu" and not _has_bfloat16():
            with without_autocast("cpu"):  # torch's LSTM has no kernel for it there
                return self._run(inputs.to(self.recurrent.all_weights[0][0].dtype), state)
        parts = layers_first(tuple(state))
        if len(parts) > 1:  # torch.nn takes and gives a tuple for the LSTM, one tensor for the others
            features, parts = self.recurrent(inputs, parts)
        else:
            features, *parts = self.recurrent(inputs, *parts)
        return features, layers_first(type(state)(*parts))


def _stack(state_type: Any, layers: list[tuple[Tensor, ...]]) -> State:
    """Return a state from the tensors (B, hidden_size) of each layer."""
    if len(layers) == 1:
        return state_type(*(part.unsqueeze(1) for part in layers[0]))
    return state_type(*(torch.stack(parts, dim=1) for parts in zip(*layers, strict=True)))


@functools.cache
def _has_bfloat16() -> bool:
    """Return whether this processor's oneDNN runs recurrent networks in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
