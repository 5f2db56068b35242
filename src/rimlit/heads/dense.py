"""A head with a hidden layer."""

from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.heads.base import Head


class DenseHead(Head):
    """Map all features through a hidden layer with ReLU and layer norm.

    Args:
        input_size: Features of the backbone.
        output_size: Outputs of each step.
        num_mechanisms: Not used: all features are read alike.
        hidden_size: Width of the hidden layer, at least 1.

    Raises:
        ConfigError: A size is below 1.

    Example:
        >>> import torch
        >>> DenseHead(8, 3)(torch.ones(2, 5, 8)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(
        self, input_size: int, output_size: int, num_mechanisms: int = 1, *, hidden_size: int = 512
    ) -> None:
        super().__init__(input_size, output_size, num_mechanisms)
        require_positive(hidden_size=hidden_size)
        self.layers = nn.Sequential(
            nn.Linear(input_size, hidden_size),
            nn.ReLU(),
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, output_size),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, input_size) to (B, T, output_size)."""
        outputs: Tensor = self.layers(features)
        return outputs
