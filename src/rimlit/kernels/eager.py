"""The default time loop: batched products on ATen, differentiated by autograd.

Inside the loop mechanisms come first, (M, B, ·), so that every product is one batched product. Nothing
synchronises with the host and all shapes are static.
"""

import torch
from torch import Tensor

from rimlit.kernels.layer import Activity, LayerInputs, LayerOptions, LayerResult, LayerWeights
from rimlit.kernels.projection import Projected, expand_tokens, hold_cell
from rimlit.nn import attend_slots, communicate, select_active
from rimlit.nn.surroundings import without_autocast
from rimlit.types import GRUState, LSTMState, State, map_state


def scan(projected: Projected, weights: LayerWeights, options: LayerOptions, inputs: LayerInputs) -> LayerResult:
    """Walk the recurrence over all steps; see :func:`rimlit.kernels.run_layer`."""
    dtype = weights.cell_hidden.dtype
    projected = hold_cell(expand_tokens(projected), weights.cell_input, options.input_heads)
    # unbind, not indexing: its backward is one stack, where indexing adds up T full-sized gradients
    keys = projected.keys.to(dtype).unbind(dim=1)
    values = projected.values.to(dtype).unbind(dim=1)
    resets = None if inputs.resets is None else inputs.resets.unbind(dim=1)
    initial = map_state(_mechanisms_first, inputs.initial)
    state = map_state(_mechanisms_first, inputs.state)
    features, records = [], []
    with without_autocast(state.hidden.device.type):
        for step, (key, value) in enumerate(zip(keys, values, strict=True)):
            if resets is not None:
                state = _reset(state, initial, resets[step])
            input_keep = None if inputs.keep.input is None else inputs.keep.input[step]
            attend = _attend_one_slot if projected.keys_hold_query else _attend_slots
            gates, relevance, attention, null = attend(
                state.hidden, key, value, weights, options, input_keep, inputs.record
            )
            active = select_active(relevance, options.num_active)  # (M, B)
            candidate = _update(state, gates, weights, options)
            state, communication = _communicate_and_keep(
                state, candidate, active, weights, options, inputs.keep.communication, step
            )
            features.append(state.hidden.transpose(0, 1))
            if inputs.record:
                if communication is not None:  # (B, M, M)
                    communication = communication * active.t()[..., None]
                if null is None:
                    null = 1 - attention.sum(dim=-1)
                records.append((active, attention.detach(), null.detach(), communication))
    return LayerResult(
        torch.stack(features, dim=1),  # (B, T, M, d)
        map_state(_batch_first, state),
        _activity(records) if inputs.record else None,
    )


def _attend_one_slot(
    hidden: Tensor,
    key: Tensor,
    value: Tensor,
    weights: LayerWeights,
    options: LayerOptions,
    keep: Tensor | None,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attend with folded products: a dot for the score, a scale for the gates.

    Returns:
        Gates' input part (M, B, gates), relevance (M, B), attention to the slots (M, B, I, N), attention to the
        null slot (M, B, I) where there is one and something reads it.
    """
    scores = (hidden[:, :, None] * key).sum(dim=-1)  # (M, B, I)
    null = None
    if options.selection == "across_mechanisms":
        attention = scores.softmax(dim=0)
        relevance = attention.mean(dim=-1)
    else:
        attention = scores.sigmoid()
        if options.input_heads > 1 or record:
            null = (-scores).sigmoid()
        # one head: the score ranks as the null probability does, without its rounding near 0 and 1
        relevance = scores[..., 0] if null is None or options.input_heads == 1 else -null.mean(dim=-1)
    read = attention if keep is None else attention * keep[..., 0]
    if options.input_heads == 1:
        gates = read * value[:, :, 0]
    else:
        gates = (read[..., None] * value).sum(dim=2)
    return gates, relevance, attention[..., None], null


def _attend_slots(
    hidden: Tensor,
    key: Tensor,
    value: Tensor,
    weights: LayerWeights,
    options: LayerOptions,
    keep: Tensor | None,
    record: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attend over several slots; returns as :func:`_attend_one_slot`."""
    num_mechanisms, batch_size, _ = hidden.shape
    query = torch.bmm(hidden, weights.input_query).view(
        num_mechanisms, batch_size, *key.shape[-2:]
    )  # (M, B, I, key)
    scores = torch.einsum("mbik,mbnik->mbin", query, key.expand(num_mechanisms, -1, -1, -1, -1))
    scores = scores / key.shape[-1] ** 0.5
    null = None
    if options.selection == "across_mechanisms":
        attention = scores.softmax(dim=0)
        relevance = attention.sum(dim=-1).mean(dim=-1)
    else:
        attention, null = attend_slots(scores)
        relevance = scores[:, :, 0].logsumexp(dim=-1) if options.input_heads == 1 else -null.mean(dim=-1)
    read = attention if keep is None else attention * keep
    value = value.expand(num_mechanisms, -1, -1, -1, -1)
    attended = torch.einsum("mbin,mbniv->mbiv", read, value).reshape(num_mechanisms, batch_size, -1)
    return torch.bmm(attended, weights.cell_input), relevance, attention, null


def _update(state: State, gates: Tensor, weights: LayerWeights, options: LayerOptions) -> State:
    """Return the candidate state of every mechanism (M, B, d)."""
    bias = weights.cell_bias[:, None]
    size = state.hidden.shape[-1]
    if options.cell == "lstm":
        gates = torch.baddbmm(gates + bias, state.hidden, weights.cell_hidden)
        i, f, o = gates[..., : 3 * size].sigmoid().chunk(3, dim=-1)  # input, forget, output
        memory = f * state.memory + i * gates[..., 3 * size :].tanh()
        return LSTMState(o * memory.tanh(), memory)
    recurrent = torch.bmm(state.hidden, weights.cell_hidden)
    r, z = (gates + recurrent + bias[..., : 3 * size])[..., : 2 * size].sigmoid().chunk(2, dim=-1)  # reset, update
    inside = recurrent[..., 2 * size :] + bias[..., 3 * size :]
    n = (gates[..., 2 * size :] + bias[..., 2 * size : 3 * size] + r * inside).tanh()  # new
    return GRUState(n + z * (state.hidden - n))


def _communicate_and_keep(
    state: State,
    candidate: State,
    active: Tensor,
    weights: LayerWeights,
    options: LayerOptions,
    keep: Tensor | None,
    step: int,
) -> tuple[State, Tensor | None]:
    """Let active mechanisms read all mechanisms; inactive ones keep their state bit for bit."""
    is_active = active[..., None]  # (M, B, 1)
    attention = None
    hidden = candidate.hidden
    if weights.communication is not None:
        if options.inactive == "preserved":
            visible = torch.where(is_active, hidden, state.hidden)
        else:  # the authors' code: what an inactive mechanism would have become, without gradient
            visible = torch.where(is_active, hidden, hidden.detach())
        num_mechanisms, batch_size, _ = hidden.shape
        heads, key_size = options.communication_heads, options.communication_key_size
        projected = torch.bmm(visible, weights.communication)
        projected = projected.view(num_mechanisms, batch_size, heads, -1).permute(1, 2, 0, 3)  # (B, C, M, ·)
        query, key, value = projected.tensor_split((key_size, 2 * key_size), dim=-1)
        read, attention = communicate(query, key, value, None if keep is None else keep[step])
        read = read.permute(2, 0, 1, 3).reshape(num_mechanisms, batch_size, -1)  # (M, B, C·value)
        hidden = hidden + _output(read, weights, options)
        attention = attention.detach().mean(dim=1)
    kept = torch.where(is_active, hidden, state.hidden)
    if options.cell == "lstm":
        return LSTMState(kept, torch.where(is_active, candidate.memory, state.memory)), attention
    return GRUState(kept), attention


def _output(read: Tensor, weights: LayerWeights, options: LayerOptions) -> Tensor:
    """Map what the communication read (M, B, C·value) to (M, B, d)."""
    assert weights.communication_output is not None
    if options.communication_output != "gated":
        output = torch.bmm(read, weights.communication_output)
        return output.tanh() if options.communication_output == "tanh" else output
    assert weights.communication_bias is not None
    both = read @ weights.communication_output + weights.communication_bias[:, None]
    gate, content = both.chunk(2, dim=-1)
    return gate.sigmoid() * content.tanh()


def _reset(state: State, initial: State, where: Tensor) -> State:
    return map_state(lambda old, new: torch.where(where[None, :, None], new, old), state, initial)


def _mechanisms_first(state: Tensor) -> Tensor:
    return state.transpose(0, 1).contiguous()


def _batch_first(state: Tensor) -> Tensor:
    return state.transpose(0, 1).contiguous()


def _activity(records: list[tuple[Tensor, Tensor, Tensor, Tensor | None]]) -> Activity:
    active, attention, null, communication = zip(*records, strict=True)
    return Activity(
        torch.stack(active).permute(2, 0, 1),
        torch.stack(null).mean(dim=3).permute(2, 0, 1),
        torch.stack(attention).mean(dim=3).permute(2, 0, 1, 3),  # (B, T, M, N)
        None if communication[0] is None else torch.stack(communication).transpose(0, 1),
    )
