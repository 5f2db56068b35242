"""A penalty on active mechanisms, for rules that let the input decide how many are active."""

import math

from torch import Tensor

from rimlit.checks import require_share
from rimlit.errors import ConfigError
from rimlit.mechanisms.balances.penalties import Penalty


class ExpectedSparsity(Penalty):
    """A penalty on the expected share of active mechanisms, for rules with a dynamic count.

    L = coefficient · max(0, P − target), where P is the mean over steps, samples and all mechanisms of the
    attention to the input 1 − P_null of active ones, and 0 for the others: an expected count, as in
    (Louizos et al. 2018, sec. 2.1, arXiv:1712.01312), with 1 − P_null as the probability. An inactive
    mechanism gets no gradient, so that the penalty moves none further from the input than needed.

    With ``awake_only=False`` inactive ones count with their probability, too. With ``shift=1.6`` beside it, P
    is the probability that a gate of ``selection: hard_concrete`` is not 0, and L the penalty of its paper.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        coefficient: Weight of the penalty in the loss, at least 0; 0.001 to 0.1 is a sensible range.
        target: Expected share of active mechanisms without a penalty, 0 to 1.
        awake_only: Whether inactive mechanisms count as 0.
        shift: Added to the log-odds of attending before they become a probability; finite.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> import torch
        >>> relevance = torch.tensor([2.0, -2.0]).view(1, 2, 1)  # one step, two mechanisms, one sample
        >>> penalty = ExpectedSparsity(2, 2, coefficient=0.1).penalty(relevance, relevance > 0)
        >>> round(float(penalty), 4)  # 0.1 · σ(2) / 2
        0.044
    """

    def __init__(
        self,
        num_mechanisms: int,
        num_active: int,
        *,
        coefficient: float = 0.01,
        target: float = 0.0,
        awake_only: bool = True,
        shift: float = 0.0,
    ) -> None:
        super().__init__(num_mechanisms, num_active, coefficient=coefficient)
        require_share(target=target)
        if not math.isfinite(shift):
            raise ConfigError(f"shift must be finite; got shift={shift}.")
        self.target = target
        self.awake_only = awake_only
        self.shift = shift

    def cost(self, relevance: Tensor, active: Tensor) -> Tensor:
        """See :meth:`Penalty.cost`."""
        chance = (relevance + self.shift).sigmoid()
        awake = chance * active if self.awake_only else chance
        return (awake.mean() - self.target).clamp(min=0)
