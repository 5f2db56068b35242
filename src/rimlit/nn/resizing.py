"""Tensors with a row per mechanism, resized where the number of mechanisms changes after training.

A module names them in ``mechanism_rows``, a mapping from the names of its own parameters and buffers to the
dimension in which mechanisms are counted.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class RowsOfMechanisms(NamedTuple):
    """A parameter or buffer with a row per mechanism."""

    module: nn.Module
    name: str  # in the module
    key: str  # in the state dict of the module that was searched
    dim: int


def rows_of_mechanisms(module: nn.Module) -> Iterator[RowsOfMechanisms]:
    """Yield every tensor inside ``module`` that has a row per mechanism."""
    for path, inner in module.named_modules():
        named: Mapping[str, int] = getattr(inner, "mechanism_rows", {})
        for name, dim in named.items():
            if isinstance(getattr(inner, name, None), Tensor):
                yield RowsOfMechanisms(inner, name, f"{path}.{name}".lstrip("."), dim)


def resize_rows(values: Tensor, size: int, dim: int) -> Tensor:
    """Return the first ``size`` entries along ``dim``, or all of them and drawn ones of like mean and spread.

    Example:
        >>> resize_rows(torch.tensor([1.0, 2.0, 3.0]), 2, 0).tolist()
        [1.0, 2.0]
        >>> resize_rows(torch.ones(2, 3), 5, 0).shape
        torch.Size([5, 3])
    """
    kept = values.narrow(dim, 0, min(size, values.shape[dim]))
    missing = size - kept.shape[dim]
    if missing == 0:
        return kept.clone()
    mean = values.mean(dim, keepdim=True)
    spread = values.std(dim, correction=0, keepdim=True)
    shape = [*values.shape]
    shape[dim] = missing
    drawn = torch.randn(shape, dtype=values.dtype, device=values.device)
    return torch.cat([kept, mean + spread * drawn], dim=dim)


def resize_module(module: nn.Module, num_mechanisms: int) -> None:
    """Give every tensor inside ``module`` that has a row per mechanism another number of rows, in place."""
    for rows in list(rows_of_mechanisms(module)):
        old: Tensor = getattr(rows.module, rows.name)
        new = resize_rows(old.detach(), num_mechanisms, rows.dim)
        setattr(rows.module, rows.name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


def resize_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a module of other mechanisms for ``module``.

    Args:
        module: What the weights are for.
        weights: A state dict of the same module with another number of mechanisms; other differences stay.
    """
    resized = dict(weights)
    for rows in rows_of_mechanisms(module):
        size, values = getattr(rows.module, rows.name).shape[rows.dim], weights.get(rows.key)
        if isinstance(values, Tensor) and values.dim() > rows.dim and values.shape[rows.dim] != size:
            resized[rows.key] = resize_rows(values, size, rows.dim)
    return resized
