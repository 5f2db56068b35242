"""The two attentions of a RIM: to the input, then to each other (Goyal et al. 2021, sec. 2, app. C.1)."""

import math

import torch
from torch import Tensor


def attend_slots(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over input slots and the null slot, whose score is 0.

    Args:
        scores: Scores of the slots (..., N), already divided by the root of the key size.

    Returns:
        Attention to the slots (..., N) and to the null slot (...).

    Example:
        >>> slots, null = attend_slots(torch.zeros(3))
        >>> slots.tolist(), null.item()
        ([0.25, 0.25, 0.25], 0.25)
    """
    null = scores.new_zeros(()).expand(*scores.shape[:-1], 1)
    attention = torch.cat([null, scores], dim=-1).softmax(dim=-1)
    return attention[..., 1:], attention[..., 0]


def communicate(query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Let every mechanism read every mechanism.

    Args:
        query: Queries (B, C, M, key size).
        key: Keys (B, C, M, key size).
        value: Values (B, C, M, value size).
        keep: Dropout factors on the attention (B, C, M, M), drawn before the time loop.

    Returns:
        What each mechanism read (B, C, M, value size) and its attention before dropout (B, C, M, M).
    """
    attention = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(dim=-1)  # (B, C, M, M)
    kept = attention if keep is None else attention * keep
    return kept @ value, attention
