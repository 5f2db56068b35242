"""Shared types and the dimension legend every shape comment in rimlit uses.

====  =============================================
B     batch
T     time
N     input slots
D     input size
M     mechanisms
K     active mechanisms
d     features of each mechanism
H     total hidden size, H = M·d
I     heads of the input attention
C     heads of the communication attention
G     gate pre-activations of a cell, G = 4·d
====  =============================================
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any
"""A NamedTuple, or nested tuple, of tensors whose first dimension is B."""


class LSTMState(NamedTuple):
    """State of LSTM-like backbones."""

    hidden: Tensor
    memory: Tensor


class GRUState(NamedTuple):
    """State of GRU-like backbones."""

    hidden: Tensor


class SequenceBatch(NamedTuple):
    """A batch of sequences, padded at the end where their lengths differ."""

    inputs: Tensor  # (B, T), (B, T, D) or (B, T, N, D)
    targets: Tensor  # (B, T) or whatever the task predicts
    lengths: Tensor  # (B,): steps that count; the rest is padding

    @property
    def mask(self) -> Tensor:
        """Steps that are not padding: (B, T) bool."""
        steps = torch.arange(self.inputs.shape[1], device=self.lengths.device)
        return steps < self.lengths[:, None]


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Apply ``function`` to the tensors that stand at the same place in each of ``states``."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    parts = [map_state(function, *parts) for parts in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def flat_state(state: State) -> list[Tensor]:
    """Return the tensors of ``state`` in the order in which :func:`map_state` visits them."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in flat_state(part)]


def detach_state(state: State) -> State:
    """Return ``state`` cut from the graph that computed it."""
    return map_state(Tensor.detach, state)


def replace_state(state: State, replacement: State, where: Tensor) -> State:
    """Return ``replacement`` for the samples that ``where`` (B,) marks, ``state`` for the others."""
    mask = where

    def choose(old: Tensor, new: Tensor) -> Tensor:
        nonlocal mask
        if mask.dim() != old.dim():  # most states are of one shape
            mask = where.view(-1, *[1] * (old.dim() - 1))
        return torch.where(mask, new, old)

    return map_state(choose, state, replacement)
