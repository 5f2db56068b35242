"""All products of a RIM layer that do not depend on its state, done before the time loop.

The null slot is zero and keys and values have no bias, so with a single slot the score of mechanism m is
h·(W_q W_kᵀ x) and its attended input a·(x W_v W_ih) with one scalar a per head: both factors that hold x are
computed here for every step in a few large products. With several slots the attention mixes the slots before
the cell reads them, so only keys and values are computed ahead.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rimlit.kernels.layer import LayerOptions, LayerWeights


class Projected(NamedTuple):
    """Inputs as the loop reads them; ``is_folded`` for a single slot.

    Folded: keys (M, T, B, I, d), values (M, T, B, I, gates). Otherwise: keys (1 or M, T, B, N, I, key),
    values (1 or M, T, B, N, I, value).
    """

    keys: Tensor
    values: Tensor
    is_folded: bool


def project(weights: LayerWeights, options: LayerOptions, sequence: Tensor) -> Projected:
    """Project ``sequence`` (B, T, N, D) for :class:`LayerWeights`."""
    batch_size, num_steps, num_slots, input_size = sequence.shape
    heads = options.input_heads
    rows = sequence.transpose(0, 1).reshape(1, -1, input_size)  # (1, T·B·N, D)
    shape = (-1, num_steps, batch_size, num_slots, heads)
    if num_slots > 1:
        keys, values = _times(rows, weights.input_key), _times(rows, weights.input_value)
        return Projected(
            keys.reshape(*shape, keys.shape[-1] // heads),
            values.reshape(*shape, values.shape[-1] // heads),
            is_folded=False,
        )

    scale = math.sqrt(weights.input_key.shape[-1] / heads)
    # one (D → key → d) and one (D → value → gates) chain per head
    key_chains = [
        _chain(rows, key, query.mT / scale)
        for key, query in zip(
            weights.input_key.chunk(heads, -1), weights.input_query.chunk(heads, -1), strict=True
        )
    ]
    value_chains = [
        _chain(rows, value, cell)
        for value, cell in zip(
            weights.input_value.chunk(heads, -1), weights.cell_input.chunk(heads, 1), strict=True
        )
    ]
    folded = (options.num_mechanisms, num_steps, batch_size, heads, -1)
    return Projected(
        torch.stack(key_chains, dim=2).view(folded), torch.stack(value_chains, dim=2).view(folded), is_folded=True
    )


def _times(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply groups of rows by groups of weights; a single group on either side serves all."""
    if rows.shape[0] == weight.shape[0]:
        return torch.bmm(rows, weight)
    return torch.matmul(rows, weight)


def _chain(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return rows · first · second (M, R, output), in the cheaper of the two orders."""
    num_rows, input_size, inner_size = rows.shape[1], *first.shape[1:]
    groups, output_size = second.shape[0], second.shape[2]
    in_turn = num_rows * inner_size * (first.shape[0] * input_size + groups * output_size)
    weights_first = groups * input_size * output_size * (inner_size + num_rows)
    if weights_first < in_turn:
        return _times(rows, _times(first, second))
    return _times(_times(rows, first), second)
