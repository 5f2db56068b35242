"""The tape of a pass over the steps, and the gradients that are formed from it after the backward pass.

Every weight's gradient is one product over all steps: summed step by step, a weight's full size would be read and
written in every step. Loops that write this tape share those products.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rimlit.kernels.autograd import Operands
from rimlit.kernels.layer import LayerInputs, LayerOptions
from rimlit.types import MaybeTensor


class StepTape(NamedTuple):
    """What the derivative reads, for every step."""

    hidden: Tensor  # (M, T, B, d): the state before each step, after resets
    memory: MaybeTensor
    query: MaybeTensor  # (M, T, B, I, key)
    attended: MaybeTensor  # (M, T, B, I·value)
    gates: Tensor  # (M, T, B, gates), after their activation
    inside: MaybeTensor  # (M, T, B, d): what the GRU's reset gate scales
    squashed: MaybeTensor  # (M, T, B, d): tanh of the LSTM's new memory
    visible: MaybeTensor  # (M, T, B, d): the states that are read
    projected: MaybeTensor  # (M, T, B, C·(key + key + value))
    weights: MaybeTensor  # (B, T, C, M, M): communication attention
    read: MaybeTensor  # (M, T, B, C·value)
    output: MaybeTensor  # (M, T, B, d or 2·d): tanh, or gate and content, after their activation
    capped: MaybeTensor  # (M, T, B, I, N): tanh of the scores over their cap
    moved: MaybeTensor  # (M, T, B, d): candidate and what it read, less the old state, where there are gates


class StepGradients(NamedTuple):
    """Gradients that the backward pass leaves, of what :class:`StepTape` names alike; it owns them."""

    gates: Tensor  # (M, T, B, gates), before their activation
    recurrent: Tensor  # (M, T, B, gates): of the products of state and weights; the LSTM's are ``gates``
    scores: Tensor  # (M, T, B, I, N), of the products of query and key
    score_bias: MaybeTensor  # (M,)
    attended: MaybeTensor  # (M, T, B, I·value)
    query: MaybeTensor  # (M, T, B, I, key)
    projected: MaybeTensor  # (M, T, B, C·(key + key + value))
    output: MaybeTensor  # (M, T, B, d or 2·d), before its activation
    hidden: Tensor  # (M, B, d)
    memory: MaybeTensor
    initial_hidden: Tensor
    initial_memory: MaybeTensor


def empty_tape(
    options: LayerOptions, operands: Operands, num_steps: int, num_states: int | None = None
) -> StepTape:
    """Return a tape of ``num_steps`` steps that holds nothing yet, with as many states or ``num_states``."""
    batch_size, num_mechanisms, size = operands.hidden.shape
    is_lstm = options.cell == "lstm"
    heads = options.communication_heads
    projected_size = operands.communication.shape[-1] if operands.communication is not None else 0
    read_size = projected_size - 2 * heads * options.communication_key_size
    output_sizes = {"tanh": size, "gated": 2 * size, "cell_gate": size}
    num_slots = 1 if operands.input_query is None else operands.keys.shape[3]

    num_states = num_states or num_steps

    def rows(*sizes: int, steps: int = num_steps) -> Tensor:
        return operands.hidden.new_empty(num_mechanisms, steps, batch_size, *sizes)

    return StepTape(
        hidden=rows(size, steps=num_states),
        memory=rows(size, steps=num_states) if is_lstm else None,
        query=None if operands.input_query is None else rows(options.input_heads, operands.keys.shape[-1]),
        attended=None if operands.cell_input is None else rows(operands.cell_input.shape[1]),
        gates=rows((4 if is_lstm else 3) * size),
        inside=None if is_lstm else rows(size),
        squashed=rows(size) if is_lstm else None,
        visible=rows(size) if heads else None,
        projected=rows(projected_size) if heads else None,
        weights=operands.hidden.new_empty(batch_size, num_steps, heads, num_mechanisms, num_mechanisms)
        if heads
        else None,
        read=rows(read_size) if heads else None,
        output=rows(output_sizes[options.communication_output])
        if heads and options.communication_output != "linear"
        else None,
        capped=rows(options.input_heads, num_slots) if options.soft_cap else None,
        moved=rows(size) if options.is_gated else None,
    )


def operand_gradients(
    options: LayerOptions,
    inputs: LayerInputs,
    operands: Operands,
    tape: StepTape,
    attention: Tensor,
    walk: StepGradients,
) -> Operands:
    """Return the gradient of every operand.

    Args:
        options: The layer's parts.
        inputs: What the loop ran on.
        operands: What it is differentiated by.
        tape: What the forward pass left.
        attention: To the slots, (M, T, B, I, N).
        walk: What the backward pass left; its ``gates`` are overwritten.
    """
    heads = options.input_heads
    read = attention
    if inputs.keep_input is not None:
        read = read * inputs.keep_input.transpose(0, 1)
    input_query = cell_input = None
    if tape.query is not None and walk.query is not None:
        query = tape.query[:, :, :, None] / math.sqrt(operands.keys.shape[-1])
        keys = _like(walk.scores.transpose(3, 4)[..., None] * query, operands.keys)
        input_query = _product(tape.hidden, walk.query.flatten(3))
    else:
        keys = walk.scores * tape.hidden[:, :, :, None]
    cell_hidden = _product(tape.hidden, walk.recurrent)
    bias = walk.gates.sum(dim=(1, 2))
    if options.cell == "gru":
        size = tape.hidden.shape[-1]
        bias = torch.cat([bias, walk.recurrent[..., 2 * size :].sum(dim=(1, 2))], dim=-1)
    if tape.attended is not None and walk.attended is not None:
        cell_input = _product(tape.attended, walk.gates)
        attended = walk.attended.view(*walk.attended.shape[:3], 1, heads, -1)
        values = _like(read.transpose(3, 4)[..., None] * attended, operands.values)
    elif heads == 1:
        values = walk.gates.mul_(read[..., 0])[:, :, :, None]  # in place: the largest tensor of all
    else:
        values = read * walk.gates[:, :, :, None]
    communication = communication_output = communication_bias = None
    if operands.communication_output is not None:
        assert tape.visible is not None and walk.projected is not None
        assert tape.read is not None and walk.output is not None
        communication = _product(tape.visible, walk.projected)
        communication_output = _like(_product(tape.read, walk.output), operands.communication_output)
        if operands.communication_bias is not None:
            communication_bias = walk.output.sum(dim=(0, 1, 2))[None]
    return Operands(
        keys=keys,
        values=values,
        hidden=walk.hidden.transpose(0, 1),
        memory=None if walk.memory is None else walk.memory.transpose(0, 1),
        initial_hidden=walk.initial_hidden.transpose(0, 1),
        initial_memory=None if walk.initial_memory is None else walk.initial_memory.transpose(0, 1),
        input_query=input_query,
        cell_input=cell_input,
        cell_hidden=cell_hidden,
        cell_bias=bias,
        communication=communication,
        communication_output=communication_output,
        communication_bias=communication_bias,
        score_bias=walk.score_bias,
    )


def cell_gate(tape: StepTape, at: int) -> Tensor:
    """Return how far the cells let new content in, (M, B, d)."""
    if tape.inside is None:
        return tape.gates[:, at].chunk(4, dim=-1)[2]  # the LSTM's output gate
    return 1 - tape.gates[:, at].chunk(3, dim=-1)[1]  # 1 less the GRU's update gate


def split_heads(projected: Tensor, options: LayerOptions) -> tuple[Tensor, ...]:
    """Split (M, B, C·(key + key + value)) into query, key and value (B, C, M, ·)."""
    size = options.communication_key_size
    heads = projected.view(*projected.shape[:2], options.communication_heads, -1).permute(1, 2, 0, 3)
    return heads.tensor_split((size, 2 * size), dim=-1)


def _product(rows: Tensor, gradients: Tensor) -> Tensor:
    """Return a weight's gradient (M, input, output) from the rows (M, T, B, ·) of all steps."""
    return torch.bmm(rows.flatten(1, 2).mT, gradients.flatten(1, 2))


def _like(gradient: Tensor, operand: Tensor) -> Tensor:
    """Sum over mechanisms where ``operand`` is shared by all."""
    return gradient.sum(dim=0, keepdim=True) if operand.shape[0] < gradient.shape[0] else gradient
