"""The plain head: a linear map of all features."""

from torch import Tensor, nn
from torch.nn import functional

from rimlit.checks import require_dropout
from rimlit.heads.base import Head


class LinearHead(Head):
    """Drop features, then map them linearly: the paper's concatenation of all mechanisms.

    Args:
        input_size: Features of the backbone.
        output_size: Outputs of each step.
        num_mechanisms: Not used: all features are read alike.
        dropout: Dropout on the features, 0 to 1.

    Example:
        >>> import torch
        >>> LinearHead(8, 3)(torch.ones(2, 5, 8)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self, input_size: int, output_size: int, num_mechanisms: int = 1, *, dropout: float = 0.0
    ) -> None:
        super().__init__(input_size, output_size, num_mechanisms)
        require_dropout(dropout=dropout)
        self.dropout = dropout
        self.linear = nn.Linear(input_size, output_size)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, input_size) to (B, T, output_size)."""
        if self.dropout:
            features = functional.dropout(features, self.dropout, self.training)
        outputs: Tensor = self.linear(features)
        return outputs
