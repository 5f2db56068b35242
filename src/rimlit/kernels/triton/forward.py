"""The kernels of one time step, forward. A program owns a mechanism, a tile of samples and a tile of features.

Tensors lie in rows (M, steps, B, ·). Where nothing is taped they hold one step, and states two: ``step`` counts
the sequence, ``at`` the steps on tape, ``old`` and ``new`` the states before and after. Row numbers are 64-bit:
the tape of a long sequence has more than 2³¹ numbers. Masks pad every tile, so that sizes are free.
"""

import triton
import triton.language as tl

from rimlit.kernels.triton.device import add_product, start_next, tanh


@triton.jit(do_not_specialize=["step", "at", "old", "new"])
def update(
    keys,
    values,
    keep,
    cell_hidden,
    cell_bias,
    initial_hidden,
    initial_memory,
    resets,
    hidden,
    memory,
    gates,
    inside,
    squashed,
    visible,
    features,
    active,
    attention,
    null_attention,
    step,
    at,
    old,
    new,
    num_steps,
    num_states,
    num_taped,
    batch_size,
    num_mechanisms: tl.constexpr,
    num_active: tl.constexpr,
    size: tl.constexpr,
    num_gates: tl.constexpr,
    heads: tl.constexpr,
    across_mechanisms: tl.constexpr,
    reads_candidates: tl.constexpr,
    mechanism_tile: tl.constexpr,
    score_tile: tl.constexpr,
    batch_tile: tl.constexpr,
    depth: tl.constexpr,
    feature_tile: tl.constexpr,
):
    """Score all mechanisms, choose, and update one: the cell's candidate state and memory.

    Without communication (``visible`` is None) the candidate is the new state; otherwise it is written, with what
    an inactive mechanism shows, for the others to read.
    """
    dtype = hidden.dtype.element_ty
    m = tl.program_id(0).to(tl.int64)
    samples = tl.program_id(1) * batch_tile + tl.arange(0, batch_tile)
    columns = tl.program_id(2) * feature_tile + tl.arange(0, feature_tile)
    in_batch = samples < batch_size
    in_tile = in_batch[:, None] & (columns < size)[None, :]
    is_first = tl.program_id(2) == 0  # of the programs that compute the same scores, the one that writes them
    row = (m * num_steps + step) * batch_size + samples
    before = (m * num_states + old) * batch_size + samples
    after = (m * num_states + new) * batch_size + samples
    taped = (m * num_taped + at) * batch_size + samples

    bias = cell_bias + m * 4 * size + columns
    in_row = columns < size
    # LSTM: input, forget, output, new gate; GRU: reset, update, what the reset gate scales, new gate
    first = tl.zeros((batch_tile, feature_tile), dtype) + tl.load(bias, mask=in_row, other=0.0)[None, :]
    second = tl.zeros((batch_tile, feature_tile), dtype) + tl.load(bias + size, mask=in_row, other=0.0)[None, :]
    third = tl.zeros((batch_tile, feature_tile), dtype)
    fourth = tl.zeros((batch_tile, feature_tile), dtype)
    if memory is not None:
        third += tl.load(bias + 2 * size, mask=in_row, other=0.0)[None, :]
        fourth += tl.load(bias + 3 * size, mask=in_row, other=0.0)[None, :]
    else:
        third += tl.load(bias + 3 * size, mask=in_row, other=0.0)[None, :]
        fourth += tl.load(bias + 2 * size, mask=in_row, other=0.0)[None, :]

    everyone = tl.arange(0, mechanism_tile).to(tl.int64)
    is_mechanism = (everyone < num_mechanisms)[:, None]
    is_present = is_mechanism & in_batch[None, :]
    all_before = (everyone[:, None] * num_states + old) * batch_size + samples[None, :]
    all_rows = (everyone[:, None] * num_steps + step) * batch_size + samples[None, :]
    relevance = tl.zeros((mechanism_tile, batch_tile), dtype)
    null = tl.zeros((batch_tile,), dtype)
    for head in range(heads):
        scores = tl.zeros((mechanism_tile, batch_tile), dtype)
        for start in range(0, size, score_tile):
            k = start + tl.arange(0, score_tile)
            mask = is_present[:, :, None] & (k < size)[None, None, :]
            state = tl.load(hidden + all_before[:, :, None] * size + k[None, None, :], mask=mask, other=0.0)
            key = keys + (all_rows * heads + head)[:, :, None] * size + k[None, None, :]
            scores += tl.sum(state * tl.load(key, mask=mask, other=0.0), axis=2)
        if across_mechanisms:
            scores = tl.where(is_mechanism, scores, float("-inf"))
            powers = tl.exp(scores - tl.max(scores, axis=0)[None, :])
            weights = powers / tl.sum(powers, axis=0)[None, :]
            relevance += weights
        else:
            weights = tl.sigmoid(scores)
            if heads == 1:  # the score ranks as the null probability does, without its rounding near 0 and 1
                relevance = scores
            else:
                relevance -= tl.sigmoid(-scores)
        read = tl.sum(tl.where((everyone == m)[:, None], weights, 0.0), axis=0)
        if is_first:
            tl.store(attention + row * heads + head, read, mask=in_batch)
        if null_attention is not None:
            null += tl.sum(tl.where((everyone == m)[:, None], tl.sigmoid(-scores), 0.0), axis=0)
        if keep is not None:
            factors = keep + ((step * num_mechanisms + m) * batch_size + samples) * heads + head
            read *= tl.load(factors, mask=in_batch, other=0.0)
        value = values + (row * heads + head)[:, None] * num_gates + columns[None, :]
        first += read[:, None] * tl.load(value, mask=in_tile, other=0.0)
        second += read[:, None] * tl.load(value + size, mask=in_tile, other=0.0)
        if memory is not None:
            third += read[:, None] * tl.load(value + 2 * size, mask=in_tile, other=0.0)
            fourth += read[:, None] * tl.load(value + 3 * size, mask=in_tile, other=0.0)
        else:
            fourth += read[:, None] * tl.load(value + 2 * size, mask=in_tile, other=0.0)

    if null_attention is not None:  # noqa: SIM102 (known when compiled, where the next is not)
        if is_first:
            tl.store(null_attention + row, null / heads, mask=in_batch)
    relevance /= heads
    # the rank counts who is ahead: ties go to the lowest index, NaN is the least
    relevance = tl.where(is_mechanism & (relevance == relevance), relevance, float("-inf"))
    own = tl.sum(tl.where((everyone == m)[:, None], relevance, 0.0), axis=0)[None, :]
    is_ahead = (relevance > own) | ((relevance == own) & (everyone < m)[:, None])
    is_active = tl.sum(is_ahead.to(tl.int32), axis=0) < num_active
    if is_first:
        tl.store(active + row, is_active.to(tl.uint8), mask=in_batch)

    for start in range(0, size, depth):
        k = start + tl.arange(0, depth)
        state_mask = in_batch[:, None] & (k < size)[None, :]
        state = tl.load(hidden + before[:, None] * size + k[None, :], mask=state_mask, other=0.0)
        weight = cell_hidden + (m * size + k)[:, None] * num_gates + columns[None, :]
        mask = (k < size)[:, None] & in_row[None, :]
        first = add_product(first, state, tl.load(weight, mask=mask, other=0.0))
        second = add_product(second, state, tl.load(weight + size, mask=mask, other=0.0))
        third = add_product(third, state, tl.load(weight + 2 * size, mask=mask, other=0.0))
        if memory is not None:
            fourth = add_product(fourth, state, tl.load(weight + 3 * size, mask=mask, other=0.0))

    state = tl.load(hidden + before[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
    gate = gates + taped[:, None] * num_gates + columns[None, :]
    own_tape = taped[:, None] * size + columns[None, :]
    first = tl.sigmoid(first)
    second = tl.sigmoid(second)
    tl.store(gate, first, mask=in_tile)
    tl.store(gate + size, second, mask=in_tile)
    if memory is not None:
        third = tl.sigmoid(third)
        fourth = tanh(fourth)
        tl.store(gate + 2 * size, third, mask=in_tile)
        tl.store(gate + 3 * size, fourth, mask=in_tile)
        old_memory = tl.load(memory + before[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
        new_memory = first * fourth + second * old_memory
        squash = tanh(new_memory)
        tl.store(squashed + own_tape, squash, mask=in_tile)
        candidate = third * squash
        start_next(
            memory + after[:, None] * size + columns[None, :],
            tl.where(is_active[:, None], new_memory, old_memory),
            initial_memory,
            resets,
            step,
            num_steps,
            batch_size,
            m,
            samples,
            columns,
            in_tile,
            size,
        )
    else:
        fourth = tanh(fourth + first * third)
        tl.store(gate + 2 * size, fourth, mask=in_tile)
        tl.store(inside + own_tape, third, mask=in_tile)
        candidate = fourth + second * (state - fourth)
    if visible is not None:
        if not reads_candidates:
            candidate = tl.where(is_active[:, None], candidate, state)
        tl.store(visible + own_tape, candidate, mask=in_tile)
    else:
        candidate = tl.where(is_active[:, None], candidate, state)
        tl.store(features + row[:, None] * size + columns[None, :], candidate, mask=in_tile)
        start_next(
            hidden + after[:, None] * size + columns[None, :],
            candidate,
            initial_hidden,
            resets,
            step,
            num_steps,
            batch_size,
            m,
            samples,
            columns,
            in_tile,
            size,
        )


@triton.jit(do_not_specialize=["at"])
def project(
    visible,
    communication,
    projected,
    at,
    num_taped,
    batch_size,
    size: tl.constexpr,
    projected_size: tl.constexpr,
    batch_tile: tl.constexpr,
    depth: tl.constexpr,
    feature_tile: tl.constexpr,
):
    """Write queries, keys and values of all heads."""
    dtype = projected.dtype.element_ty
    m = tl.program_id(0).to(tl.int64)
    samples = tl.program_id(1) * batch_tile + tl.arange(0, batch_tile)
    columns = tl.program_id(2) * feature_tile + tl.arange(0, feature_tile)
    taped = (m * num_taped + at) * batch_size + samples
    in_batch = (samples < batch_size)[:, None]
    in_row = (columns < projected_size)[None, :]
    result = tl.zeros((batch_tile, feature_tile), dtype)
    for start in range(0, size, depth):
        k = start + tl.arange(0, depth)
        state = tl.load(
            visible + taped[:, None] * size + k[None, :], mask=in_batch & (k < size)[None, :], other=0.0
        )
        weight = communication + (m * size + k)[:, None] * projected_size + columns[None, :]
        weight = tl.load(weight, mask=(k < size)[:, None] & in_row, other=0.0)
        result = add_product(result, state, weight)
    tl.store(projected + taped[:, None] * projected_size + columns[None, :], result, mask=in_batch & in_row)


@triton.jit(do_not_specialize=["step", "at", "old", "new"])
def communicate(
    projected,
    keep,
    communication_output,
    communication_bias,
    initial_hidden,
    resets,
    visible,
    active,
    hidden,
    weights,
    read,
    output,
    features,
    step,
    at,
    old,
    new,
    num_steps,
    num_states,
    num_taped,
    batch_size,
    scale: tl.constexpr,
    num_mechanisms: tl.constexpr,
    size: tl.constexpr,
    heads: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    output_size: tl.constexpr,
    is_output_shared: tl.constexpr,
    kind: tl.constexpr,
    mechanism_tile: tl.constexpr,
    key_tile: tl.constexpr,
    value_tile: tl.constexpr,
    batch_tile: tl.constexpr,
    feature_tile: tl.constexpr,
):
    """Let one mechanism read all, and write its state after the step: kept where it is inactive."""
    dtype = hidden.dtype.element_ty
    m = tl.program_id(0).to(tl.int64)
    samples = tl.program_id(1) * batch_tile + tl.arange(0, batch_tile)
    columns = tl.program_id(2) * feature_tile + tl.arange(0, feature_tile)
    in_batch = samples < batch_size
    in_row = (columns < size)[None, :]
    in_tile = in_batch[:, None] & in_row
    is_first = tl.program_id(2) == 0
    row = (m * num_steps + step) * batch_size + samples
    before = (m * num_states + old) * batch_size + samples
    after = (m * num_states + new) * batch_size + samples
    taped = (m * num_taped + at) * batch_size + samples

    everyone = tl.arange(0, mechanism_tile).to(tl.int64)
    is_mechanism = (everyone < num_mechanisms)[:, None]
    is_present = is_mechanism & in_batch[None, :]
    all_taped = (everyone[:, None] * num_taped + at) * batch_size + samples[None, :]
    head_size: tl.constexpr = 2 * key_size + value_size
    k = tl.arange(0, key_tile)
    v = tl.arange(0, value_tile)
    group = m
    if is_output_shared:
        group = m * 0

    first = tl.zeros((batch_tile, feature_tile), dtype)
    second = tl.zeros((batch_tile, feature_tile), dtype)
    if kind == "gated":
        bias = communication_bias + columns[None, :]
        first += tl.load(bias, mask=in_row, other=0.0)
        second += tl.load(bias + size, mask=in_row, other=0.0)
    for head in range(heads):
        start = head * head_size
        query = projected + taped[:, None] * (heads * head_size) + start + k[None, :]
        query = tl.load(query, mask=in_batch[:, None] & (k < key_size)[None, :], other=0.0)
        others = projected + all_taped[:, :, None] * (heads * head_size) + start
        key_mask = is_present[:, :, None] & (k < key_size)[None, None, :]
        key = tl.load(others + key_size + k[None, None, :], mask=key_mask, other=0.0)
        scores = tl.where(is_mechanism, tl.sum(query[None, :, :] * key, axis=2) * scale, float("-inf"))
        powers = tl.exp(scores - tl.max(scores, axis=0)[None, :])
        weight = powers / tl.sum(powers, axis=0)[None, :]  # (M, B)
        pair = (samples.to(tl.int64) * num_taped + at) * heads + head
        pair = (pair * num_mechanisms + m)[None, :] * num_mechanisms + everyone[:, None]
        if is_first:
            tl.store(weights + pair, weight, mask=is_present)
        if keep is not None:
            factors = (step * batch_size + samples.to(tl.int64)) * heads + head
            factors = (factors * num_mechanisms + m)[None, :] * num_mechanisms + everyone[:, None]
            weight *= tl.load(keep + factors, mask=is_present, other=0.0)
        value_mask = is_present[:, :, None] & (v < value_size)[None, None, :]
        value = tl.load(others + 2 * key_size + v[None, None, :], mask=value_mask, other=0.0)
        gathered = tl.sum(weight[:, :, None] * value, axis=0)  # (B, value)
        own_read = read + (taped * heads + head)[:, None] * value_size + v[None, :]
        if is_first:
            tl.store(own_read, gathered, mask=in_batch[:, None] & (v < value_size)[None, :])
        matrix = (group * heads + head) * value_size + v
        matrix = communication_output + matrix[:, None] * output_size + columns[None, :]
        mask = (v < value_size)[:, None] & in_row
        first = add_product(first, gathered, tl.load(matrix, mask=mask, other=0.0))
        if kind == "gated":
            second = add_product(second, gathered, tl.load(matrix + size, mask=mask, other=0.0))

    candidate = tl.load(visible + taped[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
    own_output = taped[:, None] * output_size + columns[None, :]
    if kind == "linear":
        candidate += first
    elif kind == "tanh":
        first = tanh(first)
        tl.store(output + own_output, first, mask=in_tile)
        candidate += first
    else:
        first = tl.sigmoid(first)
        second = tanh(second)
        tl.store(output + own_output, first, mask=in_tile)
        tl.store(output + own_output + size, second, mask=in_tile)
        candidate += first * second
    is_active = tl.load(active + row, mask=in_batch, other=0) != 0
    state = tl.load(hidden + before[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
    state = tl.where(is_active[:, None], candidate, state)
    tl.store(features + row[:, None] * size + columns[None, :], state, mask=in_tile)
    start_next(
        hidden + after[:, None] * size + columns[None, :],
        state,
        initial_hidden,
        resets,
        step,
        num_steps,
        batch_size,
        m,
        samples,
        columns,
        in_tile,
        size,
    )
