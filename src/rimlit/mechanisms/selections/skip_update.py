"""Mechanisms that gather attention over steps and update when they have enough."""

import torch
from torch import Tensor

from rimlit.mechanisms.base import Choice
from rimlit.mechanisms.selection import Selection
from rimlit.nn.selection import rank


class SkipUpdate(Selection):
    """The update gate of a Skip RNN for each mechanism (Campos et al. 2018, sec. 3, arXiv:1708.06834).

    ũ ← min(1, ũ + Δ); a mechanism is active where ũ ≥ ½, and ũ starts again from 0 after its update. In the
    gradient ũ stands for the mask (straight-through). ũ is carried in the state. In the first step of a sequence
    it is 1. Of more than K the K of greatest relevance update, the others next time.

    Departs from the paper: Δ = 1 − P_null, the mechanism's attention to the input, in place of a linear map of its
    state. The paper's price on updates is ``balance: expected_sparsity``.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step, 1 to M.

    Example:
        >>> selection, relevance = SkipUpdate(1, 1), torch.tensor([[-1.0]])  # Δ = 0.27
        >>> choices = [selection.choose(relevance)]
        >>> for _ in range(3):
        ...     choices.append(selection.choose(relevance, None, choices[-1].carried))
        >>> [choice.active.item() for choice in choices]
        [False, True, False, True]
    """

    def __init__(self, num_mechanisms: int, num_active: int) -> None:
        super().__init__(num_mechanisms, num_active)
        self.place: Tensor
        self.register_buffer("place", torch.empty(0), persistent=False)  # knows device and type

    @property
    def is_exact(self) -> bool:
        """See :attr:`Selection.is_exact`."""
        return False

    @property
    def is_continuous(self) -> bool:
        """See :attr:`Selection.is_continuous`."""
        return False

    def initial_carried(self, batch_size: int) -> Tensor:
        """Return ũ (B, M), ones."""
        return torch.ones(batch_size, self.num_mechanisms, dtype=self.place.dtype, device=self.place.device)

    def choose(self, relevance: Tensor, offset: Tensor | None = None, carried: Tensor | None = None) -> Choice:
        """See :meth:`Selection.choose`.

        Args:
            relevance: (M, B).
            offset: Added for the ranking and to the log-odds of attending, (M, B or 1), without gradient.
            carried: ũ (B, M) after the last step; zeros by default.
        """
        ranked = relevance if offset is None else relevance + offset.detach()
        gathered = ranked.sigmoid() if carried is None else ranked.sigmoid() + carried.mT
        gathered = gathered.clamp(max=1)
        is_ready = gathered >= 0.5
        active = is_ready & (rank(ranked.masked_fill(~is_ready, -torch.inf)) < self.num_active)
        if offset is not None:
            active = active & (offset != -torch.inf)
        mask = active.to(gathered.dtype) + (gathered - gathered.detach())
        return Choice(active, soft=gathered, carried=((1 - mask) * gathered).mT)
