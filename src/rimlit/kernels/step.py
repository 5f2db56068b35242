"""One time step of a RIM layer (Goyal et al. 2021, sec. 2, arXiv:1909.10893), in plain torch, from its parts.

Mechanisms come first, (M, B, ·), so that every product is one batched product. Keys and values come from
:mod:`rimlit.kernels.projection`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rimlit.mechanisms import Choice, LayerWeights, RIMLayer, Talk, TalkInputs, Update
from rimlit.types import State, map_state


class StepInputs(NamedTuple):
    """What a step reads beside the state."""

    key: Tensor  # folded with the query (M, B, I, d), or (1 or M, B, N, I, key)
    value: Tensor  # folded with the cell's input weights (M, B, I, gates), or (1 or M, B, N, I, value)
    keep_input: Tensor | None  # (M, B, I, N)
    keep_communication: Tensor | None
    offset: Tensor | None  # (M, B or 1)


class StepResult(NamedTuple):
    """What a step gives."""

    state: State
    choice: Choice
    attention: Tensor  # to the slots (M, B, I, N)
    relevance: Tensor  # (M, B)
    talk: Talk | None
    carried: Tensor | None  # (B, …)
    schema: Tensor | None  # (M, B)


def step(
    layer: RIMLayer, weights: LayerWeights, inputs: StepInputs, state: State, carried: Tensor | None
) -> StepResult:
    """Attend, select, update, communicate, keep."""
    scores = score(layer, weights, state.hidden, inputs.key)
    attention, relevance = layer.selection.attend(scores)
    waiting, carried = layer.split_carried(carried)
    own = () if waiting is None else (waiting,)
    choice = layer.selection.choose(relevance, inputs.offset, *own)
    update = Update(*layer.dynamics.update(read(weights, inputs, attention), state, weights.dynamics))
    candidate, talk = update.candidate, None
    hidden = candidate.hidden
    if layer.communicates:
        talk = layer.communication(
            TalkInputs(
                hidden,
                state.hidden,
                choice.active,
                update.cell_gate,
                weights.communication,
                inputs.keep_communication,
                carried,
            )
        )
        hidden = hidden + talk.added
    return StepResult(
        keep(choice, candidate._replace(hidden=hidden), state),
        choice,
        attention,
        relevance,
        talk,
        layer.join_carried(choice.carried, None if talk is None else talk.carried),
        update.schema,
    )


def score(layer: RIMLayer, weights: LayerWeights, hidden: Tensor, key: Tensor) -> Tensor:
    """Return the scores of the input slots for each mechanism, (M, B, I, N)."""
    if weights.input_query is None:  # the key is folded with it
        scores = (hidden[:, :, None] * key).sum(dim=-1, keepdim=True)
    else:
        query = torch.bmm(hidden, weights.input_query)
        query = query.view(*query.shape[:2], layer.input_heads, -1)  # (M, B, I, key)
        if layer.normalize_scores:
            query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
            query = query * query.shape[-1] ** 0.5  # as long as if the scores were divided by √key
        scores = torch.einsum("mbik,mbnik->mbin", query, key.expand(len(query), -1, -1, -1, -1))
        if not layer.normalize_scores:
            scores = scores / math.sqrt(query.shape[-1])
    if layer.soft_cap is not None:
        scores = layer.soft_cap * (scores / layer.soft_cap).tanh()
    if weights.score_bias is not None:
        scores = scores + weights.score_bias[:, None, None, None]
    return scores


def read(weights: LayerWeights, inputs: StepInputs, attention: Tensor) -> Tensor:
    """Return what the cells get from the slots, (M, B, gates)."""
    attention = attention if inputs.keep_input is None else attention * inputs.keep_input
    value = inputs.value
    if weights.cell_input is None:  # the value is folded with it
        return attention[..., 0] * value[:, :, 0] if attention.shape[2] == 1 else (attention * value).sum(dim=2)
    num_mechanisms, batch_size = attention.shape[:2]
    attended = torch.einsum("mbin,mbniv->mbiv", attention, value.expand(num_mechanisms, -1, -1, -1, -1))
    return torch.bmm(attended.reshape(num_mechanisms, batch_size, -1), weights.cell_input)


def keep(choice: Choice, candidate: State, state: State) -> State:
    """Move active mechanisms towards their candidate, as far as the gate says; the others stay bit for bit."""
    is_active = choice.active[..., None]
    if choice.gate is None:
        kept = map_state(lambda new, old: torch.where(is_active, new, old), candidate, state)
    else:
        gate = choice.gate[..., None]
        kept = map_state(lambda new, old: torch.where(is_active, old + gate * (new - old), old), candidate, state)
    if choice.soft is None:
        return kept
    soft = choice.soft.nan_to_num(0)
    through = (soft - soft.detach())[..., None]  # 0, with the gradient of the soft choice
    return map_state(
        lambda moved, new, old: moved + through * (new - old).detach().nan_to_num(0, 0, 0), kept, candidate, state
    )
