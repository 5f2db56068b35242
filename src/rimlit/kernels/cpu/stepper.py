"""One step at a time, without a graph and with what can be folded ahead (``loop.cpp``)."""

import ctypes
import functools
import math
import threading
from typing import Any

import torch
from torch import Tensor

from rimlit.kernels.autograd import Operands, Outputs
from rimlit.kernels.cpu.call import Call, loaded, require_cpu, require_success, structure
from rimlit.kernels.layer import LayerInputs, describe
from rimlit.mechanisms import LayerWeights, RIMLayer
from rimlit.types import GRUState, LSTMState, State


class LayerStep:
    """One layer, one step at a time, from an input (B, D), without a graph and with what can be folded ahead.

    Args:
        layer: The layer.
        batch_size: Samples of every step.
        fold: Whether products of weights are formed now where that is cheaper: they do not follow the weights.
    """

    def __init__(self, layer: RIMLayer, batch_size: int, *, fold: bool) -> None:
        # tensors that the library reads by address must live as long as this object, even if parameters change
        weights, options = LayerWeights(*map(_held, layer.weights())), describe(layer)
        cell_hidden, cell_bias = weights.dynamics
        communication, communication_output, communication_bias = weights.communication or (None, None, None)
        self._step = loaded().rimlit_step
        self._step.argtypes = [ctypes.c_void_p] * 7
        heads, mechanisms = options.input_heads, options.num_mechanisms
        key_groups, input_size, keys_size = weights.input_key.shape
        value_groups, _, values_size = weights.input_value.shape
        _, size, num_gates = cell_hidden.shape
        folded_key = folded_value = None
        two_products = (key_groups * input_size + mechanisms * size) * keys_size // heads
        if fold and mechanisms * input_size * size <= two_products:
            folded_key = _fold(weights.input_key, weights.input_query.mT / math.sqrt(keys_size // heads), heads)
        in_loop = value_groups * input_size * values_size + options.num_active * values_size * num_gates
        if fold and mechanisms * input_size * heads * num_gates <= in_loop:
            folded_value = _fold(weights.input_value, weights.cell_input, heads)
        new = cell_hidden.new_empty
        state = new(batch_size, mechanisms, size)
        folded_values = folded_value is not None
        value_shape: tuple[int, ...] = (mechanisms, 1, batch_size, heads, num_gates)
        if not folded_values:
            value_shape = (value_groups, 1, batch_size, 1, heads, values_size // heads)
        operands = Operands(
            keys=new(mechanisms, 1, batch_size, heads, size),
            values=new(value_shape),
            hidden=state,
            memory=state if options.cell == "lstm" else None,
            initial_hidden=state,
            initial_memory=None,
            input_query=None,
            cell_input=None if folded_values else weights.cell_input,
            cell_hidden=cell_hidden,
            cell_bias=cell_bias,
            communication=communication,
            communication_output=communication_output,
            communication_bias=communication_bias,
            score_bias=weights.score_bias,
        )
        inputs = LayerInputs(None, None, None, None, None, None, None, None, record=False)
        call = Call(options, inputs, operands, threads=1, is_taped=False)
        tape = call.empty_tape()
        outputs = Outputs(
            state,
            state,
            None,
            new(batch_size, 1, mechanisms, dtype=torch.bool),
            new(batch_size, 1, mechanisms, heads, 1),
            None,
            None,
            new(batch_size, 1, mechanisms) if options.is_gated else None,
            None,
            None,
        )
        self._arguments = call.arguments(outputs, tape)
        self._step_arguments = structure("step_arguments")(
            loop=ctypes.addressof(self._arguments),
            input_size=input_size,
            key_size=keys_size // heads,
            key_groups=key_groups,
            key=weights.input_key.data_ptr(),
            query=weights.input_query.data_ptr(),
            folded_key=None if folded_key is None else folded_key.data_ptr(),
            folded_value=None if folded_value is None else folded_value.data_ptr(),
            value=weights.input_value.data_ptr(),
            keys=operands.keys.data_ptr(),
            values=operands.values.data_ptr(),
        )
        self._address = ctypes.addressof(self._step_arguments)
        self._alive = call, tape, outputs, weights, folded_key, folded_value
        empty = functools.partial(torch.empty, dtype=state.dtype, device="cpu")
        self._new_features = functools.partial(empty, (batch_size, mechanisms * size))
        self._new_state = functools.partial(empty, (batch_size, 1, mechanisms, size))
        self._is_lstm = options.cell == "lstm"
        self._lock = threading.Lock()  # one set of projections, and the library runs without Python's lock

    def __call__(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Return features (B, M·d) and the state (B, 1, M, d) after a step on ``inputs`` (B, D)."""
        # what is touched here is cold: a step's weights have just passed through the caches
        inputs, hidden = inputs.contiguous(), state[0].contiguous()
        features, new_hidden = self._new_features(), self._new_state()
        memory = new_memory = None
        if self._is_lstm:
            memory, new_memory = state[1].contiguous(), self._new_state()
        if not (inputs.is_cpu and hidden.is_cpu and (memory is None or memory.is_cpu)):
            require_cpu({"inputs": inputs, "hidden": hidden, "memory": memory})
        with self._lock:
            code = self._step(
                self._address,
                inputs.data_ptr(),
                hidden.data_ptr(),
                None if memory is None else memory.data_ptr(),
                features.data_ptr(),
                new_hidden.data_ptr(),
                None if new_memory is None else new_memory.data_ptr(),
            )
            require_success(code)
        return features, GRUState(new_hidden) if new_memory is None else LSTMState(new_hidden, new_memory)


def _held(weights: Any) -> Any:
    """Return weights that a later change of the parameters does not move."""
    if isinstance(weights, tuple):
        return tuple(map(_held, weights))
    return None if weights is None else weights.detach().contiguous()


def _fold(first: Tensor, second: Tensor, heads: int) -> Tensor:
    """Return (M, D, I·output) from (1 or M, D, I·inner) and (M, I·inner, output), head by head."""
    chains = [torch.matmul(a, b) for a, b in zip(first.chunk(heads, -1), second.chunk(heads, 1), strict=True)]
    return torch.cat(chains, dim=-1).detach().contiguous()
