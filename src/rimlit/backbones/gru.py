"""The GRU under the backbone contract, on ``torch.nn.GRU`` (Cho et al. 2014, sec. 2.3, arXiv:1406.1078)."""

from torch import nn

from rimlit.backbones.recurrent import TorchRecurrent
from rimlit.types import GRUState


class GRU(TorchRecurrent):
    """An ``nn.GRU`` with resets and an optional learned initial state.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of each layer, at least 1.
        num_layers: Layers, at least 1.
        dropout: Dropout between layers, 0 to 1.
        learn_initial_state: Whether the initial state is learned; otherwise it is zero.
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: A size is below 1 or the dropout out of range.

    Example:
        >>> import torch
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
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            nn.GRU,
            GRUState._fields,
            input_size,
            hidden_size,
            num_layers=num_layers,
            dropout=dropout,
            learn_initial_state=learn_initial_state,
        )

    def initial_state(self, batch_size: int) -> GRUState:
        """Return the hidden state (B, num_layers, hidden_size)."""
        return GRUState(*self.initial(batch_size, self.recurrent.weight_hh_l0))
