"""The context in which a loop is called: tracers, transforms, autocast; and whether weights are plain tensors."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch


def is_autocast_enabled(device_type: str) -> bool:
    """Return whether products on devices of this type are computed in a lower precision."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context in which products on devices of this type keep the precision of their factors."""
    return (
        torch.autocast(device_type, enabled=False)
        if is_autocast_enabled(device_type)
        else contextlib.nullcontext()
    )


def is_traced() -> bool:
    """Return whether a graph for other inputs is being recorded: by torch.export or torch.jit.trace."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def is_transformed() -> bool:
    """Return whether a transform of torch.func is active."""
    # under torch.compile, a transform that the compiler cannot trace calls this again outside the trace
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_symbolic() -> bool:
    """Return whether tensors may have no values to read: under a tracer, torch.compile or torch.func."""
    return is_traced() or torch.compiler.is_compiling() or is_transformed()


def find_tracer(device: torch.device) -> str | None:
    """Return the name of an active tracer or transform, under which only the eager loop runs, or None."""
    if device.type == "meta":
        return "the meta device"
    if is_traced():
        return "torch.export" if torch.compiler.is_exporting() else "torch.jit.trace"
    return "torch.func" if is_transformed() else None


def weights_in(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return what ``module.parameters()`` gives, tied ones each time, in a quarter of its time.

    Example:
        >>> [weight.shape for weight in weights_in(torch.nn.Linear(2, 3))]
        [torch.Size([3, 2]), torch.Size([3])]
    """
    weights: list[torch.Tensor] = [weight for weight in module._parameters.values() if weight is not None]
    for inner in module._modules.values():
        if inner is not None:
            weights += weights_in(inner)
    return weights


def first_weight(module: torch.nn.Module) -> torch.Tensor | None:
    """Return the first of :func:`weights_in`, or None where there is none."""
    for weight in module._parameters.values():
        if weight is not None:
            return weight
    found = (first_weight(inner) for inner in module._modules.values() if inner is not None)
    return next((weight for weight in found if weight is not None), None)


def is_plain(weight: torch.Tensor) -> bool:
    """Return whether a weight's data pointer can be read, unlike that of a shard or a fake tensor."""
    kind = type(weight)
    return kind is torch.nn.Parameter or kind is torch.Tensor or issubclass(kind, torch.nn.Parameter)
