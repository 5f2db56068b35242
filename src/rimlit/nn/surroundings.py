"""What surrounds a call of a loop: tracers, transforms, autocast; and whether weights are plain tensors."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch


def is_autocast_enabled(device_type: str) -> bool:
    """Return whether products on devices of this type are computed in a lower precision."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context in which products on devices of this type keep the precision of their factors."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def is_traced() -> bool:
    """Return whether a graph is made that is to serve other inputs than these: torch.export or torch.jit.trace."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def find_tracer(device: torch.device) -> str | None:
    """Return the name of what follows tensors through Python code now, as the eager loop allows, if anything."""
    if device.type == "meta":
        return "the meta device"
    if is_traced():
        return "torch.export" if torch.compiler.is_exporting() else "torch.jit.trace"
    # inside torch.compile a transform comes back here once the compiler has given up on it
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "torch.func"
    return None


def is_plain(weight: torch.Tensor) -> bool:
    """Return whether a weight's numbers lie where its address says, unlike those of a shard or a fake tensor."""
    kind = type(weight)
    return kind is torch.nn.Parameter or kind is torch.Tensor or issubclass(kind, torch.nn.Parameter)
