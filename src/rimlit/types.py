"""Shared types and the dimension legend every shape comment in rimlit uses.

====  =============================================
B     batch
T     time
N     input slots
D     input size
M     mechanisms
K     active mechanisms
d     features of each mechanism
H     total hidden size, H = M·d
I     heads of the input attention
C     heads of the communication attention
G     gate pre-activations of a cell, G = 4·d
====  =============================================
"""

from collections import namedtuple
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from rimlit.errors import ConfigError

State: TypeAlias = Any
"""A NamedTuple, or nested tuple, of tensors whose first dimension is B."""

MaybeTensor: TypeAlias = Any
"""A tensor, or None where there is none: what decides that is written beside the field, not asked at every use."""


StateClass = TypeVar("StateClass", bound=type)


def loads_as_data(cls: StateClass) -> StateClass:
    """Class decorator: ``torch.load`` reads a saved state of this NamedTuple also with ``weights_only=True``.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> torch.save(GRUState(torch.ones(2)), file)
        >>> _ = file.seek(0)
        >>> torch.load(file, weights_only=True)
        GRUState(hidden=tensor([1., 1.]))
    """
    torch.serialization.add_safe_globals([cls])
    return cls


@loads_as_data
class LSTMState(NamedTuple):
    """State of LSTM-like backbones."""

    hidden: Tensor
    memory: Tensor


@loads_as_data
class GRUState(NamedTuple):
    """State of GRU-like backbones."""

    hidden: Tensor


@loads_as_data
class CarryingLSTMState(NamedTuple):
    """State of a RIM with LSTM cells that has a part which carries something through time."""

    hidden: Tensor
    memory: Tensor
    carried: Tensor


@loads_as_data
class CarryingGRUState(NamedTuple):
    """State of a RIM with GRU cells that has a part which carries something through time."""

    hidden: Tensor
    carried: Tensor


_CARRYING: dict[type, Any] = {LSTMState: CarryingLSTMState, GRUState: CarryingGRUState}


def carrying_type(state_type: Any) -> Any:
    """Return the NamedTuple with the fields of ``state_type`` and one more, ``carried``."""
    if state_type not in _CARRYING:
        fields = (*state_type._fields, "carried")
        _CARRYING[state_type] = namedtuple(f"Carrying{state_type.__name__}", fields)
    return _CARRYING[state_type]


def carried_of(state: State) -> Tensor | None:
    """Return what a part carries in ``state``, or None."""
    return getattr(state, "carried", None)


def with_carried(state: State, carried: Tensor | None) -> State:
    """Return ``state`` with one more field, ``carried``, where there is something to carry."""
    return state if carried is None else carrying_type(type(state))(*state, carried)


class SequenceBatch(NamedTuple):
    """A batch of sequences, padded at the end where their lengths differ."""

    inputs: Tensor  # (B, T), (B, T, D) or (B, T, N, D)
    targets: Tensor  # (B, T) or whatever the task predicts
    lengths: Tensor  # (B,): steps that count; the rest is padding

    @property
    def mask(self) -> Tensor:
        """Steps that are not padding: (B, T) bool."""
        steps = torch.arange(self.inputs.shape[1], device=self.lengths.device)
        return steps < self.lengths[:, None]


class MechanismsActivity(Protocol):
    """What the mechanisms of one layer did in a sequence."""

    @property
    def active(self) -> Tensor:
        """Which were active: (B, T, M) bool."""


@runtime_checkable
class Watched(Protocol):
    """A backbone with mechanisms, whose activity can be read while it runs.

    Callbacks and tasks ask for this protocol and never for a class: any backbone that has these members is drawn
    and counted. A backbone whose layers have different numbers of mechanisms lists them in a further attribute,
    ``mechanisms_of_layers``.
    """

    num_layers: int
    num_mechanisms: int

    @property
    def is_watched(self) -> bool:
        """Whether the activity of forward passes is being recorded."""

    def watch(self, hook: Callable[[tuple[MechanismsActivity, ...]], None]) -> AbstractContextManager[None]:
        """Call ``hook`` with the activity of every layer in each forward inside the ``with`` block."""

    def record_activity(self) -> AbstractContextManager[Sequence[MechanismsActivity]]:
        """Yield a list to which each forward inside the ``with`` block adds the activity of every layer."""

    def unwatched(self) -> AbstractContextManager[None]:
        """Record no activity inside the ``with`` block."""


def mechanisms_of_layers(backbone: Watched) -> list[int]:
    """Return the number of mechanisms of each layer."""
    same = [backbone.num_mechanisms] * backbone.num_layers
    return list(getattr(backbone, "mechanisms_of_layers", same))


@runtime_checkable
class Looped(Protocol):
    """A backbone whose steps run in one of several time loops."""

    backend: str

    def resolve_backend(self, num_slots: int = 1, device: torch.device | None = None) -> tuple[str, str]:
        """Return the name of the loop that a forward takes now, or would take on ``device``, and why."""


def map_state(function: Callable[..., Tensor], *states: State) -> State:
    """Apply ``function`` to the tensors at the same place in each of ``states``."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    parts = [map_state(function, *parts) for parts in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def flat_state(state: State) -> list[Tensor]:
    """Return the tensors of ``state`` in the order in which :func:`map_state` visits them."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in flat_state(part)]


def state_names(state: State, prefix: str = "") -> list[str]:
    """Return a name for each tensor of ``state``, in the order of :func:`flat_state`.

    Example:
        >>> state_names(LSTMState(torch.ones(1), torch.ones(1)))
        ['hidden', 'memory']
    """
    if isinstance(state, Tensor):
        return [prefix or "state"]
    parts = zip(getattr(state, "_fields", range(len(state))), state, strict=True)
    return [
        name for field, part in parts for name in state_names(part, f"{prefix}_{field}" if prefix else str(field))
    ]


def conform_state(state: Any, like: State, layout: str = "batch first") -> State:
    """Return ``state`` as ``like`` is built, for states that a user passes in.

    Tuples and lists stand for NamedTuples, a bare tensor for a state of one field; floating-point tensors take the
    type of ``like``.

    Args:
        state: What was given.
        like: A state of the same sizes, such as the initial one.
        layout: Shapes of its tensors in words, for the message.

    Raises:
        ConfigError: The number of fields, a shape, a device or a kind of number differs.
    """

    def fit(part: Any, like: State) -> State:
        if isinstance(like, Tensor):
            if not isinstance(part, Tensor) or part.shape != like.shape or part.device != like.device:
                raise mismatch()
            if part.dtype == like.dtype:
                return part
            if not (part.is_floating_point() and like.is_floating_point()):
                raise mismatch()
            return part.to(like.dtype)
        parts = (part,) if isinstance(part, Tensor) and len(like) == 1 else part
        if not isinstance(parts, tuple | list) or len(parts) != len(like):
            raise mismatch()
        fitting = map(fit, parts, like)
        return type(like)(*fitting) if hasattr(like, "_fields") else type(like)(fitting)

    def mismatch() -> ConfigError:
        return ConfigError(f"state must be {_describe(like)}, {layout}; got {_describe(state)}.")

    return fit(state, like)


def _describe(state: Any) -> str:
    if isinstance(state, Tensor):
        place = "" if state.is_cpu else f" on {state.device}"
        return f"{str(state.dtype).removeprefix('torch.')} {tuple(state.shape)}{place}"
    if not isinstance(state, tuple | list):
        return f"a {type(state).__name__}"
    names = [f"{name}=" for name in getattr(state, "_fields", ())] or [""] * len(state)
    name = type(state).__name__ if hasattr(state, "_fields") else ""
    return f"{name}({', '.join(name + _describe(part) for name, part in zip(names, state, strict=True))})"


def detach_state(state: State) -> State:
    """Return ``state`` cut from the graph that computed it."""
    return map_state(Tensor.detach, state)


def replace_state(state: State, replacement: State, where: Tensor) -> State:
    """Return ``replacement`` for the samples that ``where`` (B,) marks, ``state`` for the others."""
    mask = where

    def choose(old: Tensor, new: Tensor) -> Tensor:
        nonlocal mask
        if mask.dim() != old.dim():  # most states are of one shape
            mask = where.view(-1, *[1] * (old.dim() - 1))
        return torch.where(mask, new, old)

    return map_state(choose, state, replacement)
