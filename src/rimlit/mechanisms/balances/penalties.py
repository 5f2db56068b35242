"""Terms of the loss that spread the choice over mechanisms, as mixtures of experts have them.

r is the log-odds of reading the input against null, p its softmax over mechanisms. Means are over steps and
samples.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rimlit.checks import require_not_negative, require_share
from rimlit.mechanisms.balance import Balance


class Penalty(Balance, ABC):
    """A term of the loss. A subclass gives :meth:`cost`.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        coefficient: Weight of the term in the loss, at least 0.

    Raises:
        ConfigError: ``coefficient`` is out of its range.
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, coefficient: float) -> None:
        super().__init__(num_mechanisms, num_active)
        require_not_negative(coefficient=coefficient)
        self.coefficient = coefficient

    @abstractmethod
    def cost(self, relevance: Tensor, active: Tensor) -> Tensor:
        """Return the term, a scalar, from the relevance and who is active, (T, M, B) each."""

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor:
        """See :meth:`Balance.penalty`."""
        return self.coefficient * self.cost(relevance, active)


class SwitchBalance(Penalty):
    """A penalty on mechanisms that are chosen often and likely (Fedus et al. 2022, eq. 4, arXiv:2101.03961).

    L = coefficient · M · Σ f_k P_k. f_k is mechanism k's share of all choices, without gradient, and P_k its mean
    p. Both are 1/M where all are active alike.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        coefficient: Weight of the term in the loss, at least 0.

    Example:
        >>> relevance = torch.zeros(1, 2, 4)
        >>> active = torch.tensor([[True, True, False, False], [False, False, True, True]])[None]
        >>> float(SwitchBalance(2, 1, coefficient=1.0).cost(relevance, active))
        1.0
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, coefficient: float = 0.01) -> None:
        super().__init__(num_mechanisms, num_active, coefficient=coefficient)

    def cost(self, relevance: Tensor, active: Tensor) -> Tensor:
        """See :meth:`Penalty.cost`."""
        mean = relevance.softmax(dim=1).mean(dim=(0, 2))
        return self.num_mechanisms * (shares_of(active).to(mean.dtype) * mean).sum()


class GshardBalance(Penalty):
    """A penalty on mechanisms that are often the first choice (Lepikhin et al. 2021, alg. 1, arXiv:2006.16668).

    L = coefficient · 1/M · Σ c_k P_k. c_k is in which share of steps mechanism k is the first choice, without
    gradient, and P_k its mean p. The first choice is the active mechanism of greatest r.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        coefficient: Weight of the term in the loss, at least 0.

    Example:
        >>> relevance = torch.tensor([[1.0], [0.0]])[None]
        >>> cost = GshardBalance(2, 2, coefficient=1.0).cost(relevance, torch.ones(1, 2, 1, dtype=torch.bool))
        >>> round(float(cost), 4)  # σ(1) / 2
        0.3655
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, coefficient: float = 0.01) -> None:
        super().__init__(num_mechanisms, num_active, coefficient=coefficient)

    def cost(self, relevance: Tensor, active: Tensor) -> Tensor:
        """See :meth:`Penalty.cost`."""
        first = relevance.detach().masked_fill(~active, -torch.inf).argmax(dim=1, keepdim=True)
        is_first = torch.zeros_like(active).scatter_(1, first, value=True) & active
        mean = relevance.softmax(dim=1).mean(dim=(0, 2))
        return (is_first.to(mean.dtype).mean(dim=(0, 2)) * mean).mean()


class ZLoss(Penalty):
    """A penalty on large scores (Zoph et al. 2022, eq. 5, arXiv:2202.08906).

    L = coefficient · mean(logsumexp(r)²), the logsumexp over mechanisms.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        coefficient: Weight of the term in the loss, at least 0.

    Example:
        >>> cost = ZLoss(2, 1, coefficient=1.0).cost(torch.zeros(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool))
        >>> round(float(cost), 4)  # log(2)²
        0.4805
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, coefficient: float = 0.001) -> None:
        super().__init__(num_mechanisms, num_active, coefficient=coefficient)

    def cost(self, relevance: Tensor, active: Tensor) -> Tensor:
        """See :meth:`Penalty.cost`."""
        return relevance.logsumexp(dim=1).square().mean()


class UsageFloor(Penalty):
    """A penalty on mechanisms that are hardly ever active, and on no others.

    L = coefficient · Σ max(0, ρ/M − f_k), with f_k mechanism k's share of all choices. f_k has the gradient of the
    mean of 1 − P_null, so that a mechanism below the floor learns to attend to the input more. Uneven use above
    the floor is not penalised: mechanisms may be inactive where the input is irrelevant to them.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        coefficient: Weight of the term in the loss, at least 0.
        floor: ρ, the least share as a part of that of even use, 0 to 1.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> active = torch.tensor([[True] * 10, [False] * 10])[None]
        >>> round(float(UsageFloor(2, 1, coefficient=1.0, floor=0.1).cost(torch.zeros(1, 2, 10), active)), 4)
        0.05
    """

    def __init__(
        self, num_mechanisms: int, num_active: int, *, coefficient: float = 0.1, floor: float = 0.1
    ) -> None:
        super().__init__(num_mechanisms, num_active, coefficient=coefficient)
        require_share(floor=floor)
        self.floor = floor

    def cost(self, relevance: Tensor, active: Tensor) -> Tensor:
        """See :meth:`Penalty.cost`."""
        attends = relevance.sigmoid().mean(dim=(0, 2))
        share = shares_of(active).to(attends.dtype) + (attends - attends.detach())
        return (self.floor / self.num_mechanisms - share).clamp(min=0).sum()


def shares_of(active: Tensor) -> Tensor:
    """Return each mechanism's share of all choices, (M,) float64, from who is active (T, M, B)."""
    counts = active.sum(dim=(0, 2)).double()
    return counts / counts.sum().clamp(min=1)
