"""Balance without a term of the loss: a bias of the ranking that follows who is active."""

import torch
from torch import Tensor, nn

from rimlit.checks import require_not_negative
from rimlit.mechanisms.balance import Counting, resized


class LossFreeBias(Counting):
    """A bias of the ranking that rises for rarely active mechanisms (Wang et al. 2024, arXiv:2408.15664).

    The mechanisms of greatest r + b are active, and what they read is weighed by r alone. After each optimiser
    step b_k += γ · sign(mean(c) − c_k), with c_k in how many steps of all samples and processes mechanism k was
    active; then the mean of b is taken off, so that on average nothing moves against null. The bias stays as it is
    in evaluation, and is saved.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        step: γ, at least 0, in the unit of the relevance, log-odds.
        follows_schedule: Whether γ is scaled by the learning rate's share of its highest value, so that the bias
            comes to rest where the weights do.

    Raises:
        ConfigError: ``step`` is out of its range.

    Example:
        >>> balance = LossFreeBias(3, 1, step=0.3)
        >>> balance.observe(torch.tensor([[True, True], [False, False], [False, False]])[None])
        >>> balance.after_step(balance, 1.0)
        >>> [round(bias, 2) for bias in balance.bias.tolist()]
        [-0.4, 0.2, 0.2]
    """

    def __init__(
        self, num_mechanisms: int, num_active: int, *, step: float = 0.001, follows_schedule: bool = False
    ) -> None:
        super().__init__(num_mechanisms, num_active)
        require_not_negative(step=step)
        self.step = step
        self.follows_schedule = follows_schedule
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(num_mechanisms))

    def resize(self, num_mechanisms: int) -> None:
        """See :meth:`Balance.resize`: new mechanisms start without a bias."""
        super().resize(num_mechanisms)
        self.bias = resized(self.bias, num_mechanisms)

    def offset(self, num_steps: int, batch_size: int) -> Tensor:
        """See :meth:`Balance.offset`."""
        return self.bias.clone()[None, :, None]

    def follow(self, counts: Tensor, total: Tensor, layer: nn.Module, rate: float) -> None:
        """See :meth:`Counting.follow`."""
        # in whole numbers: M · c_k against the sum of all counts
        lacks = (counts.sum() - self.num_mechanisms * counts).sign()
        moved = self.bias + self.step * (rate if self.follows_schedule else 1) * lacks
        self.bias.copy_(moved - moved.mean())
