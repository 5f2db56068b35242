"""All products of a RIM layer that do not depend on its state, done before the time loop.

The null slot is zero and keys and values have no bias, so with a single slot the score of mechanism m is
h·(W_q W_kᵀ x) and its attended input a·(x W_v W_ih) with one scalar a per head: both factors that hold x are
computed here for every step in a few large products. With several slots the attention mixes the slots before
the cell reads them, so only keys and values are computed ahead.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rimlit.kernels.layer import LayerInputs
from rimlit.mechanisms import LayerWeights, RIMLayer
from rimlit.nn.surroundings import is_traced

Multiply = Callable[[Tensor, Tensor], Tensor]


def project(
    layer: RIMLayer,
    weights: LayerWeights,
    inputs: LayerInputs,
    *,
    folds_values: bool = True,
    multiply: Multiply = torch.mm,
    by_samples: bool = False,
) -> tuple[LayerWeights, LayerInputs]:
    """Project the whole sequence. Keys of a single slot are folded with the query.

    Args:
        layer: The layer.
        weights: Its parameters.
        inputs: What the layer runs on.
        folds_values: Whether a single slot's values are multiplied by the cell's weights ahead, for all
            mechanisms, or in the loop, for the active ones. Tokens' always are, several slots' never. Values of
            an input that is narrower than they are the input itself, and the cell's weights hold the product.
        multiply: Returns the product of rows (…, inner) and a matrix as a matrix, differentiable.
        by_samples: Whether rows lie in memory sample by sample, as the sequence does: it need not be copied.

    Returns:
        The weights that are left to multiply by, and the inputs with keys and values in place of the sequence.
    """
    sequence, left, dtype = inputs.sequence, weights, weights.cell_input.dtype
    batch_size, num_steps, num_slots, input_size = sequence.shape
    heads = layer.input_heads
    if by_samples:
        order = batch_size, num_steps
        rows = sequence.flatten(1, 2).unsqueeze(0)  # (1, B, T·N, D)
    else:
        order = num_steps, batch_size
        rows = sequence.transpose(0, 1).reshape(1, -1, input_size)  # (1, T·B·N, D)
    if layer.project_in_bf16:
        rows, weights = rows.bfloat16(), _in_bf16(weights)
    slots = (-1, *order, num_slots, heads)
    folds_keys = num_slots == 1 and not layer.normalize_scores
    folds_values = folds_keys and (folds_values or inputs.tokens is not None)
    folded = (layer.num_mechanisms, *order, heads, -1)

    if not folds_keys:
        keys = _times(rows, weights.input_key, multiply)
        keys = keys.reshape(*slots, keys.shape[-1] // heads)
    else:
        scale = math.sqrt(weights.input_key.shape[-1] / heads)
        # one (D → key → d) chain per head
        chains = [
            _chain(rows, key, query.mT / scale, multiply)
            for key, query in zip(
                _split(weights.input_key, heads, -1), _split(weights.input_query, heads, -1), strict=True
            )
        ]
        keys = _join(chains).view(folded)
    if not folds_keys:
        values = _times(rows, weights.input_value, multiply)
        values = values.reshape(*slots, values.shape[-1] // heads)
    elif not folds_values:
        times = functools.partial(_times, multiply=multiply)
        values, cell_input = _halfway(rows, weights.input_value, weights.cell_input, slots, times)
        left = left._replace(cell_input=cell_input.to(dtype))
    else:
        # one (D → value → gates) chain per head
        chains = [
            _chain(rows, value, cell, multiply)
            for value, cell in zip(
                _split(weights.input_value, heads, -1), _split(weights.cell_input, heads, 1), strict=True
            )
        ]
        values = _join(chains).view(folded)
    if by_samples:
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if inputs.tokens is not None:
        keys, values = keys.squeeze(2), values.squeeze(2)
    if folds_keys:
        left = left._replace(input_query=None)
    if folds_values:
        left = left._replace(cell_input=None)
    left = left._replace(input_key=None, input_value=None)
    return left, inputs._replace(sequence=None, keys=keys.to(dtype), values=values.to(dtype))


def project_halfway(
    layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs, multiply: Multiply
) -> tuple[LayerWeights, LayerInputs]:
    """Project the whole sequence as far as is cheap to keep, sample by sample.

    Returns:
        What :func:`project` returns, with nothing folded. Where it is cheaper to multiply weights with one
        another, keys or values are the input itself, and the query's or the cell's weights are those products.
    """
    sequence, heads, dtype = inputs.sequence, layer.input_heads, weights.cell_input.dtype
    batch_size, num_steps, num_slots, _ = sequence.shape
    rows = sequence.flatten(1, 2).unsqueeze(0)  # (1, B, T·N, D)
    slots = (-1, batch_size, num_steps, num_slots, heads)

    def product(x: Tensor, y: Tensor) -> Tensor:
        return _times(x.bfloat16(), y.bfloat16(), multiply) if layer.project_in_bf16 else _times(x, y, multiply)

    keys, query = _halfway(rows, weights.input_key, weights.input_query.mT, slots, product)
    values, cell_input = _halfway(rows, weights.input_value, weights.cell_input, slots, product)
    # scores are divided by the root of the keys' width, which may be another now
    scale = math.sqrt(keys.shape[-1] * heads / weights.input_key.shape[-1])
    query = query.mT * scale
    left = weights._replace(input_query=query, cell_input=cell_input, input_key=None, input_value=None)
    keys, values = keys.transpose(1, 2).to(dtype), values.transpose(1, 2).to(dtype)
    return left, inputs._replace(sequence=None, keys=keys, values=values)


def expand_tokens(inputs: LayerInputs) -> LayerInputs:
    """Look the tokens of projected inputs up, for loops that read one row per step and sample."""
    if inputs.tokens is None:
        return inputs
    tokens = inputs.tokens.t()  # (T, B)

    def look_up(rows: Tensor) -> Tensor:
        num_mechanisms, vocabulary_size, *sizes = rows.shape
        found = functional.embedding(tokens, rows.transpose(0, 1).reshape(vocabulary_size, -1))
        return found.view(*tokens.shape, num_mechanisms, *sizes).permute(2, 0, 1, 3, 4)  # (M, T, B, I, ·)

    return inputs._replace(tokens=None, keys=look_up(inputs.keys), values=look_up(inputs.values))


def fold_values(weights: LayerWeights, inputs: LayerInputs, heads: int) -> tuple[LayerWeights, LayerInputs]:
    """Multiply the values of projected inputs by the cell's weights where keys are folded and they are not."""
    if weights.cell_input is None or weights.input_query is not None:
        return weights, inputs
    num_steps, batch_size = inputs.values.shape[1:3]
    chains = [
        _times(value.flatten(1, 3), cell)
        for value, cell in zip(inputs.values.unbind(dim=4), _split(weights.cell_input, heads, 1), strict=True)
    ]
    values = _join(chains).view(weights.cell_input.shape[0], num_steps, batch_size, heads, -1)
    return weights._replace(cell_input=None), inputs._replace(values=values.to(inputs.keys.dtype))


def _in_bf16(weights: LayerWeights) -> LayerWeights:
    return weights._replace(
        input_query=weights.input_query.bfloat16(),
        input_key=weights.input_key.bfloat16(),
        input_value=weights.input_value.bfloat16(),
        cell_input=weights.cell_input.bfloat16(),
    )


def _split(weight: Tensor, heads: int, dim: int) -> tuple[Tensor, ...]:
    return (weight,) if heads == 1 else weight.chunk(heads, dim)


def _join(chains: list[Tensor]) -> Tensor:
    return chains[0] if len(chains) == 1 else torch.stack(chains, dim=2)


def _times(rows: Tensor, weight: Tensor, multiply: Multiply = torch.mm) -> Tensor:
    """Multiply groups of rows (1 or M, …, inner) by groups of weights; one group on either side serves all."""
    if rows.shape[0] == 1:  # one wide product, whose groups lie side by side in each row
        wide = multiply(
            rows.squeeze(0), weight.squeeze(0) if len(weight) == 1 else weight.transpose(0, 1).flatten(1)
        )
        return wide.view(wide.shape[0], weight.shape[0], -1).transpose(0, 1)
    return torch.matmul(rows, weight)


def _chain(rows: Tensor, first: Tensor, second: Tensor, multiply: Multiply) -> Tensor:
    """Return rows · first · second (M, R, output), in the cheaper of the two orders."""
    if _is_cheaper_multiplied(rows, first, second):
        return _times(rows, _times(first, second, multiply), multiply)
    return _times(_times(rows, first, multiply), second, multiply)


def _halfway(
    rows: Tensor, first: Tensor, second: Tensor, slots: tuple[int, ...], product: Multiply
) -> tuple[Tensor, Tensor]:
    """Return rows · first · second in two factors: rows by ``slots``, and the weight (M, I·width, output).

    The first is rows · first or, where it is cheaper to multiply the weights with one another, the rows
    themselves.
    """
    heads = slots[-1]
    chains = list(zip(_split(first, heads, -1), _split(second, heads, 1), strict=True))
    if not _is_cheaper_multiplied(rows, *chains[0]):
        return product(rows, first).reshape(*slots, first.shape[-1] // heads), second
    input_size = rows.shape[-1]
    repeated = rows.view(*slots[:-1], 1, input_size).expand(*slots[:-1], heads, input_size)
    products = [product(*chain) for chain in chains]
    return repeated, (products[0] if heads == 1 else torch.cat(products, dim=1)).to(second.dtype)


def _is_cheaper_multiplied(rows: Tensor, first: Tensor, second: Tensor) -> bool:
    """Return whether rows · (first · second) costs less than (rows · first) · second."""
    input_size, inner_size = first.shape[1:]
    groups, output_size = second.shape[0], second.shape[2]
    for_each_row = inner_size * (first.shape[0] * input_size + groups * output_size)
    multiplied = groups * input_size * output_size
    if is_traced() or torch.compiler.is_compiling():  # for any number of rows, so as for many
        return multiplied < for_each_row
    num_rows = math.prod(rows.shape[1:-1])
    return multiplied * (inner_size + num_rows) < num_rows * for_each_row
