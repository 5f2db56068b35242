"""Device code: the kernels of one time step. A program owns a mechanism, a tile of samples and a tile of features.

Tensors lie in rows (M, steps, B, ·). Where nothing is taped they hold one step, and states two: ``step`` counts
the sequence, ``at`` the steps on tape, ``old`` and ``new`` the states before and after. Row numbers are 64-bit:
the tape of a long sequence has more than 2³¹ numbers. Masks pad every tile, so that sizes are free.

Long because the kernels of both passes share device functions that read tiles, and name every pointer.
"""

import triton
import triton.language as tl

IS_INTERPRETED: bool = triton.knobs.runtime.interpret  # read when the kernels below are decorated


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _add_product(result, rows, weights):
    if result.dtype == tl.float64:  # Triton 3.6 and 3.7 fail to compile some products of doubles
        result += tl.sum(rows[:, :, None] * weights[None, :, :], axis=1)
    else:
        result = tl.dot(rows, weights, result, "ieee", out_dtype=tl.float32)  # not TF32: it has 10 bits
    return result


@triton.jit
def _start_next(state, kept, initial, resets, step, num_steps, batch_size, m, samples, columns, mask, size):
    """Write the state that the next step starts from: ``kept``, or the initial one where that step is reset."""
    if resets is not None:  # noqa: SIM102 (known when compiled, where the next is not)
        if step + 1 < num_steps:
            is_reset = tl.load(resets + (step + 1) * batch_size + samples, mask=samples < batch_size, other=0) != 0
            first = initial + (m * batch_size + samples)[:, None] * size + columns[None, :]
            kept = tl.where(is_reset[:, None], tl.load(first, mask=mask, other=0.0), kept)
    tl.store(state, kept, mask=mask)


@triton.jit
def _pass_reset(gradient, initial, resets, step, batch_size, m, samples, columns, mask, size):
    """Return the gradient of the state before ``step``; where the step was reset it goes to the initial state."""
    if resets is not None:
        was_reset = tl.load(resets + step * batch_size + samples, mask=samples < batch_size, other=0) != 0
        first = initial + (m * batch_size + samples)[:, None] * size + columns[None, :]
        tl.store(first, tl.load(first, mask=mask, other=0.0) + gradient, mask=mask & was_reset[:, None])
        gradient = tl.where(was_reset[:, None], 0.0, gradient)
    return gradient


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
        first = _add_product(first, state, tl.load(weight, mask=mask, other=0.0))
        second = _add_product(second, state, tl.load(weight + size, mask=mask, other=0.0))
        third = _add_product(third, state, tl.load(weight + 2 * size, mask=mask, other=0.0))
        if memory is not None:
            fourth = _add_product(fourth, state, tl.load(weight + 3 * size, mask=mask, other=0.0))

    state = tl.load(hidden + before[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
    gate = gates + taped[:, None] * num_gates + columns[None, :]
    own_tape = taped[:, None] * size + columns[None, :]
    first = tl.sigmoid(first)
    second = tl.sigmoid(second)
    tl.store(gate, first, mask=in_tile)
    tl.store(gate + size, second, mask=in_tile)
    if memory is not None:
        third = tl.sigmoid(third)
        fourth = _tanh(fourth)
        tl.store(gate + 2 * size, third, mask=in_tile)
        tl.store(gate + 3 * size, fourth, mask=in_tile)
        old_memory = tl.load(memory + before[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
        new_memory = first * fourth + second * old_memory
        squash = _tanh(new_memory)
        tl.store(squashed + own_tape, squash, mask=in_tile)
        candidate = third * squash
        _start_next(
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
        fourth = _tanh(fourth + first * third)
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
        _start_next(
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
        result = _add_product(result, state, weight)
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
        first = _add_product(first, gathered, tl.load(matrix, mask=mask, other=0.0))
        if kind == "gated":
            second = _add_product(second, gathered, tl.load(matrix + size, mask=mask, other=0.0))

    candidate = tl.load(visible + taped[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
    own_output = taped[:, None] * output_size + columns[None, :]
    if kind == "linear":
        candidate += first
    elif kind == "tanh":
        first = _tanh(first)
        tl.store(output + own_output, first, mask=in_tile)
        candidate += first
    else:
        first = tl.sigmoid(first)
        second = _tanh(second)
        tl.store(output + own_output, first, mask=in_tile)
        tl.store(output + own_output + size, second, mask=in_tile)
        candidate += first * second
    is_active = tl.load(active + row, mask=in_batch, other=0) != 0
    state = tl.load(hidden + before[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
    state = tl.where(is_active[:, None], candidate, state)
    tl.store(features + row[:, None] * size + columns[None, :], state, mask=in_tile)
    _start_next(
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


@triton.jit(do_not_specialize=["step"])
def back_to_read(
    into_hidden,
    active,
    output,
    communication_output,
    into_output,
    into_read,
    step,
    num_steps,
    batch_size,
    size: tl.constexpr,
    read_size: tl.constexpr,
    output_size: tl.constexpr,
    is_output_shared: tl.constexpr,
    kind: tl.constexpr,
    batch_tile: tl.constexpr,
    depth: tl.constexpr,
    feature_tile: tl.constexpr,
):
    """Write the gradients of the output layer's sums and of what a mechanism read. Its columns are those read."""
    dtype = into_read.dtype.element_ty
    m = tl.program_id(0).to(tl.int64)
    samples = tl.program_id(1) * batch_tile + tl.arange(0, batch_tile)
    columns = tl.program_id(2) * feature_tile + tl.arange(0, feature_tile)
    in_batch = samples < batch_size
    in_row = columns < read_size
    is_first = tl.program_id(2) == 0
    row = (m * num_steps + step) * batch_size + samples
    own = m * batch_size + samples
    is_active = tl.load(active + row, mask=in_batch, other=0) != 0
    group = m
    if is_output_shared:
        group = m * 0
    result = tl.zeros((batch_tile, feature_tile), dtype)
    for start in range(0, size, depth):
        k = start + tl.arange(0, depth)
        mask = in_batch[:, None] & (k < size)[None, :]
        gradient = tl.load(into_hidden + own[:, None] * size + k[None, :], mask=mask, other=0.0)
        gradient = tl.where(is_active[:, None], gradient, 0.0)
        position = row[:, None] * output_size + k[None, :]
        # the transposed matrix: rows are the output's features
        matrix = communication_output + (group * read_size + columns)[None, :] * output_size + k[:, None]
        matrix_mask = (k < size)[:, None] & in_row[None, :]
        if kind == "gated":
            gate = tl.load(output + position, mask=mask, other=0.0)
            content = tl.load(output + position + size, mask=mask, other=0.0)
            into_content = gradient * gate * (1 - content * content)
            gradient = gradient * content * (gate * (1 - gate))
            if is_first:
                tl.store(into_output + position + size, into_content, mask=mask)
            part = tl.load(matrix + size, mask=matrix_mask, other=0.0)
            result = _add_product(result, into_content, part)
        elif kind == "tanh":
            value = tl.load(output + position, mask=mask, other=0.0)
            gradient = gradient * (1 - value * value)
        if is_first:
            tl.store(into_output + position, gradient, mask=mask)
        part = tl.load(matrix, mask=matrix_mask, other=0.0)
        result = _add_product(result, gradient, part)
    target = into_read + own[:, None] * read_size + columns[None, :]
    tl.store(target, result, mask=in_batch[:, None] & in_row[None, :])


@triton.jit(do_not_specialize=["step"])
def back_to_projected(
    into_read,
    projected,
    weights,
    keep,
    into_projected,
    step,
    num_steps,
    batch_size,
    scale: tl.constexpr,
    num_mechanisms: tl.constexpr,
    heads: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    mechanism_tile: tl.constexpr,
    key_tile: tl.constexpr,
    value_tile: tl.constexpr,
    batch_tile: tl.constexpr,
):
    """Write the gradients of queries, keys and values: a program owns samples and a head, for all mechanisms."""
    dtype = into_projected.dtype.element_ty
    samples = (tl.program_id(0) * batch_tile + tl.arange(0, batch_tile)).to(tl.int64)
    head = tl.program_id(1)
    in_batch = samples < batch_size
    everyone = tl.arange(0, mechanism_tile).to(tl.int64)
    is_present = in_batch[:, None] & (everyone < num_mechanisms)[None, :]
    k = tl.arange(0, key_tile)
    v = tl.arange(0, value_tile)
    head_size: tl.constexpr = 2 * key_size + value_size
    rows = (everyone[None, :] * num_steps + step) * batch_size + samples[:, None]
    others = (rows * heads + head)[:, :, None] * head_size
    key_at = others + key_size + k[None, None, :]
    key_mask = is_present[:, :, None] & (k < key_size)[None, None, :]
    value_at = others + 2 * key_size + v[None, None, :]
    value_mask = is_present[:, :, None] & (v < value_size)[None, None, :]
    key = tl.load(projected + key_at, mask=key_mask, other=0.0)
    value = tl.load(projected + value_at, mask=value_mask, other=0.0)
    into_key = tl.zeros((batch_tile, mechanism_tile, key_tile), dtype)
    into_value = tl.zeros((batch_tile, mechanism_tile, value_tile), dtype)
    for reader in range(num_mechanisms):
        own = (samples * num_steps + step) * heads + head
        weight = weights + (own * num_mechanisms + reader)[:, None] * num_mechanisms + everyone[None, :]
        weight = tl.load(weight, mask=is_present, other=0.0)
        own = (reader * batch_size + samples) * heads + head
        gradient = into_read + own[:, None] * value_size + v[None, :]
        gradient = tl.load(gradient, mask=in_batch[:, None] & (v < value_size)[None, :], other=0.0)
        into_weight = tl.sum(gradient[:, None, :] * value, axis=2)  # (B, M)
        kept = weight
        if keep is not None:
            own = (step * batch_size + samples) * heads + head
            factors = keep + (own * num_mechanisms + reader)[:, None] * num_mechanisms + everyone[None, :]
            factors = tl.load(factors, mask=is_present, other=0.0)
            kept = weight * factors
            into_weight *= factors
        into_value += kept[:, :, None] * gradient[:, None, :]
        into_score = weight * (into_weight - tl.sum(weight * into_weight, axis=1)[:, None]) * scale
        query_at = ((reader * num_steps + step) * batch_size + samples) * heads + head
        query_at = query_at[:, None] * head_size + k[None, :]
        query_mask = in_batch[:, None] & (k < key_size)[None, :]
        query = tl.load(projected + query_at, mask=query_mask, other=0.0)
        into_key += into_score[:, :, None] * query[:, None, :]
        tl.store(into_projected + query_at, tl.sum(into_score[:, :, None] * key, axis=1), mask=query_mask)
    tl.store(into_projected + key_at, into_key, mask=key_mask)
    tl.store(into_projected + value_at, into_value, mask=value_mask)


@triton.jit(do_not_specialize=["step"])
def back_to_gates(
    into_hidden,
    into_memory,
    into_projected,
    communication,
    active,
    values,
    hidden,
    memory,
    gates,
    inside,
    squashed,
    resets,
    into_initial_memory,
    into_gates,
    into_recurrent,
    into_attention,
    step,
    num_steps,
    num_states,
    batch_size,
    size: tl.constexpr,
    num_gates: tl.constexpr,
    heads: tl.constexpr,
    projected_size: tl.constexpr,
    reads_candidates: tl.constexpr,
    num_tiles: tl.constexpr,
    batch_tile: tl.constexpr,
    depth: tl.constexpr,
    feature_tile: tl.constexpr,
):
    """Write the gradients of gates and memory, and leave in ``into_hidden`` what does not pass through the gates.

    ``into_attention`` gets this tile's share of the gradient of the attention to the input.
    """
    dtype = into_hidden.dtype.element_ty
    m = tl.program_id(0).to(tl.int64)
    samples = tl.program_id(1) * batch_tile + tl.arange(0, batch_tile)
    columns = tl.program_id(2) * feature_tile + tl.arange(0, feature_tile)
    in_batch = samples < batch_size
    in_tile = in_batch[:, None] & (columns < size)[None, :]
    row = (m * num_steps + step) * batch_size + samples
    before = (m * num_states + step) * batch_size + samples
    own = m * batch_size + samples
    is_active = (tl.load(active + row, mask=in_batch, other=0) != 0)[:, None]
    gradient = tl.load(into_hidden + own[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
    kept = tl.where(is_active, 0.0, gradient)
    candidate = tl.where(is_active, gradient, 0.0)
    if communication is not None:
        seen = tl.zeros((batch_tile, feature_tile), dtype)
        for start in range(0, projected_size, depth):
            k = start + tl.arange(0, depth)
            in_depth = k < projected_size
            part = into_projected + row[:, None] * projected_size + k[None, :]
            part = tl.load(part, mask=in_batch[:, None] & in_depth[None, :], other=0.0)
            # transposed: rows are what was projected to
            weight = communication + (m * size + columns)[None, :] * projected_size + k[:, None]
            weight = tl.load(weight, mask=in_depth[:, None] & (columns < size)[None, :], other=0.0)
            seen = _add_product(seen, part, weight)
        candidate += tl.where(is_active, seen, 0.0)
        if not reads_candidates:
            kept += tl.where(is_active, 0.0, seen)

    gate = row[:, None] * num_gates + columns[None, :]
    own_tape = row[:, None] * size + columns[None, :]
    first = tl.load(gates + gate, mask=in_tile, other=0.0)
    second = tl.load(gates + gate + size, mask=in_tile, other=0.0)
    if memory is not None:
        third = tl.load(gates + gate + 2 * size, mask=in_tile, other=0.0)
        fourth = tl.load(gates + gate + 3 * size, mask=in_tile, other=0.0)
        squash = tl.load(squashed + own_tape, mask=in_tile, other=0.0)
        old_memory = tl.load(memory + before[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
        own_memory = into_memory + own[:, None] * size + columns[None, :]
        gradient = tl.load(own_memory, mask=in_tile, other=0.0)
        into_new = tl.where(is_active, gradient, 0.0) + candidate * third * (1 - squash * squash)
        gradient = tl.where(is_active, 0.0, gradient) + into_new * second
        gradient = _pass_reset(
            gradient, into_initial_memory, resets, step, batch_size, m, samples, columns, in_tile, size
        )
        tl.store(own_memory, gradient, mask=in_tile)
        into_first = into_new * fourth * (first * (1 - first))
        into_second = into_new * old_memory * (second * (1 - second))
        into_third = candidate * squash * (third * (1 - third))
        into_fourth = into_new * first * (1 - fourth * fourth)
        tl.store(into_gates + gate + 2 * size, into_third, mask=in_tile)
        tl.store(into_gates + gate + 3 * size, into_fourth, mask=in_tile)
    else:
        third = tl.load(gates + gate + 2 * size, mask=in_tile, other=0.0)
        scaled = tl.load(inside + own_tape, mask=in_tile, other=0.0)
        state = tl.load(hidden + before[:, None] * size + columns[None, :], mask=in_tile, other=0.0)
        into_third = candidate * (1 - second) * (1 - third * third)
        into_second = candidate * (state - third) * (second * (1 - second))
        into_first = into_third * scaled * (first * (1 - first))
        kept += candidate * second
        tl.store(into_gates + gate + 2 * size, into_third, mask=in_tile)
        tl.store(into_recurrent + gate, into_first, mask=in_tile)
        tl.store(into_recurrent + gate + size, into_second, mask=in_tile)
        tl.store(into_recurrent + gate + 2 * size, into_third * first, mask=in_tile)
    tl.store(into_gates + gate, into_first, mask=in_tile)
    tl.store(into_gates + gate + size, into_second, mask=in_tile)
    tl.store(into_hidden + own[:, None] * size + columns[None, :], kept, mask=in_tile)

    for head in range(heads):
        value = values + (row * heads + head)[:, None] * num_gates + columns[None, :]
        share = into_first * tl.load(value, mask=in_tile, other=0.0)
        share += into_second * tl.load(value + size, mask=in_tile, other=0.0)
        share += into_third * tl.load(value + 2 * size, mask=in_tile, other=0.0)
        if memory is not None:
            share += into_fourth * tl.load(value + 3 * size, mask=in_tile, other=0.0)
        target = into_attention + (own * heads + head) * num_tiles + tl.program_id(2)
        tl.store(target, tl.sum(share, axis=1), mask=in_batch)


@triton.jit(do_not_specialize=["step"])
def back_to_state(
    into_hidden,
    into_attention,
    into_recurrent,
    cell_hidden,
    keys,
    keep,
    attention,
    resets,
    from_features,
    into_initial_hidden,
    into_scores,
    step,
    num_steps,
    batch_size,
    num_mechanisms: tl.constexpr,
    size: tl.constexpr,
    num_gates: tl.constexpr,
    heads: tl.constexpr,
    across_mechanisms: tl.constexpr,
    num_tiles: tl.constexpr,
    share_tile: tl.constexpr,
    mechanism_tile: tl.constexpr,
    batch_tile: tl.constexpr,
    depth: tl.constexpr,
    feature_tile: tl.constexpr,
):
    """Write the scores' gradients, and turn ``into_hidden`` to the state after the step before."""
    m = tl.program_id(0).to(tl.int64)
    samples = tl.program_id(1) * batch_tile + tl.arange(0, batch_tile)
    columns = tl.program_id(2) * feature_tile + tl.arange(0, feature_tile)
    in_batch = samples < batch_size
    in_tile = in_batch[:, None] & (columns < size)[None, :]
    is_first = tl.program_id(2) == 0
    row = (m * num_steps + step) * batch_size + samples
    own = into_hidden + (m * batch_size + samples)[:, None] * size + columns[None, :]
    gradient = tl.load(own, mask=in_tile, other=0.0)
    for start in range(0, num_gates, depth):
        k = start + tl.arange(0, depth)
        in_depth = k < num_gates
        part = into_recurrent + row[:, None] * num_gates + k[None, :]
        part = tl.load(part, mask=in_batch[:, None] & in_depth[None, :], other=0.0)
        # transposed: rows are gates
        weight = cell_hidden + (m * size + columns)[None, :] * num_gates + k[:, None]
        weight = tl.load(weight, mask=in_depth[:, None] & (columns < size)[None, :], other=0.0)
        gradient = _add_product(gradient, part, weight)

    tiles = tl.arange(0, share_tile)
    everyone = tl.arange(0, mechanism_tile).to(tl.int64)
    is_present = (everyone < num_mechanisms)[:, None] & in_batch[None, :]
    for head in range(heads):
        if across_mechanisms:  # the scores compete: the gradient of one holds those of all
            others = (everyone[:, None] * batch_size + samples[None, :]) * heads + head
            mask = is_present[:, :, None] & (tiles < num_tiles)[None, None, :]
            shares = into_attention + others[:, :, None] * num_tiles + tiles[None, None, :]
            reads = tl.sum(tl.load(shares, mask=mask, other=0.0), axis=2)  # (M, B)
            if keep is not None:
                factors = (step * num_mechanisms + everyone[:, None]) * batch_size + samples[None, :]
                reads *= tl.load(keep + factors * heads + head, mask=is_present, other=0.0)
            others = (everyone[:, None] * num_steps + step) * batch_size + samples[None, :]
            weights = tl.load(attention + others * heads + head, mask=is_present, other=0.0)
            into_score = weights * (reads - tl.sum(weights * reads, axis=0)[None, :])
            into_score = tl.sum(tl.where((everyone == m)[:, None], into_score, 0.0), axis=0)
        else:
            shares = ((m * batch_size + samples) * heads + head)[:, None] * num_tiles + tiles[None, :]
            mask = in_batch[:, None] & (tiles < num_tiles)[None, :]
            read = tl.sum(tl.load(into_attention + shares, mask=mask, other=0.0), axis=1)
            if keep is not None:
                factors = keep + ((step * num_mechanisms + m) * batch_size + samples) * heads + head
                read *= tl.load(factors, mask=in_batch, other=0.0)
            weight = tl.load(attention + row * heads + head, mask=in_batch, other=0.0)
            into_score = weight * (read - weight * read)
        if is_first:
            tl.store(into_scores + row * heads + head, into_score, mask=in_batch)
        key = keys + (row * heads + head)[:, None] * size + columns[None, :]
        gradient += into_score[:, None] * tl.load(key, mask=in_tile, other=0.0)

    gradient = _pass_reset(
        gradient, into_initial_hidden, resets, step, batch_size, m, samples, columns, in_tile, size
    )
    if step > 0:
        earlier = from_features + (row - batch_size)[:, None] * size + columns[None, :]
        gradient += tl.load(earlier, mask=in_tile, other=0.0)
    tl.store(own, gradient, mask=in_tile)
