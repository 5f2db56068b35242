"""Device code that the kernels of both passes share."""

import triton
import triton.language as tl

IS_INTERPRETED: bool = triton.knobs.runtime.interpret  # read when the kernels are decorated


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def add_product(result, rows, weights):
    """Return result + rows · weights, in the precision of the weights."""
    if result.dtype == tl.float64:  # Triton 3.6 and 3.7 fail to compile some products of doubles
        result += tl.sum(rows[:, :, None] * weights[None, :, :], axis=1)
    else:
        result = tl.dot(rows, weights, result, "ieee", out_dtype=tl.float32)  # not TF32: it has 10 bits
    return result


@triton.jit
def start_next(state, kept, initial, resets, step, num_steps, batch_size, m, samples, columns, mask, size):
    """Write the state that the next step starts from: ``kept``, or the initial one where that step is reset."""
    if resets is not None:  # noqa: SIM102 (known when compiled, where the next is not)
        if step + 1 < num_steps:
            is_reset = tl.load(resets + (step + 1) * batch_size + samples, mask=samples < batch_size, other=0) != 0
            first = initial + (m * batch_size + samples)[:, None] * size + columns[None, :]
            kept = tl.where(is_reset[:, None], tl.load(first, mask=mask, other=0.0), kept)
    tl.store(state, kept, mask=mask)


@triton.jit
def pass_reset(gradient, initial, resets, step, batch_size, m, samples, columns, mask, size):
    """Return the gradient of the state before ``step``; where the step was reset it goes to the initial state."""
    if resets is not None:
        was_reset = tl.load(resets + step * batch_size + samples, mask=samples < batch_size, other=0) != 0
        first = initial + (m * batch_size + samples)[:, None] * size + columns[None, :]
        tl.store(first, tl.load(first, mask=mask, other=0.0) + gradient, mask=mask & was_reset[:, None])
        gradient = tl.where(was_reset[:, None], 0.0, gradient)
    return gradient
