"""The time loop that calls a layer's parts step by step, differentiated by autograd: it runs every part.

Nothing synchronises with the host and all shapes are static.
"""

import torch
from torch import Tensor

from rimlit.kernels.layer import Activity, LayerInputs, LayerResult
from rimlit.kernels.projection import expand_tokens, fold_values
from rimlit.kernels.step import StepInputs, StepResult, step
from rimlit.mechanisms import LayerWeights, RIMLayer
from rimlit.nn.surroundings import without_autocast
from rimlit.types import State, carried_of, map_state, with_carried


def scan(layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
    """Run the recurrence over all steps of inputs that are projected; see :func:`rimlit.kernels.run_layer`."""
    weights, inputs = fold_values(weights, expand_tokens(inputs), layer.input_heads)
    # unbind, not indexing: its backward is one stack, where indexing adds up T full-sized gradients
    keys, values = inputs.keys.unbind(dim=1), inputs.values.unbind(dim=1)
    resets = None if inputs.resets is None else inputs.resets.unbind(dim=1)
    initial, state = (_mechanisms_first_of(layer, given) for given in (inputs.initial, inputs.state))
    carried, first_carried = carried_of(inputs.state), carried_of(inputs.initial)
    features: list[Tensor] = []
    records: list[StepResult] = []
    with without_autocast(state.hidden.device.type):
        for t, (key, value) in enumerate(zip(keys, values, strict=True)):
            if resets is not None:
                state = _reset(state, initial, resets[t])
                if carried is not None and first_carried is not None:
                    carried = torch.where(resets[t].view(-1, *[1] * (carried.dim() - 1)), first_carried, carried)
            result = step(
                layer,
                weights,
                StepInputs(
                    key,
                    value,
                    None if inputs.keep_input is None else inputs.keep_input[t],
                    None if inputs.keep_communication is None else inputs.keep_communication[t],
                    inputs.offset_at(t),
                ),
                state,
                carried,
            )
            state, carried = result.state, result.carried
            features.append(state.hidden.transpose(0, 1))
            if inputs.record:
                records.append(result)
    last = with_carried(map_state(_swap, state), carried)
    return torch.stack(features, dim=1), last, activity_of(records) if inputs.record else None


def _reset(state: State, initial: State, where: Tensor) -> State:
    return map_state(lambda old, new: torch.where(where[None, :, None], new, old), state, initial)


def _mechanisms_first_of(layer: RIMLayer, state: State) -> State:
    """Return what the cells carry, (M, B, d)."""
    state_type = layer.dynamics.state_type
    return state_type(*map(_swap, state[: len(state_type._fields)]))


def _swap(state: Tensor) -> Tensor:
    return state.transpose(0, 1).contiguous()


def activity_of(records: list[StepResult]) -> Activity:
    """Return what the mechanisms did in the steps of a sequence."""
    active = torch.stack([result.choice.active for result in records]).permute(2, 0, 1)  # (B, T, M)
    relevance = torch.stack([result.relevance for result in records]).permute(2, 0, 1)
    attention = torch.stack([result.attention for result in records])
    talks = [result.talk for result in records if result.talk is not None]
    reads = [talk.attention for talk in talks if talk.attention is not None]
    gates = [result.choice.gate for result in records if result.choice.gate is not None]
    schemata = [result.schema for result in records if result.schema is not None]
    penalties = [talk.penalty for talk in talks if talk.penalty is not None]
    return Activity(
        active,
        (-relevance.detach()).sigmoid(),
        attention.detach().mean(dim=3).permute(2, 0, 1, 3),  # (B, T, M, N)
        torch.stack(reads, dim=1) * active[..., None] if reads else None,
        torch.stack(gates).detach().permute(2, 0, 1) if gates else None,
        schema=torch.stack(schemata).permute(2, 0, 1) if schemata else None,
        penalty=torch.stack(penalties, dim=1) if penalties else None,
        relevance=relevance,
    )
