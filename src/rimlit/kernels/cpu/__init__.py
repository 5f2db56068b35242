"""The time loop in C++: only active mechanisms are computed, and threads own samples (``loop.cpp``)."""

import ctypes
import functools
import math
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rimlit.kernels.autograd import Gradients, MaybeTensor, Operands, Outputs, Setting, differentiate
from rimlit.kernels.cpu import memory, tiles
from rimlit.kernels.cpu.build import load
from rimlit.kernels.cpu.memory import empty as empty
from rimlit.kernels.cpu.memory import joined as joined
from rimlit.kernels.cpu.tiles import multiply as multiply
from rimlit.kernels.layer import Keep, LayerInputs, LayerOptions, LayerResult, LayerWeights
from rimlit.kernels.projection import Projected
from rimlit.types import GRUState, LSTMState, State

OUTPUT_KINDS = {"linear": 0, "tanh": 1, "gated": 2}
_NO_MEMORY = "The C++ time loop found no memory for its workspace."
DTYPES = (torch.float32, torch.float64)

# fmt: off
_INTEGERS = (
    "batch", "steps", "mechanisms", "active", "size", "input_heads", "slots", "input_key", "input_value",
    "heads", "key", "value", "key_groups", "value_groups", "output_groups", "vocabulary", "threads",
    "key_group_stride", "key_step_stride", "key_row_stride", "value_group_stride", "value_step_stride",
    "value_row_stride", "features_stride", "from_features_stride", "is_gru", "across_mechanisms",
    "reads_candidates", "output_kind", "keys_hold_query", "values_hold_cell",
    "values_ahead", "is_differentiated", "is_double",
)
_POINTERS = (
    "keys", "values", "hidden", "memory", "initial_hidden", "initial_memory", "input_query", "cell_input",
    "cell_hidden", "cell_bias", "communication", "communication_output", "communication_bias", "tokens",
    "resets", "known", "keep_input", "keep_communication", "features", "last_hidden", "last_memory", "is_active",
    "attention", "activity", "gates", "old_memory", "squashed", "ahead", "projected", "weights", "read", "output",
    "place", "start", "from_features", "from_hidden", "from_memory", "into_hidden", "into_memory",
    "into_initial_hidden", "into_initial_memory", "into_keys", "into_values", "into_input_query",
    "into_cell_input", "into_cell_hidden", "into_cell_bias", "into_communication",
    "into_communication_output", "into_communication_bias", "others_keys", "others_values",
    "others_input_query", "others_cell_input", "others_cell_hidden", "others_cell_bias",
    "others_communication", "others_communication_output", "others_communication_bias",
)
# fmt: on


_TAPE_DTYPES = {"place": torch.int32, "start": torch.int32}


class _Arguments(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _INTEGERS] + [(name, ctypes.c_void_p) for name in _POINTERS]


class Tape(NamedTuple):
    """What the derivative reads. Rows are (mechanism, sample) pairs that were computed, by step and thread."""

    gates: Tensor  # (T, rows, 4·d), after their activation
    old_memory: MaybeTensor  # (T, rows, d)
    squashed: MaybeTensor  # (T, rows, d): tanh of the new memory
    ahead: MaybeTensor  # (T, rows, I·gates): values times the cell's weights, where these are multiplied ahead
    projected: MaybeTensor  # (rows, C·(key + key + value)): once per state that was read
    weights: MaybeTensor  # (T, B, C, K, M)
    read: MaybeTensor  # (T, K·B, C·value)
    output: MaybeTensor  # (T, K·B, d or 2·d), after their activation
    place: MaybeTensor  # (T, B, M): the rows of ``projected`` that a step reads
    start: MaybeTensor  # (B, T + 1): its first row that a step computed, for each thread
    threads: Tensor  # (1,): how many wrote this


def scan(projected: Projected, weights: LayerWeights, options: LayerOptions, inputs: LayerInputs) -> LayerResult:
    """Walk the recurrence over all steps; see :func:`rimlit.kernels.run_layer`."""
    return differentiate(CPULoop(), projected, weights, options, inputs)


def values_hold_cell(weights: LayerWeights, options: LayerOptions, inputs: LayerInputs) -> bool:
    """Return whether it is cheaper to multiply values by the cell's weights ahead than in the loop.

    Ahead all mechanisms are computed, in one large product; in the loop the active ones, in products of few rows.
    """
    if options.project_in_bf16 or torch.is_autocast_enabled("cpu"):
        return True
    batch_size, _, _, input_size = inputs.sequence.shape
    groups, _, value_size = weights.input_value.shape
    num_mechanisms, _, num_gates = weights.cell_input.shape
    computed = num_mechanisms if options.inactive == "candidate" else options.num_active
    rows = batch_size * computed / num_mechanisms
    small_products = 1 + 4 / rows  # a product of 8 rows takes about 1.4 times as long per row as one of 64
    ahead = min(
        value_size * (groups * input_size + num_mechanisms * num_gates), num_mechanisms * input_size * num_gates
    )
    in_loop = value_size * (groups * input_size + computed * num_gates * small_products)
    return ahead <= in_loop


class _StepArguments(ctypes.Structure):
    _fields_ = (
        [("loop", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("input_size", "key_size", "key_groups")]
        + [
            (name, ctypes.c_void_p)
            for name in ("key", "query", "folded_key", "folded_value", "value", "keys", "values")
        ]
    )


class CPULoop:
    """The recurrence and its derivative, by way of ``loop.cpp``."""

    def forward(self, setting: Setting, operands: Operands) -> tuple[Outputs, tuple[MaybeTensor, ...]]:
        """Walk forward; see :class:`rimlit.kernels.autograd.Loop`."""
        call = _Call(setting, operands)
        if setting.tokens is not None:
            _require_range(setting.tokens, operands.keys.shape[1])
        batch_size, steps, mechanisms, size = call.batch, call.steps, call.mechanisms, call.size
        new = operands.hidden.new_empty
        record = setting.record and call.heads > 0
        outputs = Outputs(
            features=memory.empty(batch_size, steps, mechanisms, size, dtype=operands.hidden.dtype)
            if setting.features is None
            else setting.features,
            hidden=new(batch_size, mechanisms, size),
            memory=None if operands.memory is None else new(batch_size, mechanisms, size),
            active=new(batch_size, steps, mechanisms, dtype=torch.bool),
            attention=new(batch_size, steps, mechanisms, call.input_heads, call.slots),
            communication=new(batch_size, steps, mechanisms, mechanisms).zero_() if record else None,
        )
        tape = call.empty_tape()
        call.run("rimlit_forward", outputs, tape)
        if not setting.is_differentiated:
            return outputs, ()
        return outputs, tape if setting.keeps_tape else call.absent_tape()

    def backward(
        self,
        setting: Setting,
        operands: Operands,
        outputs: Outputs,
        tape: tuple[MaybeTensor, ...],
        gradients: Gradients,
    ) -> Operands:
        """Walk back; see :class:`rimlit.kernels.autograd.Loop`."""
        saved = Tape(*tape)
        # the tape lies as the threads of the forward wrote it
        call = _Call(setting._replace(keeps_tape=True), operands, int(saved.threads))
        # samples belong to one thread each; to the rest all threads add, all but the first in memory of their own
        apart = {"hidden", "memory", "initial_hidden", "initial_memory"}
        if setting.tokens is None:
            apart |= {"keys", "values"}
        # the library adds to these, and writes the others whole
        added = {"hidden", "memory", "initial_hidden", "initial_memory", "values"}
        if operands.input_query is not None:
            added |= {"keys"}
        given = {name: operand for name, operand in call.operands._asdict().items() if operand is not None}
        found: dict[str, MaybeTensor] = dict.fromkeys(Operands._fields)
        for name, operand in given.items():
            found[name] = memory.empty_like(operand)
            if name in added & apart:
                found[name].zero_()
        shapes = {name: (call.threads - 1, *given[name].shape) for name in given if name not in apart}
        others = memory.empty_together(shapes, {}, operands.hidden.dtype)
        call.run("rimlit_backward", outputs, saved, Operands(**found), others, gradients)
        return Operands(**found)


class _Call:
    """One call of the library: sizes, tensors in the layout it reads, and their addresses."""

    def __init__(self, setting: Setting, operands: Operands, threads: int | None = None) -> None:
        options = setting.options
        self.setting = setting
        keys, values = (_in_rows(tensor, setting) for tensor in operands[:2])
        contiguous: list[MaybeTensor] = [
            None if tensor is None else tensor.contiguous() for tensor in operands[2:]
        ]
        self.operands = Operands(keys, values, *contiguous)
        self.batch, self.mechanisms, self.size = operands.hidden.shape
        folded_keys, folded_values = operands.input_query is None, operands.cell_input is None
        self.steps = keys.shape[1] if setting.tokens is None else setting.tokens.shape[0]
        self.input_heads = options.input_heads
        self.slots = 1 if folded_keys else keys.shape[3]
        self.heads = options.communication_heads
        self.threads = max(1, min(torch.get_num_threads(), self.batch)) if threads is None else threads
        self.value = 0
        if operands.communication is not None:
            self.value = operands.communication.shape[-1] // self.heads - 2 * options.communication_key_size
        self.is_taped = setting.is_differentiated and setting.keeps_tape
        self.values_ahead = self._multiplies_ahead()
        self.integers = {
            "batch": self.batch,
            "steps": self.steps,
            "mechanisms": self.mechanisms,
            "active": options.num_active,
            "size": self.size,
            "input_heads": self.input_heads,
            "slots": self.slots,
            "input_key": 0 if folded_keys else keys.shape[-1],
            "input_value": 0 if folded_values else values.shape[-1],
            "heads": self.heads,
            "key": options.communication_key_size,
            "value": self.value,
            "key_groups": keys.shape[0],
            "value_groups": values.shape[0],
            "output_groups": 0
            if operands.communication_output is None
            else operands.communication_output.shape[0],
            "vocabulary": 0 if setting.tokens is None else keys.shape[1],
            "threads": self.threads,
            **_strides("key", keys, setting),
            **_strides("value", values, setting),
            "features_stride": 0,
            "from_features_stride": 0,
            "is_gru": options.cell == "gru",
            "across_mechanisms": options.selection == "across_mechanisms",
            "reads_candidates": options.inactive == "candidate",
            "output_kind": OUTPUT_KINDS[options.communication_output],
            "keys_hold_query": folded_keys,
            "values_hold_cell": folded_values,
            "values_ahead": self.values_ahead,
            "is_differentiated": self.is_taped,
            "is_double": operands.hidden.dtype == torch.float64,
        }

    def _multiplies_ahead(self) -> bool:
        """Return whether the loop multiplies values by the cell's weights on tiles, for many steps at once.

        Forward this is done for all mechanisms, backward for the active ones; a row takes about half as long as
        in the loop.
        """
        operands, options = self.operands, self.setting.options
        if operands.cell_input is None or self.slots > 1 or not tiles.are_available():
            return False
        active = options.num_active
        computed = self.mechanisms if options.inactive == "candidate" else active
        many, in_loop = 0.5 * (self.mechanisms + active), computed + active
        return (
            operands.hidden.dtype == torch.float32
            and self.batch * self.steps * active // self.mechanisms >= 256
            and min(operands.values.shape[-1], operands.cell_input.shape[-1]) >= 64
            and many <= 0.75 * in_loop  # products that are kept for the backward must be worth their memory
        )

    def empty_tape(self) -> Tape:
        """Return a tape of every step, or of one where nothing reads it afterwards."""
        parts: dict[str, MaybeTensor] = dict.fromkeys(Tape._fields)
        parts |= memory.empty_together(self._tape_shapes(self.is_taped), _TAPE_DTYPES, self.operands.hidden.dtype)
        if parts["start"] is not None:
            per_sample = len(parts["projected"]) // self.batch
            firsts = [self.batch * index // self.threads * per_sample for index in range(self.threads)]
            parts["start"][: self.threads, 0] = torch.tensor(firsts, dtype=torch.int32)
        return Tape(**parts | {"threads": torch.tensor([self.threads])})

    def absent_tape(self) -> Tape:
        """Return tensors that have the shapes of a tape and no memory."""
        parts: dict[str, MaybeTensor] = dict.fromkeys(Tape._fields)
        for name, shape in self._tape_shapes(is_taped=True).items():
            dtype = _TAPE_DTYPES.get(name, self.operands.hidden.dtype)
            parts[name] = torch.empty((), dtype=dtype).expand(shape)
        return Tape(**parts | {"threads": torch.tensor([self.threads])})

    def _tape_shapes(self, is_taped: bool) -> dict[str, tuple[int, ...]]:
        options, setting = self.setting.options, self.setting
        steps = self.steps if is_taped else 1
        computed = self.batch * (self.mechanisms if options.inactive == "candidate" else options.num_active)
        active = self.batch * options.num_active
        is_lstm, heads, size = options.cell == "lstm", self.heads, self.size
        output_size = {"linear": 0, "tanh": size, "gated": 2 * size}[options.communication_output]
        shapes: dict[str, tuple[int, ...]] = {"gates": (steps, computed, 4 * size)}
        if is_lstm:
            shapes |= {"old_memory": (steps, computed, size), "squashed": (steps, computed, size)}
        if self.values_ahead and is_taped:
            shapes["ahead"] = steps, computed, self.input_heads * self.operands.cell_input.shape[-1]
        if heads and is_taped:
            # an inactive mechanism is projected again only after a step in which it was active
            per_step = min(self.mechanisms, 2 * options.num_active)
            if setting.resets is not None or options.inactive == "candidate":
                per_step = self.mechanisms
            per_sample = self.mechanisms + (steps - 1) * per_step
            shapes |= {
                "projected": (self.batch * per_sample, options.communication_heads * self._head_size()),
                "place": (steps, self.batch, self.mechanisms),
                # as many rows as there can be threads: a tape that is computed again has the same shape
                "start": (self.batch, steps + 1),
            }
        if heads:
            shapes |= {
                "weights": (steps, self.batch, heads, options.num_active, self.mechanisms),
                "read": (steps, active, heads * self.value),
            }
        if heads and output_size:
            shapes["output"] = steps, active, output_size
        return shapes

    def _head_size(self) -> int:
        return 2 * self.setting.options.communication_key_size + self.value

    def run(self, function: str, *arguments: Any) -> None:
        """Call a function of the library on :meth:`arguments`.

        Raises:
            MemoryError: It found no memory for its workspace.
        """
        library, reason = load()
        if library is None:
            raise RuntimeError(f"backend='cpu' cannot run: {reason}.")
        if getattr(library, function)(ctypes.byref(self.arguments(*arguments))):
            raise MemoryError(_NO_MEMORY)

    def arguments(
        self,
        outputs: Outputs,
        tape: Tape,
        found: Operands | None = None,
        others: Mapping[str, Tensor] = MappingProxyType({}),
        gradients: Gradients | tuple[None, None, None] = (None, None, None),
    ) -> _Arguments:
        """Return sizes and addresses as the library reads them; this object keeps its tensors alive."""
        setting = self.setting
        tensors: dict[str, MaybeTensor] = {
            **self.operands._asdict(),
            "tokens": _contiguous(setting.tokens, torch.int64),
            "resets": None if setting.resets is None else setting.resets.contiguous(),
            "known": setting.active,
            "keep_input": _contiguous(setting.keep.input, self.operands.hidden.dtype),
            "keep_communication": _contiguous(setting.keep.communication, self.operands.hidden.dtype),
            "features": outputs.features,
            "last_hidden": outputs.hidden,
            "last_memory": outputs.memory,
            "is_active": outputs.active,
            "attention": outputs.attention,
            "activity": outputs.communication,
            **{name: tensor for name, tensor in tape._asdict().items() if name != "threads"},
        }
        self.integers["features_stride"] = outputs.features.stride(0)
        features, hidden, memory = gradients
        if features is not None:
            # the gradient of a part of a sequence is a part of that of the whole
            features = features if features[0].is_contiguous() else features.contiguous()
            self.integers["from_features_stride"] = features.stride(0)
            tensors["from_features"] = features
        for name, gradient in (("from_hidden", hidden), ("from_memory", memory)):
            tensors[name] = None if gradient is None else gradient.contiguous()
        if found is not None:
            tensors |= {f"into_{name}": tensor for name, tensor in found._asdict().items()}
            tensors |= {f"others_{name}": tensor for name, tensor in others.items()}
        _require_cpu(tensors)
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
        self.alive = tensors
        return _Arguments(**self.integers, **pointers)


def _strides(name: str, tensor: Tensor, setting: Setting) -> dict[str, int]:
    """Return how far apart groups, steps and samples of keys or values lie; or groups and tokens."""
    group, step, row = tensor.stride()[:3]
    if setting.tokens is not None:
        step, row = 0, step
    return {f"{name}_group_stride": group, f"{name}_step_stride": step, f"{name}_row_stride": row}


def _in_rows(tensor: Tensor, setting: Setting) -> Tensor:
    """Return keys or values as the library reads them: rows in any order, without gaps between them."""
    leading = 2 if setting.tokens is not None else 3
    outer = sorted(range(leading), key=tensor.stride, reverse=True)
    in_order = tensor.permute(*outer, *range(leading, tensor.dim()))
    return tensor if setting.tokens is None and in_order.is_contiguous() else tensor.contiguous()


def _require_cpu(tensors: Mapping[str, MaybeTensor]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device.type != "cpu":
            raise ValueError(f"backend='cpu' reads tensors on the CPU; got {name} on {tensor.device}.")


def _require_range(tokens: Tensor, vocabulary_size: int) -> None:
    least, greatest = (int(bound) for bound in torch.aminmax(tokens))
    if least < 0 or greatest >= vocabulary_size:
        wrong = least if least < 0 else greatest
        raise IndexError(f"tokens must be from 0 to {vocabulary_size - 1}, the table's rows; got {wrong}.")


def _contiguous(tensor: MaybeTensor, dtype: torch.dtype) -> MaybeTensor:
    return None if tensor is None else tensor.to(dtype).contiguous()


class Stepper:
    """One layer, one step at a time, from an input (B, D), without a graph and with what can be folded ahead.

    Args:
        weights: The layer's parameters.
        options: The layer's choices.
        batch_size: Samples of every step.
        fold: Whether products of weights are formed now where that is cheaper: they do not follow the weights.
    """

    def __init__(self, weights: LayerWeights, options: LayerOptions, batch_size: int, *, fold: bool) -> None:
        # what the library reads by address must live as long as this object, whatever becomes of the parameters
        held = [None if weight is None else weight.detach().contiguous() for weight in weights]
        weights = LayerWeights(*held)  # type: ignore[arg-type]
        library, reason = load()
        if library is None:
            raise RuntimeError(f"A stepper needs the C++ loop: {reason}.")
        self._step = library.rimlit_step
        self._step.argtypes = [ctypes.c_void_p] * 7
        heads, mechanisms = options.input_heads, options.num_mechanisms
        key_groups, input_size, keys_size = weights.input_key.shape
        value_groups, _, values_size = weights.input_value.shape
        _, size, num_gates = weights.cell_hidden.shape
        folded_key = folded_value = None
        two_products = (key_groups * input_size + mechanisms * size) * keys_size // heads
        if fold and mechanisms * input_size * size <= two_products:
            folded_key = _fold(weights.input_key, weights.input_query.mT / math.sqrt(keys_size // heads), heads)
        in_loop = value_groups * input_size * values_size + options.num_active * values_size * num_gates
        if fold and mechanisms * input_size * heads * num_gates <= in_loop:
            folded_value = _fold(weights.input_value, weights.cell_input, heads)
        new = weights.cell_hidden.new_empty
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
            cell_hidden=weights.cell_hidden,
            cell_bias=weights.cell_bias,
            communication=weights.communication,
            communication_output=weights.communication_output,
            communication_bias=weights.communication_bias,
        )
        setting = Setting(options, None, None, Keep(None, None), record=False, is_differentiated=False)
        call = _Call(setting, operands, threads=1)
        tape = call.empty_tape()
        outputs = Outputs(
            state,
            state,
            None,
            new(batch_size, 1, mechanisms, dtype=torch.bool),
            new(batch_size, 1, mechanisms, heads, 1),
            None,
        )
        self._arguments = call.arguments(outputs, tape)
        self._step_arguments = _StepArguments(
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
            _require_cpu({"inputs": inputs, "hidden": hidden, "memory": memory})
        with self._lock:
            failed = self._step(
                self._address,
                inputs.data_ptr(),
                hidden.data_ptr(),
                None if memory is None else memory.data_ptr(),
                features.data_ptr(),
                new_hidden.data_ptr(),
                None if new_memory is None else new_memory.data_ptr(),
            )
        if failed:
            raise MemoryError(_NO_MEMORY)
        return features, GRUState(new_hidden) if new_memory is None else LSTMState(new_hidden, new_memory)


def _fold(first: Tensor, second: Tensor, heads: int) -> Tensor:
    """Return (M, D, I·output) from (1 or M, D, I·inner) and (M, I·inner, output), head by head."""
    chains = [torch.matmul(a, b) for a, b in zip(first.chunk(heads, -1), second.chunk(heads, 1), strict=True)]
    return torch.cat(chains, dim=-1).detach().contiguous()
