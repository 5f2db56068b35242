"""The kernels of one time step, backward; how tensors lie is in ``forward.py``."""

import triton
import triton.language as tl

from rimlit.kernels.triton.device import add_product, pass_reset


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
            result = add_product(result, into_content, part)
        elif kind == "tanh":
            value = tl.load(output + position, mask=mask, other=0.0)
            gradient = gradient * (1 - value * value)
        if is_first:
            tl.store(into_output + position, gradient, mask=mask)
        part = tl.load(matrix, mask=matrix_mask, other=0.0)
        result = add_product(result, gradient, part)
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
            seen = add_product(seen, part, weight)
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
        gradient = pass_reset(
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
        gradient = add_product(gradient, part, weight)

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

    gradient = pass_reset(
        gradient, into_initial_hidden, resets, step, batch_size, m, samples, columns, in_tile, size
    )
    if step > 0:
        earlier = from_features + (row - batch_size)[:, None] * size + columns[None, :]
        gradient += tl.load(earlier, mask=in_tile, other=0.0)
    tl.store(own, gradient, mask=in_tile)
