"""The LSTM under the backbone contract, on ``torch.nn.LSTM`` (Hochreiter and Schmidhuber 1997)."""

import torch
from torch import nn

from rimlit.backbones.recurrent import TorchRecurrent
from rimlit.types import LSTMState


class LSTM(TorchRecurrent):
    """An ``nn.LSTM`` with resets and an optional learned initial state.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of each layer, at least 1.
        num_layers: Layers, at least 1.
        dropout: Dropout between layers, 0 to 1.
        learn_initial_state: Whether the initial state is learned; otherwise it is zero.
        forget_bias: What is added to the forget gates' bias at the start.
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: A size is below 1 or the dropout out of range.

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
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            nn.LSTM,
            LSTMState._fields,
            input_size,
            hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            learn_initial_state=learn_initial_state,
        )
        with torch.no_grad():
            for layer in range(num_layers):
                getattr(self.recurrent, f"bias_ih_l{layer}")[hidden_size : 2 * hidden_size] += forget_bias

    def initial_state(self, batch_size: int) -> LSTMState:
        """Return hidden and memory, each (B, num_layers, hidden_size)."""
        return LSTMState(*self.initial(batch_size, self.recurrent.weight_hh_l0))
