"""A head in which every mechanism scores the outputs by itself."""

import torch
from torch import Tensor, nn

from rimlit.checks import require_dropout, require_positive
from rimlit.heads.base import Head
from rimlit.nn import GroupedLinear


class SumHead(Head):
    """Sum of a linear map per mechanism.

    Without a hidden layer that is the function of :class:`LinearHead`, with the mechanisms' shares separated by
    :meth:`contributions`; with one it is richer.

    Args:
        input_size: Features of the backbone, divisible by ``num_mechanisms``.
        output_size: Outputs of each step.
        num_mechanisms: Mechanisms, each with a map of its own.
        hidden_size: Width of each mechanism's hidden layer (ReLU), at least 1; None for a linear map.
        dropout: Dropout on the features, 0 to 1.

    Raises:
        ConfigError: A size is below 1 or the dropout out of range.

    Example:
        >>> head = SumHead(12, 3, num_mechanisms=4, hidden_size=8)
        >>> head(torch.ones(2, 5, 12)).shape, head.contributions(torch.ones(2, 5, 12)).shape
        (torch.Size([2, 5, 3]), torch.Size([2, 5, 4, 3]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_mechanisms: int = 1,
        *,
        hidden_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_size, output_size, num_mechanisms)
        require_positive(hidden_size=hidden_size)
        require_dropout(dropout=dropout)
        size = read = input_size // num_mechanisms
        self.dropout = nn.Dropout(dropout)
        self.hidden = None
        if hidden_size is not None:
            self.hidden, read = GroupedLinear(num_mechanisms, size, hidden_size, bias=True), hidden_size
        bound = (num_mechanisms * read) ** -0.5  # as of one linear map of everything
        self.linear = GroupedLinear(num_mechanisms, read, output_size, init_scale=bound)
        self.bias = nn.Parameter(torch.empty(output_size).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, input_size) to (B, T, output_size)."""
        return self.contributions(features).sum(dim=-2) + self.bias

    def contributions(self, features: Tensor) -> Tensor:
        """Return what each mechanism adds to the outputs, (B, T, M, output_size)."""
        mechanisms = self.by_mechanism(self.dropout(features))  # (B, T, M, d)
        rows = mechanisms.flatten(0, -3).transpose(0, 1)  # (M, B·T, d)
        if self.hidden is not None:
            rows = self.hidden(rows).relu()
        added: Tensor = self.linear(rows)
        return added.transpose(0, 1).reshape(*mechanisms.shape[:-1], self.output_size)
