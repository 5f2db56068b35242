"""A language model's head whose output vectors are its input vectors (Press and Wolf 2017, arXiv:1608.05859)."""

import torch
from torch import Tensor, nn

from rimlit.checks import require_dropout, require_positive


class TiedHead(nn.Module):
    """Score tokens by their embedding, after a linear map where the widths differ.

    No :class:`rimlit.heads.Head` that a config could name: it needs the embedding. ``tie_embeddings`` of
    :class:`rimlit.tasks.LanguageModelingTask` builds it.

    Args:
        input_size: Features of the backbone.
        table: The embedding whose weight (vocabulary, embedding size) is shared.
        dropout: Dropout on the features, 0 to 1.

    Example:
        >>> TiedHead(8, nn.Embedding(10, 4))(torch.ones(2, 5, 8)).shape
        torch.Size([2, 5, 10])
    """

    def __init__(self, input_size: int, table: nn.Embedding, *, dropout: float = 0.0) -> None:
        super().__init__()
        require_positive(input_size=input_size)
        require_dropout(dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        width = table.embedding_dim
        self.narrow = nn.Identity() if width == input_size else nn.Linear(input_size, width)
        self.table = table
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, input_size) to scores (B, T, vocabulary)."""
        return nn.functional.linear(self.narrow(self.dropout(features)), self.table.weight, self.bias)
