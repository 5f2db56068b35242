"""The competition: which K of M mechanisms are active (Goyal et al. 2021, sec. 2.1, arXiv:1909.10893)."""

import torch
from torch import Tensor


def select_active(relevance: Tensor, num_active: int) -> Tensor:
    """Mark the ``num_active`` mechanisms of greatest relevance in each sample.

    Ties go to the lowest index, on every device; NaN counts as the least relevance, so that exactly
    ``num_active`` mechanisms are marked whatever the input holds.

    Args:
        relevance: Scores (M, B), larger for a mechanism that is to be active.
        num_active: Mechanisms to mark, 1 to M.

    Returns:
        Mask (M, B), bool, with ``num_active`` true entries in each column.

    Example:
        >>> select_active(torch.tensor([[0.1], [0.3], [0.3], [0.2]]), 2).flatten().tolist()
        [False, True, True, False]
    """
    if num_active == relevance.shape[0]:
        return torch.ones_like(relevance, dtype=torch.bool)
    order = relevance.detach().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    # topk leaves ties to the device: a stable sort takes the lowest index first
    winners = order.argsort(dim=0, descending=True, stable=True)[:num_active]
    return torch.zeros_like(relevance, dtype=torch.bool).scatter_(0, winners, True)
