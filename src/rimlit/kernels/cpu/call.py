"""One call of the C++ library (``loop.cpp``): sizes, tensors in the layout that it reads, and their addresses."""

import ctypes
import functools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rimlit.kernels.autograd import Gradients, Operands, Outputs
from rimlit.kernels.cpu import memory, tiles
from rimlit.kernels.cpu.build import load
from rimlit.kernels.layer import LayerInputs, LayerOptions
from rimlit.types import MaybeTensor

OUTPUTS = ("linear", "tanh", "gated", "cell_gate")
MARGINS = ("none", "scores", "probabilities", "best")
DTYPES = (torch.float32, torch.float64)

_NUMBERS = {"Int": ctypes.c_int64, "double": ctypes.c_double}
_TAPE_DTYPES = {"place": torch.int32, "start": torch.int32}


@functools.cache
def structure(name: str) -> type[ctypes.Structure]:
    """Return the library's struct ``name``, built from the text of its declarations in ``arguments.h``.

    Raises:
        RuntimeError: The C++ loop is not available, or its struct has another size than this one.
    """
    library = loaded()
    declarations, size = getattr(library, f"rimlit_{name}_fields"), getattr(library, f"rimlit_{name}_size")
    declarations.restype, size.restype = ctypes.c_char_p, ctypes.c_int64
    fields: list[tuple[str, Any]] = []
    for declaration in filter(None, map(str.strip, declarations().decode().split(";"))):
        kind = ctypes.c_void_p if "*" in declaration else _NUMBERS[declaration.split()[0]]
        fields += [(field, kind) for field in re.findall(r"(\w+)\s*(?:,|$)", declaration)]
    # without a dict, so that a name which is not a field is an AttributeError
    found = type(name, (ctypes.Structure,), {"_fields_": fields, "__slots__": ()})
    if ctypes.sizeof(found) != size():
        raise RuntimeError(
            f"The C++ loop's {name} has {size()} bytes and its declarations {ctypes.sizeof(found)}."
        )
    return found


def loaded() -> ctypes.CDLL:
    """Return the library, or raise a RuntimeError that says why there is none."""
    library, reason = load()
    if library is None:
        raise RuntimeError(f"The C++ loop (backend='cpu') cannot run: {reason}.")
    return library


def require_success(code: int) -> None:
    """Raise what the library reports where ``code``, which it returned, is not 0.

    Raises:
        MemoryError: It found no memory for its workspace.
        RuntimeError: Anything else, in the words of the C++ exception.
    """
    if code == 0:
        return
    report = loaded().rimlit_error
    report.restype = ctypes.c_char_p
    if reason := report().decode(errors="replace"):
        raise RuntimeError(f"The C++ time loop failed: {reason}")
    raise MemoryError("The C++ time loop found no memory for its workspace.")


class RowTape(NamedTuple):
    """What the derivative reads. Rows are (mechanism, sample) pairs that were computed, by step and thread."""

    gates: Tensor  # (T, rows, 4·d), after their activation
    old_memory: MaybeTensor  # (T, rows, d)
    squashed: MaybeTensor  # (T, rows, d): tanh of the new memory
    ahead: MaybeTensor  # (T, rows, I·gates): values times the cell's weights, where these are multiplied ahead
    projected: MaybeTensor  # (rows, C·(key + key + value)): once per state that was read
    weights: MaybeTensor  # (T, B, C, K, M)
    read: MaybeTensor  # (T, K·B, C·value)
    output: MaybeTensor  # (T, K·B, d or 2·d), after their activation
    moved: MaybeTensor  # (T, K·B, d): candidate and what it read, less the old state, where there are gates
    place: MaybeTensor  # (T, B, M): the rows of ``projected`` that a step reads
    start: MaybeTensor  # (threads, T + 1): its first row that a step computed
    threads: Tensor  # (1,): how many wrote this


class Call:
    """One call of the library: sizes, tensors in the layout it reads, and their addresses."""

    def __init__(
        self,
        options: LayerOptions,
        inputs: LayerInputs,
        operands: Operands,
        threads: int | None = None,
        *,
        is_taped: bool = True,
        later_are_done: bool = False,
        earlier_follow: bool = False,
    ) -> None:
        self.options, self.inputs, self.operands = options, inputs, operands
        keys, values = operands.keys, operands.values
        self.batch, self.mechanisms, self.size = operands.hidden.shape
        folded_keys, folded_values = operands.input_query is None, operands.cell_input is None
        self.steps = keys.shape[1] if inputs.tokens is None else inputs.tokens.shape[1]
        self.input_heads = options.input_heads
        self.slots = 1 if folded_keys else keys.shape[3]
        self.heads = options.communication_heads
        self.threads = max(1, min(torch.get_num_threads(), self.batch)) if threads is None else threads
        self.value = 0
        if operands.communication is not None:
            self.value = operands.communication.shape[-1] // self.heads - 2 * options.communication_key_size
        self.is_taped = is_taped
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
            "vocabulary": 0 if inputs.tokens is None else keys.shape[1],
            "threads": self.threads,
            **_strides("key", keys, inputs),
            **_strides("value", values, inputs),
            "features_stride": 0,
            "from_features_stride": 0,
            "projected_rows": 0,
            "is_gru": options.cell == "gru",
            "across_mechanisms": options.selection == "across_mechanisms",
            "reads_candidates": options.inactive == "candidate",
            "output_kind": OUTPUTS.index(options.communication_output),
            "margin": MARGINS.index(options.margin) if options.has_margin else 0,
            "graded": options.graded,
            "dynamic": options.dynamic,
            "width": options.width,
            "soft_cap": options.soft_cap,
            **_offset_strides(inputs.offset),
            "keys_hold_query": folded_keys,
            "values_hold_cell": folded_values,
            "values_ahead": self.values_ahead,
            "is_taped": self.is_taped,
            "is_double": operands.hidden.dtype == torch.float64,
            "later_are_done": later_are_done,
            "earlier_follow": earlier_follow,
        }

    def _multiplies_ahead(self) -> bool:
        """Return whether the loop multiplies values by the cell's weights on tiles, for many steps at once.

        Forward this is done for all mechanisms, backward for the active ones; a row takes about half as long as
        in the loop.
        """
        operands, options = self.operands, self.options
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

    def empty_outputs(self, features: Tensor) -> Outputs:
        """Return memory for the outputs beside ``features``."""
        options, new = self.options, self.operands.hidden.new_empty
        is_recorded = self.inputs.record and self.heads > 0
        batch_size, steps, mechanisms, size = self.batch, self.steps, self.mechanisms, self.size
        return Outputs(
            features=features,
            hidden=new(batch_size, mechanisms, size),
            memory=None if self.operands.memory is None else new(batch_size, mechanisms, size),
            active=new(batch_size, steps, mechanisms, dtype=torch.bool),
            attention=new(batch_size, steps, mechanisms, self.input_heads, self.slots),
            null_attention=new(batch_size, steps, mechanisms) if self.inputs.record and options.has_null else None,
            communication=new(batch_size, steps, mechanisms, mechanisms).zero_() if is_recorded else None,
            gate=new(batch_size, steps, mechanisms) if options.is_gated else None,
            relevance=new(batch_size, steps, mechanisms) if options.keeps_relevance else None,
            total=new(batch_size, steps, mechanisms, self.input_heads) if options.has_totals else None,
        )

    def empty_tape(self) -> RowTape:
        """Return a tape of every step, or of one where nothing reads it afterwards."""
        parts: dict[str, MaybeTensor] = dict.fromkeys(RowTape._fields)
        parts |= memory.empty_together(self._tape_shapes(), _TAPE_DTYPES, self.operands.hidden.dtype)
        return RowTape(**parts | {"threads": torch.tensor([self.threads])})

    def _tape_shapes(self) -> dict[str, tuple[int, ...]]:
        options = self.options
        steps = self.steps if self.is_taped else 1
        computed = self.batch * (self.mechanisms if options.inactive == "candidate" else options.num_active)
        active = self.batch * options.num_active
        is_lstm, heads, size = options.cell == "lstm", self.heads, self.size
        output_size = {"linear": 0, "gated": 2 * size}.get(options.communication_output, size)
        shapes: dict[str, tuple[int, ...]] = {"gates": (steps, computed, 4 * size)}
        if is_lstm:
            shapes |= {"old_memory": (steps, computed, size), "squashed": (steps, computed, size)}
        if self.values_ahead and self.is_taped:
            shapes["ahead"] = steps, computed, self.input_heads * self.operands.cell_input.shape[-1]
        if heads and self.is_taped:
            # an inactive mechanism is projected again only after a step in which it was active
            per_step = min(self.mechanisms, 2 * options.num_active)
            if self.inputs.resets is not None or options.inactive == "candidate":
                per_step = self.mechanisms
            per_sample = self.mechanisms + (steps - 1) * per_step
            shapes |= {
                "projected": (self.batch * per_sample, options.communication_heads * self._head_size()),
                "place": (steps, self.batch, self.mechanisms),
                "start": (self.threads, steps + 1),
            }
        if heads:
            shapes |= {
                "weights": (steps, self.batch, heads, options.num_active, self.mechanisms),
                "read": (steps, active, heads * self.value),
            }
        if heads and output_size:
            shapes["output"] = steps, active, output_size
        if options.is_gated:
            shapes["moved"] = steps, active, size
        return shapes

    def _head_size(self) -> int:
        return 2 * self.options.communication_key_size + self.value

    def run(self, function: str, *arguments: Any) -> None:
        """Call a function of the library on :meth:`arguments`; raises as :func:`require_success`."""
        require_success(getattr(loaded(), function)(ctypes.byref(self.arguments(*arguments))))

    def arguments(
        self,
        outputs: Outputs,
        tape: RowTape,
        found: Operands | None = None,
        others: Mapping[str, Tensor] = MappingProxyType({}),
        gradients: Gradients | tuple[None, None, None, None] = (None, None, None, None),
    ) -> ctypes.Structure:
        """Return sizes and addresses as the library reads them; this object keeps its tensors alive."""
        inputs = self.inputs
        tensors: dict[str, MaybeTensor] = {
            **self.operands._asdict(),
            "tokens": None if inputs.tokens is None else _contiguous(inputs.tokens.t(), torch.int64),
            "resets": None if inputs.resets is None else inputs.resets.contiguous(),
            "keep_input": _contiguous(inputs.keep_input, self.operands.hidden.dtype),
            "keep_communication": _contiguous(inputs.keep_communication, self.operands.hidden.dtype),
            "features": outputs.features,
            "last_hidden": outputs.hidden,
            "last_memory": outputs.memory,
            "is_active": outputs.active,
            "attention": outputs.attention,
            "null_attention": outputs.null_attention,
            "activity": outputs.communication,
            "gate": outputs.gate,
            "relevance": outputs.relevance,
            "total": outputs.total,
            "offset": inputs.offset,
            **{name: tensor for name, tensor in tape._asdict().items() if name != "threads"},
        }
        self.integers["features_stride"] = outputs.features.stride(0)
        self.integers["projected_rows"] = 0 if tape.projected is None else len(tape.projected) // self.batch
        features, hidden, memory, relevance = gradients
        if features is not None:
            # the gradient of a part of a sequence is a part of that of the whole
            features = features if features[0].is_contiguous() else features.contiguous()
            self.integers["from_features_stride"] = features.stride(0)
            tensors["from_features"] = features
        whole = {"from_hidden": hidden, "from_memory": memory, "from_relevance": relevance}
        for name, gradient in whole.items():
            tensors[name] = None if gradient is None else gradient.contiguous()
        if found is not None:
            tensors |= {f"into_{name}": tensor for name, tensor in found._asdict().items()}
            tensors |= {f"others_{name}": tensor for name, tensor in others.items()}
        require_cpu(tensors)
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
        self.alive = tensors
        return structure("arguments")(**self.integers, **pointers)


def _offset_strides(offset: MaybeTensor) -> dict[str, int]:
    """Return how far apart steps, mechanisms and samples of the ranking's offset lie; 0 where one serves all."""
    steps = ("offset_step_stride", "offset_mechanism_stride", "offset_row_stride")
    if offset is None:
        return dict.fromkeys(steps, 0)
    return {
        name: 0 if size == 1 else stride
        for name, size, stride in zip(steps, offset.shape, offset.stride(), strict=True)
    }


def _strides(name: str, tensor: Tensor, inputs: LayerInputs) -> dict[str, int]:
    """Return how far apart groups, steps and samples of keys or values lie; or groups and tokens."""
    group, step, row = tensor.stride()[:3]
    if inputs.tokens is not None:
        step, row = 0, step
    return {f"{name}_group_stride": group, f"{name}_step_stride": step, f"{name}_row_stride": row}


def arranged(operands: Operands, inputs: LayerInputs) -> Operands:
    """Return operands that are contiguous; of keys and values rows in any order do, without gaps between them."""

    def in_rows(tensor: Tensor) -> Tensor:
        leading = 2 if inputs.tokens is not None else 3
        outer = sorted(range(leading), key=tensor.stride, reverse=True)
        in_order = tensor.permute(*outer, *range(leading, tensor.dim()))
        return tensor if inputs.tokens is None and in_order.is_contiguous() else tensor.contiguous()

    contiguous: list[MaybeTensor] = [None if tensor is None else tensor.contiguous() for tensor in operands[2:]]
    return Operands(in_rows(operands.keys), in_rows(operands.values), *contiguous)


def require_cpu(tensors: Mapping[str, MaybeTensor]) -> None:
    """Raise a ValueError that names the first tensor which is not on the CPU."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_cpu:
            raise ValueError(f"backend='cpu' reads tensors on the CPU; got {name} on {tensor.device}.")


def _contiguous(tensor: MaybeTensor, dtype: torch.dtype) -> MaybeTensor:
    return None if tensor is None else tensor.to(dtype).contiguous()
