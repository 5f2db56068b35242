"""Gates that are drawn between 0 and 1 and are exactly 0 or 1 with a probability that is learned."""

import torch
from torch import Tensor

from rimlit.errors import ConfigError
from rimlit.mechanisms.base import Choice
from rimlit.mechanisms.selection import Selection
from rimlit.nn.selection import rank

LOW, HIGH = -0.1, 1.1
"""γ and ζ: where the concrete distribution is stretched to before it is cut to [0, 1]."""


class HardConcrete(Selection):
    """Hard concrete gates with the relevance as log α (Louizos et al. 2018, sec. 2.2, arXiv:1712.01312).

    z = clamp(σ((r + l)/β) · (ζ − γ) + γ, 0, 1), with l = log u − log(1 − u), γ = −0.1 and ζ = 1.1; in evaluation
    l = 0 and β = 1. A mechanism is active where z > 0 and moves by z; of more than K the K of greatest relevance
    stay. Its price on gates that are not 0 is ``balance: {expected_sparsity: {awake_only: false, shift: 1.6}}``.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step, 1 to M.
        temperature: β, above 0 and at most 1.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> choice = HardConcrete(3, 3).eval().choose(torch.tensor([[3.0], [0.0], [-3.0]]))
        >>> choice.active.flatten().tolist(), [round(gate, 2) for gate in choice.gate.flatten().tolist()]
        ([True, True, False], [1.0, 0.5, 0.0])
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, temperature: float = 2 / 3) -> None:
        super().__init__(num_mechanisms, num_active)
        if not 0 < temperature <= 1:
            raise ConfigError(f"temperature must be above 0 and at most 1; got temperature={temperature}.")
        self.temperature = temperature

    @property
    def is_exact(self) -> bool:
        """See :attr:`Selection.is_exact`."""
        return False

    def noise(self, num_steps: int, batch_size: int, like: Tensor) -> Tensor | None:
        """See :meth:`Selection.noise`."""
        if not self.training:
            return None
        shape = num_steps, self.num_mechanisms, batch_size
        least = torch.finfo(like.dtype).eps
        return torch.rand(shape, dtype=like.dtype, device=like.device).clamp(least, 1 - least).logit()

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        """See :meth:`Selection.choose`."""
        ranked = relevance if offset is None else relevance + offset.detach()
        stretched = (ranked / (self.temperature if self.training else 1)).sigmoid() * (HIGH - LOW) + LOW
        active = (stretched > 0) & (rank(ranked) < self.num_active)
        return Choice(active, torch.where(active, stretched.clamp(0, 1), 0))
