"""The paper's hard choice, with the gradient of a soft one."""

from torch import Tensor

from rimlit.checks import require_above_zero
from rimlit.mechanisms.base import Choice
from rimlit.mechanisms.selection import Selection
from rimlit.nn.selection import rank


class StraightThrough(Selection):
    """The K of greatest relevance, with the gradient of a soft mask (Bengio et al. 2013, arXiv:1308.3432).

    Forward as ``least_null``, number by number. Backward the mask m = active + soft − stopgrad(soft) stands in
    h ← h + m · (candidate − h), with soft = σ((r − b)/τ) and b, without gradient, halfway between the last winner
    and the best loser. So losers get a gradient too, in proportion to how far they would have moved. All K = M
    mechanisms: no gradient.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: Mechanisms active in a step, 1 to M.
        temperature: τ, above 0, in the unit of the relevance, log-odds.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> import torch
        >>> choice = StraightThrough(3, 1).choose(torch.tensor([[1.0], [0.0], [-2.0]]))
        >>> choice.active.flatten().tolist(), [round(soft, 2) for soft in choice.soft.flatten().tolist()]
        ([True, False, False], [0.62, 0.38, 0.08])
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, temperature: float = 1.0) -> None:
        super().__init__(num_mechanisms, num_active)
        require_above_zero(temperature=temperature)
        self.temperature = temperature

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        """See :meth:`Selection.choose`."""
        active = super().choose(relevance, offset).active
        if self.num_active == self.num_mechanisms:
            return Choice(active)
        ranked = (relevance if offset is None else relevance + offset).detach()
        place = rank(ranked)
        # sums that skip all others, so that no −∞ meets a zero
        last, loser = (ranked.where(place == at, 0).sum(dim=0) for at in (self.num_active - 1, self.num_active))
        border = (last + loser) / 2
        return Choice(active, soft=((relevance - border) / self.temperature).sigmoid())
