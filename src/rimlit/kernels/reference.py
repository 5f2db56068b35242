"""The reference: a RIM layer as explicit loops over batch, time, mechanism and head (Goyal et al. 2021, sec. 2).

Written from the equations, with the null slot as a real row of zeros, and slow on purpose. It shares no code
with the fast loops, which are compared with it in outputs and in every gradient.
"""

import math

import torch
from torch import Tensor

from rimlit.kernels.layer import Activity, LayerInputs, LayerOptions, LayerResult, describe
from rimlit.mechanisms import LayerWeights, RIMLayer
from rimlit.nn.surroundings import without_autocast
from rimlit.types import GRUState, LSTMState


def run(layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
    """Run a layer sample by sample; see :func:`rimlit.kernels.run_layer`."""
    options = describe(layer)
    if inputs.tokens is not None:
        inputs = inputs._replace(sequence=inputs.sequence[0, inputs.tokens], tokens=None)
    with without_autocast(inputs.sequence.device.type):  # scores and state keep the precision of the weights
        inputs = inputs._replace(sequence=inputs.sequence.to(weights.cell_input.dtype))
        samples = [_run_sample(weights, options, inputs, sample) for sample in range(inputs.sequence.shape[0])]
    features, hidden, memory, active, null, slots, communication, gates, relevance = (
        None if parts[0] is None else torch.stack(parts) for parts in zip(*samples, strict=True)
    )
    assert features is not None and hidden is not None
    activity = None
    if inputs.record:
        assert active is not None and null is not None and slots is not None
        activity = Activity(
            active,
            null.detach(),
            slots.detach(),
            communication,
            None if gates is None else gates.detach(),
            relevance=relevance,
        )
    state = GRUState(hidden) if memory is None else LSTMState(hidden, memory)
    return features, state, activity


def _run_sample(
    weights: LayerWeights, options: LayerOptions, inputs: LayerInputs, sample: int
) -> tuple[Tensor | None, ...]:
    mechanisms = range(options.num_mechanisms)
    has_memory = options.cell == "lstm"
    hidden = list(inputs.state.hidden[sample])
    # a GRU has no memory: it gets and returns a dummy
    memory = list(inputs.state.memory[sample] if has_memory else inputs.state.hidden[sample])
    features, actives, nulls, slot_attentions = [], [], [], []
    communications: list[Tensor] = []
    all_gates: list[Tensor] = []
    relevances: list[Tensor] = []
    for step in range(inputs.sequence.shape[1]):
        if inputs.resets is not None and inputs.resets[sample, step]:
            hidden = list(inputs.initial.hidden[sample])
            memory = list(inputs.initial.memory[sample]) if has_memory else memory

        # null slot and input attention: X = ∅ ⊕ x, A = softmax(h W_q (X W_k)ᵀ / √key) X W_v
        slots = inputs.sequence[sample, step]  # (N, D)
        rows = torch.cat([torch.zeros_like(slots[:1]), slots])  # (N + 1, D)
        scores = torch.stack(
            [
                torch.stack([_input_scores(weights, options, hidden[m], rows, m, head) for m in mechanisms])
                for head in range(options.input_heads)
            ]
        )  # (I, M, N + 1)
        if options.soft_cap:
            scores = torch.cat(
                [scores[..., :1], options.soft_cap * (scores[..., 1:] / options.soft_cap).tanh()], -1
            )
        if weights.score_bias is not None:
            scores = torch.cat([scores[..., :1], scores[..., 1:] + weights.score_bias[:, None]], -1)
        # relevance: the log-odds of reading against null, with the probabilities averaged over heads
        if options.selection == "across_mechanisms":
            attention = torch.cat([torch.zeros_like(scores[..., :1]), scores[..., 1:].softmax(dim=1)], -1)
            share = attention[..., 1:].mean(dim=(0, 2))
            relevance = (share / (1 - share)).log()
        else:
            attention = scores.softmax(dim=-1)
            reads, skips = scores[..., 1:].logsumexp(dim=-1), scores[..., 0]  # (I, M)
            every = torch.logaddexp(reads, skips)
            relevance = (reads - every).logsumexp(dim=0) - (skips - every).logsumexp(dim=0)
            if options.input_heads == 1:  # the same, without rounding where the null probability is near 1
                relevance = reads[0]
        relevances.append(relevance)
        ranked = relevance
        if inputs.offset is not None:
            offset = inputs.offset_at(step)
            ranked = ranked + offset[:, sample if offset.shape[1] > 1 else 0]
        # the most relevant first, of equals the lowest index; NaN counts as the least
        numbers = ranked.masked_fill(ranked.isnan(), -math.inf).tolist()
        places = sorted(mechanisms, key=lambda m: (-numbers[m], m))
        active = [m for m in places[: options.num_active] if inputs.offset is None or numbers[m] > -math.inf]
        if options.dynamic:
            active = [m for m in active if numbers[m] > 0]
        if options.margin == "best":
            active = [m for m in active if numbers[m] > numbers[places[0]] - options.width]
        gates = _gates(options, relevance, ranked, places)
        if gates is not None:
            all_gates.append(
                torch.stack([gates[m] if m in active else torch.zeros_like(gates[m]) for m in mechanisms])
            )

        # dynamics of every mechanism
        candidate, candidate_memory, cell_gates = [], [], []
        for m in mechanisms:
            attended = []
            for head in range(options.input_heads):
                value = rows @ _of(weights.input_value, m).chunk(options.input_heads, dim=-1)[head]
                factors = attention[head, m]
                if inputs.keep_input is not None:
                    kept = inputs.keep_input[step, m, sample, head]
                    factors = factors * torch.cat([torch.ones_like(kept[:1]), kept])
                attended.append(factors @ value)
            h, c, cell_gate = _cell(weights, options, torch.cat(attended), hidden[m], memory[m], m)
            candidate.append(h)
            candidate_memory.append(c)
            cell_gates.append(cell_gate)

        # communication: active mechanisms read all
        updated, communication = list(candidate), None
        if weights.communication:
            if options.inactive == "preserved":
                visible = [candidate[m] if m in active else hidden[m] for m in mechanisms]
            else:
                visible = [candidate[m] if m in active else candidate[m].detach() for m in mechanisms]
            readings, heads_attention = _communication(weights, options, inputs, visible, sample, step)
            if options.communication_output == "cell_gate":
                readings = [cell_gates[m] * readings[m] for m in mechanisms]
            updated = [candidate[m] + readings[m] for m in mechanisms]
            is_active = torch.tensor([[m in active] for m in mechanisms])
            communication = heads_attention.mean(dim=0).detach() * is_active

        # the others keep their state
        if gates is not None:
            updated = [hidden[m] + gates[m] * (updated[m] - hidden[m]) for m in mechanisms]
            candidate_memory = [memory[m] + gates[m] * (candidate_memory[m] - memory[m]) for m in mechanisms]
        hidden = [updated[m] if m in active else hidden[m] for m in mechanisms]
        memory = [candidate_memory[m] if m in active else memory[m] for m in mechanisms]
        features.append(torch.stack(hidden))
        actives.append(torch.tensor([m in active for m in mechanisms]))
        slot_attention = attention[..., 1:].mean(dim=0)
        slot_attentions.append(slot_attention)
        if options.selection == "across_mechanisms":  # there is no null slot
            nulls.append(1 - slot_attention.mean(dim=-1))
        else:
            nulls.append(attention[..., 0].mean(dim=0))
        if communication is not None:
            communications.append(communication)
    return (
        torch.stack(features),
        torch.stack(hidden),
        torch.stack(memory) if has_memory else None,
        torch.stack(actives),
        torch.stack(nulls),
        torch.stack(slot_attentions),
        torch.stack(communications) if communications else None,
        torch.stack(all_gates) if all_gates else None,
        torch.stack(relevances),
    )


def _gates(options: LayerOptions, relevance: Tensor, ranked: Tensor, places: list[int]) -> list[Tensor] | None:
    """Return how far each mechanism moves if it is active, or None where all move in full."""
    if not options.is_gated:
        return None
    losers = places[options.num_active :]
    gates = []
    for own, r in zip(ranked, relevance, strict=True):
        gate = torch.ones_like(own)
        if options.has_margin:
            bar = ranked[losers[0]] if losers else torch.zeros_like(own)
            if options.margin == "best":
                bar = ranked[places[0]] - options.width
            if options.dynamic and bar < 0:
                bar = torch.zeros_like(own)
            if options.margin == "probabilities":
                own, bar = torch.sigmoid(own), torch.sigmoid(bar)
            gate = ((own - bar) / options.width).clamp(0, 1)
        if options.graded:
            gate = gate * torch.sigmoid(r)
        gates.append(gate)
    return gates


def _of(weight: Tensor, mechanism: int) -> Tensor:
    """Return a mechanism's own weight, or the shared one."""
    return weight[mechanism if weight.shape[0] > 1 else 0]


def _input_scores(
    weights: LayerWeights, options: LayerOptions, hidden: Tensor, rows: Tensor, mechanism: int, head: int
) -> Tensor:
    query: Tensor = hidden @ weights.input_query[mechanism].chunk(options.input_heads, dim=-1)[head]
    keys: Tensor = rows @ _of(weights.input_key, mechanism).chunk(options.input_heads, dim=-1)[head]
    return keys @ query / math.sqrt(query.shape[0])


def _cell(
    weights: LayerWeights,
    options: LayerOptions,
    attended: Tensor,
    hidden: Tensor,
    memory: Tensor,
    mechanism: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the candidate's hidden state and memory, and how far the cell lets new content in."""
    cell_hidden, cell_bias = weights.dynamics
    gates = 4 if options.cell == "lstm" else 3
    read = (attended @ weights.cell_input[mechanism]).chunk(gates)
    recurrent = (hidden @ cell_hidden[mechanism]).chunk(gates)
    bias = cell_bias[mechanism].chunk(4)
    if options.cell == "lstm":
        i, f, o = (torch.sigmoid(read[k] + recurrent[k] + bias[k]) for k in range(3))
        new_memory = f * memory + i * torch.tanh(read[3] + recurrent[3] + bias[3])
        return o * torch.tanh(new_memory), new_memory, o
    r, z = (torch.sigmoid(read[k] + recurrent[k] + bias[k]) for k in range(2))
    n = torch.tanh(read[2] + bias[2] + r * (recurrent[2] + bias[3]))
    return (1 - z) * n + z * hidden, memory, 1 - z


def _communication(
    weights: LayerWeights,
    options: LayerOptions,
    inputs: LayerInputs,
    visible: list[Tensor],
    sample: int,
    step: int,
) -> tuple[list[Tensor], Tensor]:
    projection, output, bias = weights.communication
    assert projection is not None and output is not None
    key_size = options.communication_key_size
    mechanisms = range(options.num_mechanisms)
    read_heads: list[list[Tensor]] = [[] for _ in mechanisms]
    attentions = []
    for head in range(options.communication_heads):
        projected = [
            visible[m] @ projection[m].chunk(options.communication_heads, dim=-1)[head] for m in mechanisms
        ]
        queries = [p[:key_size] for p in projected]
        keys = [p[key_size : 2 * key_size] for p in projected]
        values = [p[2 * key_size :] for p in projected]
        rows = []
        for m in mechanisms:
            scores = torch.stack([queries[m] @ keys[n] / math.sqrt(key_size) for n in mechanisms])
            attention = scores.softmax(dim=0)
            rows.append(attention)
            if inputs.keep_communication is not None:
                attention = attention * inputs.keep_communication[step, sample, head, m]
            read_heads[m].append(sum((attention[n] * values[n] for n in mechanisms), torch.zeros_like(values[0])))
        attentions.append(torch.stack(rows))
    readings = []
    for m in mechanisms:
        read = torch.cat(read_heads[m]) @ _of(output, m)
        if options.communication_output == "gated":
            assert bias is not None
            gate, content = (read + bias[0]).chunk(2)
            read = torch.sigmoid(gate) * torch.tanh(content)
        if options.communication_output in ("tanh", "cell_gate"):
            read = torch.tanh(read)
        readings.append(read)
    return readings, torch.stack(attentions)
