"""Noise of the ranking with two terms of the loss that even out gates and choices."""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rimlit.checks import require_not_negative
from rimlit.errors import ConfigError
from rimlit.mechanisms.balance import Noise, resized


class NoisyTopK(Noise):
    """Noise of a learned size in the ranking, importance and load losses (Shazeer et al. 2017, arXiv:1701.06538).

    In training the mechanisms of greatest r + σ_k · ε are active, ε ~ N(0, 1), σ_k = softplus(n_k) + 0.01 (eq. 4);
    without noise in evaluation. L = importance · CV²(I) + load · CV²(Λ), CV² = variance / (mean² + 1e-10): I_k
    sums the softmax of r over the active mechanisms (eq. 6), Λ_k the probability that k is among the K first
    (eq. 9).

    Departs from the paper: n_k is learned per mechanism and does not read the input, and the probability is that
    of k's own noise against the others' scores without noise, which is not kept.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step, below M.
        importance: Weight of the first term, at least 0.
        load: Weight of the second term, at least 0.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(
        self, num_mechanisms: int, num_active: int, *, importance: float = 0.01, load: float = 0.01
    ) -> None:
        super().__init__(num_mechanisms, num_active)
        require_not_negative(importance=importance, load=load)
        if num_active >= num_mechanisms:
            raise ConfigError(
                f"noisy_top_k needs num_active below num_mechanisms; got num_active={num_active}, "
                f"num_mechanisms={num_mechanisms}."
            )
        self.importance = importance
        self.load = load
        self.noise = nn.Parameter(torch.zeros(num_mechanisms))

    def resize(self, num_mechanisms: int) -> None:
        """See :meth:`Balance.resize`: new mechanisms have the noise of the start."""
        super().resize(num_mechanisms)
        self.noise = nn.Parameter(resized(self.noise.detach(), num_mechanisms))

    @property
    def spread(self) -> Tensor:
        """Standard deviation σ of each mechanism's noise, (M,)."""
        return softplus(self.noise) + 0.01

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """See :meth:`Noise.draw`."""
        drawn = torch.randn(shape, dtype=self.place.dtype, device=self.place.device)
        return drawn * self.spread.detach()[:, None]

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor:
        """See :meth:`Balance.penalty`."""
        gates = relevance.masked_fill(~active, -torch.inf).softmax(dim=1)
        gates = torch.where(active, gates, 0)  # NaN where no mechanism is active
        return self.importance * variation(gates.sum(dim=(0, 2))) + self.load * variation(
            self.chances(relevance).sum(dim=(0, 2))
        )

    def chances(self, relevance: Tensor) -> Tensor:
        """Return the probability that a mechanism's noise puts it among the K first, (T, M, B)."""
        ordered = relevance.topk(self.num_active + 1, dim=1).values
        last_in, first_out = ordered[:, -2:-1], ordered[:, -1:]
        # the K-th of the others: the best loser for a winner, the last winner for a loser
        bar = torch.where(relevance >= last_in, first_out, last_in)
        chances: Tensor = torch.special.ndtr((relevance - bar) / self.spread[:, None])
        return chances


def variation(values: Tensor) -> Tensor:
    """Return the squared coefficient of variation of ``values``.

    Example:
        >>> round(float(variation(torch.tensor([1.0, 3.0]))), 4)
        0.25
    """
    return values.var(correction=0) / (values.mean().square() + 1e-10)
