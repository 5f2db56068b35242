"""The contract of every head: a backbone's features in, a task's outputs out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.errors import ConfigError


class Head(nn.Module, ABC):
    """A map of features, step by step.

    Args:
        input_size: Features of the backbone, at least 1, divisible by ``num_mechanisms``.
        output_size: Outputs of each step, at least 1.
        num_mechanisms: Equal parts into which the features fall, mechanism by mechanism; 1 for a backbone
            without mechanisms. A task takes it from the backbone.

    Raises:
        ConfigError: A size is below 1, or the features do not fall into ``num_mechanisms`` equal parts.
    """

    def __init__(self, input_size: int, output_size: int, num_mechanisms: int = 1) -> None:
        super().__init__()
        require_positive(input_size=input_size, output_size=output_size, num_mechanisms=num_mechanisms)
        if input_size % num_mechanisms:
            raise ConfigError(
                f"input_size must be divisible by num_mechanisms; got input_size={input_size}, "
                f"num_mechanisms={num_mechanisms}."
            )
        self.input_size = input_size
        self.output_size = output_size
        self.num_mechanisms = num_mechanisms

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, T, input_size) to outputs (B, T, output_size)."""

    def by_mechanism(self, features: Tensor) -> Tensor:
        """Return features (…, input_size) as (…, M, d)."""
        return features.reshape(*features.shape[:-1], self.num_mechanisms, self.input_size // self.num_mechanisms)


HeadFactory: TypeAlias = Callable[[int, int, int], Head]
"""Builds a head from its input size, its output size and the number of mechanisms. In YAML: ``class_path`` and
``init_args`` without these three."""
