"""Many small kernels launched at once: a function of tensors, recorded in a CUDA graph when its shapes come back.

A graph reads and writes where it was recorded, so that inputs are copied in and results out: once per sequence,
where it saves the host a launch per kernel and step. Each graph keeps its inputs, results and scratch.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

from rimlit.kernels.autograd import MaybeTensor

log = logging.getLogger(__name__)

Tensors = tuple[MaybeTensor, ...]
Function = Callable[[Any, Tensors], Tensors]

MAX_GRAPHS = 16  # the one that was longest unused makes room

_graphs: OrderedDict[Hashable, "_Graph | None"] = OrderedDict()  # None: seen once, or it cannot be recorded
_unfit: set[Hashable] = set()
_lock = (
    threading.Lock()
)  # the backward runs in a thread of its own, and a graph's tensors serve one call at a time


def run(function: Function, plan: Hashable, tensors: Tensors) -> Tensors:
    """Return ``function(plan, tensors)``, by way of a graph from the second call of a kind on.

    Where no graph can be recorded (no GPU, or the caller records one itself) the kernels are launched one by one.

    Args:
        function: Depends on its arguments only, and waits for nothing on the host.
        plan: What is no tensor.
        tensors: What it gets, made contiguous.
    """
    device = next(tensor.device for tensor in tensors if tensor is not None)
    if device.type != "cuda":
        return function(plan, _contiguous(tensors))
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return function(plan, _contiguous(tensors))
        with _lock:
            graph = _find(function, plan, tensors)
            return function(plan, _contiguous(tensors)) if graph is None else graph(tensors)


def clear() -> None:
    """Forget all graphs and free what they keep."""
    with _lock:
        _graphs.clear()
        _unfit.clear()


def _find(function: Function, plan: Hashable, tensors: Tensors) -> "_Graph | None":
    # two streams in one graph's tensors would overtake each other
    key = (function, plan, torch.cuda.current_stream(), *(_kind(tensor) for tensor in tensors))
    if key in _unfit:
        return None
    if key not in _graphs:  # most shapes that are seen once never come back
        graph = None
    elif (graph := _graphs[key]) is None:
        try:
            graph = _Graph(function, plan, tensors)
        except RuntimeError as error:
            _unfit.add(key)
            log.warning("The time loop cannot be recorded in a CUDA graph and is launched step by step: %s", error)
    _graphs[key] = graph
    _graphs.move_to_end(key)
    if len(_graphs) > MAX_GRAPHS:
        _graphs.popitem(last=False)
    return graph


def _kind(tensor: MaybeTensor) -> Hashable:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def _contiguous(tensors: Tensors) -> Tensors:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


class _Graph:
    def __init__(self, function: Function, plan: Hashable, tensors: Tensors) -> None:
        # tensors born in inference mode could not be written outside it
        with torch.inference_mode(False), torch.no_grad():
            self.inputs = tuple(
                None if tensor is None else tensor.detach().clone(memory_format=torch.contiguous_format)
                for tensor in tensors
            )
            function(plan, self.inputs)  # kernels are compiled here: while recording they may not be
            self.graph = torch.cuda.CUDAGraph()
            # other threads, such as a loader that pins memory, may go on
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.results = function(plan, self.inputs)

    def __call__(self, tensors: Tensors) -> Tensors:
        with torch.no_grad():
            for kept, tensor in zip(self.inputs, tensors, strict=True):
                if kept is not None:
                    kept.copy_(tensor)
            self.graph.replay()
            return tuple(None if result is None else result.clone() for result in self.results)
