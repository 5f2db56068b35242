"""As many mechanisms as a sparse softmax over them leaves above zero."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from rimlit.checks import require_above_zero
from rimlit.errors import ConfigError
from rimlit.mechanisms.base import Choice
from rimlit.mechanisms.selection import Selection
from rimlit.nn.selection import rank


class Entmax(Selection):
    """The mechanisms of p = entmax(r/τ) above zero, at most K (Peters et al. 2019, arXiv:1905.05702).

    p is a softmax over mechanisms whose small entries are exactly 0. A mechanism moves by p_k / max p: the
    strongest in full, those near the border little. With ``num_active`` equal to M the state is a continuous
    function of the scores; below, the K of greatest relevance stay.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step, 1 to M.
        alpha: 1.5, or 2, which is sparsemax.
        temperature: τ, above 0, in the unit of the relevance, log-odds. The larger, the more are active.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> choice = Entmax(3, 3, alpha=2).choose(torch.tensor([[1.0], [0.5], [-1.0]]))
        >>> choice.active.flatten().tolist(), [round(gate, 4) for gate in choice.gate.flatten().tolist()]
        ([True, True, False], [1.0, 0.3333, 0.0])
    """

    def __init__(
        self, num_mechanisms: int, num_active: int, *, alpha: float = 1.5, temperature: float = 1.0
    ) -> None:
        super().__init__(num_mechanisms, num_active)
        if alpha not in (1.5, 2):
            raise ConfigError(f"alpha must be 1.5 or 2; got alpha={alpha}.")
        require_above_zero(temperature=temperature)
        self.alpha = alpha
        self.temperature = temperature

    @property
    def is_exact(self) -> bool:
        """See :attr:`Selection.is_exact`."""
        return False

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        """See :meth:`Selection.choose`."""
        ranked = relevance if offset is None else relevance + offset.detach()
        share = (sparsemax if self.alpha == 2 else entmax15)(ranked / self.temperature)
        active = (share > 0) & (rank(ranked) < self.num_active)
        most = share.amax(dim=0).clamp(min=torch.finfo(share.dtype).tiny)
        return Choice(active, torch.where(active, share / most, 0))


class Sparsemax(Entmax):
    """Entmax with α = 2 (Martins and Astudillo 2016, arXiv:1602.02068): sparser.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step, 1 to M.
        temperature: τ, above 0, in the unit of the relevance, log-odds. The larger, the more are active.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> Sparsemax(3, 3).choose(torch.tensor([[1.0], [0.5], [-1.0]])).active.flatten().tolist()
        [True, True, False]
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, temperature: float = 1.0) -> None:
        super().__init__(num_mechanisms, num_active, alpha=2, temperature=temperature)


def sparsemax(logits: Tensor) -> Tensor:
    """Return the point of the simplex nearest to ``logits`` (M, B), over mechanisms.

    Example:
        >>> sparsemax(torch.tensor([[1.0], [0.5], [-1.0]])).flatten().tolist()
        [0.75, 0.25, 0.0]
    """
    logits = logits - logits.amax(dim=0).detach()
    return (logits - _threshold(logits, _of_sparsemax)).clamp(min=0)


def entmax15(logits: Tensor) -> Tensor:
    """Return the 1.5-entmax of ``logits`` (M, B), over mechanisms.

    Example:
        >>> [round(share, 3) for share in entmax15(torch.tensor([[1.0], [0.5], [-1.0]])).flatten().tolist()]
        [0.674, 0.326, 0.0]
    """
    logits = (logits - logits.amax(dim=0).detach()) / 2
    return (logits - _threshold(logits, _of_entmax15)).clamp(min=0).square()


Threshold: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def _threshold(logits: Tensor, rule: Threshold) -> Tensor:
    """Return the threshold τ above which entries are kept.

    Of the k greatest, τ_k makes the shares sum to 1; the right k is the largest whose k-th entry is above τ_k. It
    is found without gradient, and its τ is formed again from the entries that it keeps.
    """
    with torch.no_grad():
        ordered = logits.sort(dim=0, descending=True).values
        count = torch.arange(1, len(logits) + 1, device=logits.device, dtype=logits.dtype)
        count = count[:, None]
        thresholds = rule(ordered.cumsum(dim=0), ordered.square().cumsum(dim=0), count)
        number = (ordered > thresholds).sum(dim=0).clamp(min=1)
        kept = rank(logits) < number
    entries = logits.where(kept, 0)
    return rule(entries.sum(dim=0), entries.square().sum(dim=0), number.to(logits.dtype))


def _of_sparsemax(total: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    return (total - 1) / count


def _of_entmax15(total: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    mean = total / count
    return mean - ((1 - squares + total * mean) / count).clamp(min=0).sqrt()
