"""Addressing a memory by content (Graves, Wayne and Danihelka 2014, sec. 3.3.1, arXiv:1410.5401)."""

import torch
from torch import Tensor


def address_content(memory: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """Softmax over locations of strength times the cosine between key and location.

    Args:
        memory: (B, locations, word size).
        keys: (B, heads, word size).
        strengths: (B, heads), at least 0.

    Returns:
        Weights (B, heads, locations).

    Example:
        >>> address_content(torch.eye(2)[None], torch.tensor([[[3.0, 0.0]]]), torch.tensor([[50.0]])).round()
        tensor([[[1., 0.]]])
    """
    memory_scale, key_scale = _inverse_norm(memory), strengths * _inverse_norm(keys)
    scores = keys @ memory.mT * memory_scale.unsqueeze(1) * key_scale.unsqueeze(2)
    return scores.softmax(dim=-1).to(memory.dtype)


def _inverse_norm(vectors: Tensor) -> Tensor:
    """Return 1 / length of (…, word size), with a small term that keeps the gradient of an empty one finite."""
    exact = vectors.to(torch.promote_types(vectors.dtype, torch.float32))  # in float16 that gradient overflows
    return (exact.square().sum(dim=-1) + 1e-6).rsqrt()
