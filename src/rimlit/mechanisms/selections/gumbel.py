"""K mechanisms drawn at random by their relevance, in training alone."""

import torch
from torch import Tensor

from rimlit.checks import require_above_zero
from rimlit.mechanisms.selection import LeastNull, Margin


class GumbelTopK(LeastNull):
    """Draws K mechanisms without replacement, in proportion to e^(r/τ) (Kool et al. 2019, arXiv:1903.06059).

    In training the mechanisms of greatest r + τ · g are active, g = −log(−log u) with u uniform in (0, 1); in
    evaluation those of greatest r. All other arguments are those of :class:`rimlit.mechanisms.LeastNull`, whose
    gates see the noise too.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step, 1 to M.
        temperature: τ, above 0, in the unit of the relevance, log-odds.
        margin: See :class:`rimlit.mechanisms.LeastNull`.
        width: See there.
        graded: See there.
        dynamic: See there.

    Raises:
        ConfigError: An argument is out of its range or unknown.

    Example:
        >>> selection = GumbelTopK(3, 2)
        >>> selection.noise(4, 5, torch.empty(0)).shape, selection.eval().noise(4, 5, torch.empty(0))
        (torch.Size([4, 3, 5]), None)
    """

    def __init__(
        self,
        num_mechanisms: int,
        num_active: int,
        *,
        temperature: float = 1.0,
        margin: Margin = "none",
        width: float = 0.5,
        graded: bool = False,
        dynamic: bool = False,
    ) -> None:
        super().__init__(num_mechanisms, num_active, margin=margin, width=width, graded=graded, dynamic=dynamic)
        require_above_zero(temperature=temperature)
        self.temperature = temperature

    def noise(self, num_steps: int, batch_size: int, like: Tensor) -> Tensor | None:
        """See :meth:`Selection.noise`."""
        if not self.training:
            return None
        waiting = torch.empty(num_steps, self.num_mechanisms, batch_size, dtype=like.dtype, device=like.device)
        return -self.temperature * waiting.exponential_().log()  # −log of an exponential is a Gumbel variable
