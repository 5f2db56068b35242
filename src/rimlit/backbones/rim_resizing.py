"""A RIM with more or fewer mechanisms than it was trained with, where they share their weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.errors import ConfigError
from rimlit.mechanisms import Part, Sharing
from rimlit.mechanisms.selection import require_active


def with_mechanisms(rim: Any, num_mechanisms: int, num_active: int) -> Any:
    """See :meth:`rimlit.RIM.with_mechanisms`."""
    require_positive(num_mechanisms=num_mechanisms)
    require_active(num_active, num_mechanisms)
    (layer, *others) = rim.layers
    if others:
        raise ConfigError(
            f"with_mechanisms needs num_layers=1: a second layer reads all mechanisms below; got "
            f"num_layers={1 + len(others)}."
        )
    for name, module in layer.named_modules():
        if isinstance(module, Sharing) and not module.is_resizable:
            raise ConfigError(
                f"with_mechanisms needs weights that all mechanisms share, sharing='shared'; {name} is "
                f"{type(module).__name__}."
            )
    resized = copy.deepcopy(rim)
    for module in resized.modules():
        if isinstance(module, Part) or hasattr(module, "num_mechanisms"):
            if hasattr(module, "num_active"):
                module.num_active = num_active
            if hasattr(module, "num_mechanisms"):
                module.num_mechanisms = num_mechanisms
    layer, initial = resized.layers[0], resized.initial
    layer.balance.resize(num_mechanisms)
    resized.output_size = resized.hidden_size = num_mechanisms * layer.size
    if layer.score_bias is not None:
        layer.score_bias = nn.Parameter(_resize(layer.score_bias.detach(), num_mechanisms, 0))
    initial.shape = (1, num_mechanisms, layer.size)
    for name, vectors in list(initial.named_parameters()):
        setattr(initial, name, nn.Parameter(_resize(vectors.detach(), num_mechanisms, 1)))
    return resized


def _resize(values: Tensor, size: int, dim: int) -> Tensor:
    """Return the first ``size`` entries along ``dim``, or all of them and drawn ones of like mean and spread."""
    kept = values.narrow(dim, 0, min(size, values.shape[dim]))
    missing = size - kept.shape[dim]
    if missing == 0:
        return kept.clone()
    mean, spread = values.mean(dim, keepdim=True), values.std(dim, correction=0, keepdim=True)
    shape = [*values.shape]
    shape[dim] = missing
    return torch.cat([kept, mean + spread * torch.randn(shape, dtype=values.dtype, device=values.device)], dim=dim)
