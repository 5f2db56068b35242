"""Addressing a memory by content (Graves, Wayne and Danihelka 2014, sec. 3.3.1, arXiv:1410.5401)."""

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
        >>> import torch
        >>> address_content(torch.eye(2)[None], torch.tensor([[[3.0, 0.0]]]), torch.tensor([[50.0]])).round()
        tensor([[[1., 0.]]])
    """
    # the small term keeps the gradient of an empty location finite
    memory_scale = (memory.square().sum(dim=-1) + 1e-6).rsqrt()
    key_scale = strengths * (keys.square().sum(dim=-1) + 1e-6).rsqrt()
    return (keys @ memory.mT * memory_scale.unsqueeze(1) * key_scale.unsqueeze(2)).softmax(dim=-1)
