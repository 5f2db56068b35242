"""Loops replayed as CUDA graphs: the host launches thousands of small kernels at once.

A time step is so small that on a GPU launching its kernels takes longer than running them. A graph reads and
writes where it was recorded, so that inputs are copied in and results out: once per sequence, where it saves a
launch per kernel and step. Only a loop's pass over the steps is recorded, without projections, dropout, autograd.

Not run on a GPU yet. What calls CUDA (``run`` beyond its first lines, ``_capture``) is not tested on the CPU.
"""

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch

from rimlit.kernels.autograd import Gradients, Operands, Outputs, TapedLoop
from rimlit.kernels.layer import LayerInputs, LayerOptions
from rimlit.types import MaybeTensor

log = logging.getLogger(__name__)

Tensors = tuple[MaybeTensor, ...]
Function = Callable[[Any, Tensors], Tensors]

MAX_GRAPHS = 64
MEMORY_SHARE = 1 / 4  # of a GPU's memory, for what graphs read and return
PATIENCE = 1000  # calls


class Recorded:
    """A loop that gives what ``loop`` gives, by way of :func:`run`.

    Args:
        loop: Depends on its arguments only and waits for nothing on the host. Of the outputs its derivative reads
            who was active and how far, the attention and the relevance. The same object for every call: graphs
            are found by it.
    """

    def __init__(self, loop: TapedLoop) -> None:
        self.loop = loop

    def forward(
        self, options: LayerOptions, inputs: LayerInputs, operands: Operands, is_taped: bool
    ) -> tuple[Outputs, tuple[MaybeTensor, ...]]:
        """Run the forward pass; see :class:`rimlit.kernels.autograd.TapedLoop`."""
        results = run(_forward, _Plan(self.loop, options, inputs.record, is_taped), _packed(inputs, operands))
        count = len(Outputs._fields)
        return Outputs(*results[:count]), results[count:]

    def backward(
        self,
        options: LayerOptions,
        inputs: LayerInputs,
        operands: Operands,
        outputs: Outputs,
        tape: tuple[MaybeTensor, ...],
        gradients: Gradients,
    ) -> Operands:
        """Run the backward pass; see :class:`rimlit.kernels.autograd.TapedLoop`."""
        # what was recorded is of the forward pass: one graph of the backward pass serves both
        plan = _Plan(self.loop, options, record=False, is_taped=True)
        more = (
            *gradients,
            outputs.active,
            outputs.attention,
            outputs.gate,
            outputs.relevance,
            outputs.total,
            *tape,
        )
        return Operands(*run(_backward, plan, (*_packed(inputs, operands), *more)))


class _Plan(NamedTuple):
    """What of a pass is not a tensor."""

    loop: TapedLoop
    options: LayerOptions
    record: bool
    is_taped: bool


def _packed(inputs: LayerInputs, operands: Operands) -> Tensors:
    """Return all tensors that a loop reads, tokens looked up."""
    return *operands, inputs.resets, inputs.keep_input, inputs.keep_communication, inputs.offset


def _unpacked(plan: _Plan, tensors: Tensors) -> tuple[LayerInputs, Operands, Tensors]:
    """Return what :func:`_packed` was given, and the tensors behind."""
    count = len(Operands._fields)
    resets, keep_input, keep_communication, offset = tensors[count : count + 4]
    nothing: MaybeTensor = None
    inputs = LayerInputs(
        nothing, nothing, nothing, nothing, resets, keep_input, keep_communication, offset, plan.record
    )
    return inputs, Operands(*tensors[:count]), tensors[count + 4 :]


def _forward(plan: _Plan, tensors: Tensors) -> Tensors:
    inputs, operands, _ = _unpacked(plan, tensors)
    outputs, tape = plan.loop.forward(plan.options, inputs, operands, plan.is_taped)
    return (*outputs, *tape)


def _backward(plan: _Plan, tensors: Tensors) -> Tensors:
    inputs, operands, more = _unpacked(plan, tensors)
    from_features, from_hidden, from_memory, from_relevance, *read = more
    active, attention, gate, relevance, total, *tape = read
    nothing: MaybeTensor = None
    outputs = Outputs(nothing, nothing, nothing, active, attention, nothing, nothing, gate, relevance, total)
    gradients = from_features, from_hidden, from_memory, from_relevance
    return plan.loop.backward(plan.options, inputs, operands, outputs, tuple(tape), gradients)


def run(function: Function, plan: Hashable, tensors: Tensors) -> Tensors:
    """Return ``function(plan, tensors)``, on a GPU by way of a graph from the second call of a kind on.

    A kind is ``function``, ``plan``, shapes and types, the stream, and how precise products are to be. Each graph
    keeps what it reads and returns; the scratch in between is common to the graphs of a stream. All graphs
    together keep at most a quarter of the GPU's memory and are at most 64. One that was not used for 1000 calls
    makes room for another. Where there is no room the kernels are launched one by one, and so they are where
    recording fails and where the caller records a graph itself.

    Args:
        function: Depends on its arguments only, and waits for nothing on the host.
        plan: What is not a tensor.
        tensors: What it reads, in any layout; a graph reads contiguous copies.
    """
    device = next(tensor.device for tensor in tensors if tensor is not None)
    if device.type != "cuda":
        return function(plan, tensors)
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return function(plan, tensors)
        limit = int(MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory)
        return _graphs.run(function, plan, tensors, torch.cuda.current_stream(), limit)


def clear() -> None:
    """Forget all graphs and free what they keep."""
    _graphs.clear()


class _Graphs:
    """The graphs that there are, and what may become one."""

    def __init__(self) -> None:
        self.recorded: OrderedDict[Hashable, _Graph] = OrderedDict()  # the one that was longest unused first
        self.launched: OrderedDict[Hashable, int] = OrderedDict()  # seen once: bytes that its graph would keep
        self.unfit: set[Hashable] = set()
        self.num_calls = 0
        # the backward runs in a thread of its own, and a graph's tensors serve one call at a time
        self.lock = threading.Lock()

    def run(self, function: Function, plan: Hashable, tensors: Tensors, stream: Any, limit: int) -> Tensors:
        """See :func:`run`; ``limit`` in bytes."""
        # two streams in one graph's tensors would overtake each other
        key = (function, plan, stream, *_precision(), *(_kind(tensor) for tensor in tensors))
        with self.lock:
            self.num_calls += 1
            if (
                key not in self.recorded and key in self.launched
            ):  # most shapes that are seen once never occur again
                self._record(key, function, plan, tensors, stream, limit)
            if (graph := self.recorded.get(key)) is not None:
                graph.last_call = self.num_calls
                self.recorded.move_to_end(key)
                return graph(tensors)
        results = function(plan, tensors)
        with self.lock:
            self.launched[key] = _num_bytes(*tensors, *results)
            if len(self.launched) > PATIENCE:
                self.launched.popitem(last=False)
        return results

    def clear(self) -> None:
        with self.lock:
            self.recorded.clear()
            self.launched.clear()
            self.unfit.clear()

    def _record(
        self, key: Hashable, function: Function, plan: Hashable, tensors: Tensors, stream: Any, limit: int
    ) -> None:
        if self.unfit & {key, (function, plan)} or not self._make_room(self.launched[key], limit):
            return
        pool = next((graph.pool for graph in self.recorded.values() if graph.stream == stream), None)
        try:
            self.recorded[key] = _Graph(function, plan, tensors, stream, pool)
        except torch.OutOfMemoryError:  # smaller ones may fit
            self.unfit.add(key)
            log.warning("The GPU has no memory for a CUDA graph of the time loop, which is launched step by step.")
        except RuntimeError as error:
            self.unfit.add((function, plan))
            log.warning("The time loop cannot be recorded in a CUDA graph and is launched step by step: %s", error)
        del self.launched[key]

    def _make_room(self, num_bytes: int, limit: int) -> bool:
        if num_bytes > limit:
            return False
        kept = sum(graph.num_bytes for graph in self.recorded.values())
        while len(self.recorded) >= MAX_GRAPHS or kept + num_bytes > limit:
            oldest = next(iter(self.recorded.values()))
            # lengths that take turns would otherwise be recorded over and over, which is slower than launching
            if self.num_calls - oldest.last_call <= PATIENCE:
                return False
            self.recorded.popitem(last=False)
            kept -= oldest.num_bytes
        return True


_graphs = _Graphs()


class _Graph:
    """A function on its own tensors: inputs are copied to them, and results from them."""

    def __init__(self, function: Function, plan: Hashable, tensors: Tensors, stream: Any, pool: Any) -> None:
        self.stream, self.last_call = stream, 0
        # tensors born in inference mode could not be written outside it
        with torch.inference_mode(False), torch.no_grad():
            self.inputs = tuple(
                None if tensor is None else tensor.detach().clone(memory_format=torch.contiguous_format)
                for tensor in tensors
            )
            function(plan, self.inputs)  # kernels are compiled and loaded here: while recording they may not be
            self.results, self.replay, self.pool = _capture(function, plan, self.inputs, stream, pool)
        self.num_bytes = _num_bytes(*self.inputs, *self.results)

    def __call__(self, tensors: Tensors) -> Tensors:
        with torch.no_grad():
            for kept, tensor in zip(self.inputs, tensors, strict=True):
                if kept is not None:
                    kept.copy_(tensor)
            self.replay()
            return tuple(None if result is None else result.clone() for result in self.results)


def _capture(
    function: Function, plan: Hashable, inputs: Tensors, caller: Any, pool: Any
) -> tuple[Tensors, Callable[[], None], Any]:
    """Return where results will be, what computes them from ``inputs`` as they then are, and its memory pool."""
    graph = torch.cuda.CUDAGraph()
    stream = _recording_stream(torch.cuda.current_device(), caller)
    # other threads, such as a loader that pins memory, may continue
    recording = torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local")
    # torch leaves its stream as the current one if recording fails: the outer context takes it back
    with torch.cuda.stream(torch.cuda.current_stream()), recording:
        results = function(plan, inputs)
    return results, graph.replay, graph.pool()


@functools.cache
def _recording_stream(device: int, caller: Any) -> torch.cuda.Stream:
    # torch's own belongs to the first GPU that was recorded on; and cuBLAS has a workspace for each stream, which
    # graphs of two callers, replayed at once, may not share
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _precision() -> tuple[str, bool]:
    return torch.backends.cuda.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()


def _kind(tensor: MaybeTensor) -> Hashable:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def _num_bytes(*tensors: MaybeTensor) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
