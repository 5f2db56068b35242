"""Mechanisms that are active by chance: those that never win still learn."""

import torch
from torch import Tensor

from rimlit.checks import require_share
from rimlit.mechanisms.balance import Noise

FIRST = 1e4
"""What puts a mechanism before all others and above null, in log-odds; small enough for float32 to rank by."""


class RandomActivation(Noise):
    """In training each mechanism is ranked first with probability ε in every step and sample.

    It then replaces the last winner, or is active where the count is dynamic; several compete among
    themselves. Like ε-greedy exploration, it shows mechanisms that never win what they would have read.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        probability: ε, 0 to 1.

    Raises:
        ConfigError: ``probability`` is out of its range.

    Example:
        >>> balance = RandomActivation(4, 2, probability=0.25)
        >>> balance.offset(3, 5).unique().tolist()
        [0.0, 10000.0]
        >>> balance.eval().offset(3, 5) is None
        True
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, probability: float = 0.01) -> None:
        super().__init__(num_mechanisms, num_active)
        require_share(probability=probability)
        self.probability = probability

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """See :meth:`Noise.draw`."""
        drawn = torch.rand(shape, device=self.place.device) < self.probability
        return FIRST * drawn.to(self.place.dtype)
