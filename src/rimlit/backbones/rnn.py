"""The plain recurrent network under the backbone contract, on ``torch.nn.RNN`` (Elman 1990)."""

from typing import Literal

from torch import nn

from rimlit.backbones.recurrent import TorchRecurrent
from rimlit.checks import require_known
from rimlit.types import GRUState


class RNN(TorchRecurrent):
    """An ``nn.RNN`` with resets and an optional learned initial state.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of each layer, at least 1.
        num_layers: Layers, at least 1.
        nonlinearity: ``tanh`` or ``relu``.
        dropout: Dropout between layers, 0 to 1.
        learn_initial_state: Whether the initial state is learned; otherwise it is zero.
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: A size is below 1, the dropout out of range or the nonlinearity unknown.

    Example:
        >>> import torch
        >>> features, state = RNN(3, 8)(torch.ones(2, 5, 3))
        >>> features.shape, state.hidden.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 1, 8]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        dropout: float = 0.0,
        learn_initial_state: bool = False,
        bidirectional: bool = False,
    ) -> None:
        require_known(nonlinearity=(nonlinearity, ("tanh", "relu")))
        super().__init__(
            nn.RNN,
            GRUState._fields,
            input_size,
            hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            learn_initial_state=learn_initial_state,
            nonlinearity=nonlinearity,
        )

    def initial_state(self, batch_size: int) -> GRUState:
        """Return the hidden state (B, num_layers, hidden_size)."""
        return GRUState(*self.initial(batch_size, self.recurrent.weight_hh_l0))
