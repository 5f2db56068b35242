"""Token embedding."""

import torch
from torch import Tensor, nn

from rimlit.checks import require_dropout, require_positive
from rimlit.encoders.base import Encoder


class Embedding(Encoder):
    """Look up a vector for each token and drop features of it.

    Args:
        vocabulary_size: Tokens, at least 1.
        output_size: Features of each token, at least 1.
        dropout: Dropout on the vectors, 0 to 1.

    Example:
        >>> import torch
        >>> Embedding(10, 4)(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 4])
    """

    def __init__(self, vocabulary_size: int, output_size: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        require_positive(vocabulary_size=vocabulary_size, embedding_size=output_size)
        require_dropout(dropout=dropout)
        self.input_size = vocabulary_size
        self.output_size = output_size
        self.table = nn.Embedding(vocabulary_size, output_size)
        self.dropout = nn.Dropout(dropout)

    @property
    def drops(self) -> bool:
        """Whether dropout acts now, so that equal tokens have different vectors."""
        return self.training and self.dropout.p > 0

    def example_inputs(self, batch_size: int, num_steps: int, generator: torch.Generator) -> Tensor:
        """Return random tokens (B, T)."""
        return torch.randint(self.input_size, (batch_size, num_steps), generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T) to vectors (B, T, output_size)."""
        vectors: Tensor = self.dropout(self.table(tokens))
        return vectors
