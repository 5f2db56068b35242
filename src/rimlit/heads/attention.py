"""A head that attends over the mechanisms as over a set."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from rimlit.checks import require_dropout, require_known, require_positive
from rimlit.heads.base import Head

Query = Literal["learned", "features"]
QUERIES = ("learned", "features")


class AttentionHead(Head):
    """Read a weighted mean of the mechanisms, with one set of weights per attention head, and map it linearly.

    Keys are a map that all mechanisms share, so that their order does not matter. The paper concatenates
    mechanisms; it names attention over them as what helped too (sec. 2).

    Args:
        input_size: Features of the backbone, divisible by ``num_mechanisms``.
        output_size: Outputs of each step.
        num_mechanisms: Mechanisms attended to; with one the attention has nothing to choose.
        num_heads: Attention heads, at least 1; what they read is concatenated.
        key_size: Key size of each attention head, at least 1.
        query: Where queries come from: ``learned`` (the same in every step), or ``features`` (a map of the mean
            of the mechanisms).
        dropout: Dropout on the features, 0 to 1.

    Raises:
        ConfigError: The query is unknown, a size below 1 or the dropout out of range.

    Example:
        >>> AttentionHead(12, 3, num_mechanisms=4, num_heads=2)(torch.ones(2, 5, 12)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_mechanisms: int = 1,
        *,
        num_heads: int = 4,
        key_size: int = 32,
        query: Query = "learned",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_size, output_size, num_mechanisms)
        require_positive(num_heads=num_heads, key_size=key_size)
        require_dropout(dropout=dropout)
        require_known(query=(query, QUERIES))
        size = input_size // num_mechanisms
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.key = nn.Linear(size, num_heads * key_size, bias=False)
        self.query_of_features = nn.Linear(size, num_heads * key_size) if query == "features" else None
        self.learned_query = nn.Parameter(torch.randn(num_heads * key_size)) if query == "learned" else None
        self.linear = nn.Linear(num_heads * size, output_size)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, input_size) to (B, T, output_size)."""
        mechanisms = self.by_mechanism(self.dropout(features))  # (B, T, M, d)
        read = self.attention(mechanisms) @ mechanisms  # (B, T, heads, d)
        outputs: Tensor = self.linear(read.flatten(-2))
        return outputs

    def attention(self, mechanisms: Tensor) -> Tensor:
        """Return the weight of each of ``mechanisms`` (…, M, d) in each attention head, (…, heads, M)."""
        queries = self.learned_query
        if self.query_of_features is not None:
            queries = self.query_of_features(mechanisms.mean(dim=-2))
        assert queries is not None
        query = self._by_head(queries)  # (…, heads, key size)
        key = self._by_head(self.key(mechanisms))  # (…, M, heads, key size)
        scores = torch.einsum("...hk,...mhk->...hm", query, key) / math.sqrt(query.shape[-1])
        return scores.softmax(dim=-1)

    def _by_head(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:-1], self.num_heads, values.shape[-1] // self.num_heads)
