"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16)."""

import torch
from torch import Tensor


def estimate_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    breaks: Tensor,
    *,
    discount: float,
    trace: float,
) -> Tensor:
    """Return the advantages: how much better each action was than the value expected before it.

    Args:
        rewards: (B, T): reward after each action.
        values: (B, T): value expected before each action.
        next_values: (B, T): value expected after each action: 0 where an episode terminated, that of the final
            observation where it was truncated.
        breaks: (B, T) bool: last steps of episodes, or of lives: no later reward counts for them.
        discount: γ, 0 to 1.
        trace: λ, 0 to 1: 0 trusts the values, 1 the rewards.

    Returns:
        Advantages (B, T).

    Example:
        >>> rewards, zeros = torch.tensor([[1.0, 1.0, 1.0]]), torch.zeros(1, 3)
        >>> breaks = torch.tensor([[False, True, False]])
        >>> estimate_advantages(rewards, zeros, zeros, breaks, discount=0.5, trace=1.0)
        tensor([[1.5000, 1.0000, 1.0000]])
    """
    surprise = rewards + discount * next_values - values
    weight = discount * trace * (~breaks).to(surprise)
    advantages = torch.empty_like(surprise)
    following = torch.zeros_like(surprise[:, 0])
    for step in reversed(range(surprise.shape[1])):
        following = surprise[:, step] + weight[:, step] * following
        advantages[:, step] = following
    return advantages
