"""The competition: which K of M mechanisms are active (Goyal et al. 2021, sec. 2.1, arXiv:1909.10893)."""

import torch
from torch import Tensor


def rank(relevance: Tensor) -> Tensor:
    """Return how many mechanisms rank before each one in a sample.

    Ties go to the lowest index, on every device; NaN counts as the least relevance. M² comparisons per sample, by
    operations that every device, tracer and exporter supports.

    Args:
        relevance: Scores (M, B), larger for a mechanism that is to be active.

    Returns:
        Ranks (M, B), each from 0 to M − 1 once in every column.

    Example:
        >>> rank(torch.tensor([[0.1], [0.3], [0.3], [0.2]])).flatten().tolist()
        [3, 0, 1, 2]
    """
    order = relevance.detach()
    order = order.masked_fill(order.isnan(), -torch.inf)
    index = torch.arange(relevance.shape[0], device=relevance.device)
    is_earlier = (index[:, None] < index)[..., None]  # (M, M, 1)
    rival, own = order[:, None], order[None]
    beats = (rival > own) | ((rival == own) & is_earlier)  # (M, M, B): whether the first ranks before the second
    return beats.sum(dim=0)


def select_active(relevance: Tensor, num_active: int, offset: Tensor | None = None) -> Tensor:
    """Mark the ``num_active`` mechanisms of greatest relevance in each sample; see :func:`rank`.

    Args:
        relevance: Scores (M, B), larger for a mechanism that is to be active.
        num_active: Mechanisms to mark, 1 to M.
        offset: Added to the relevance for the ranking, (M, B or 1). A mechanism with −∞ is never marked.

    Returns:
        Mask (M, B), bool, with ``num_active`` true entries in each column, or fewer where offsets are −∞.

    Example:
        >>> select_active(torch.tensor([[0.1], [0.3], [0.3], [0.2]]), 2).flatten().tolist()
        [False, True, True, False]
    """
    if offset is None:
        return rank(relevance) < num_active
    return (rank(relevance + offset) < num_active) & (offset != -torch.inf)
