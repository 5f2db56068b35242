"""What a RIM layer's time loop gets and returns, and what a compiled loop has to know about the layer's parts."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rimlit.mechanisms import (
    AcrossMechanisms,
    AttentionCommunication,
    GRUDynamics,
    GumbelTopK,
    LeastNull,
    LSTMDynamics,
    NoCommunication,
    RIMLayer,
)
from rimlit.mechanisms.selection import Rule
from rimlit.types import MaybeTensor, State, loads_as_data


@dataclass(frozen=True)
class LayerOptions:
    """What loops that do not call the parts know of them: the parts' arguments (meanings: there)."""

    cell: str  # lstm, gru
    num_mechanisms: int
    num_active: int
    input_heads: int
    selection: str  # least_null, across_mechanisms
    margin: str  # none, scores, probabilities
    width: float
    graded: bool
    dynamic: bool
    soft_cap: float  # 0: none
    communication_heads: int  # 0: mechanisms do not communicate
    communication_key_size: int
    inactive: str  # preserved, candidate
    communication_output: str  # linear, tanh, gated, cell_gate
    project_in_bf16: bool
    gives_relevance: bool  # with a gradient, for a penalty

    @property
    def rule(self) -> Rule:
        """The arguments of the competition against null."""
        return Rule(self.num_mechanisms, self.num_active, self.margin, self.width, self.graded, self.dynamic)

    @property
    def has_margin(self) -> bool:
        """Whether the gates of winners depend on their lead."""
        return self.rule.has_margin

    @property
    def has_null(self) -> bool:
        """Whether mechanisms attend to a null slot beside the input's."""
        return self.selection == "least_null"

    @property
    def has_totals(self) -> bool:
        """Whether the derivative of the relevance reads the heads' scores one by one."""
        return self.keeps_relevance and self.input_heads > 1

    @property
    def keeps_relevance(self) -> bool:
        """Whether the relevance is returned or the derivative of the gates reads it."""
        return self.is_gated or self.gives_relevance

    @property
    def is_gated(self) -> bool:
        """Whether active mechanisms may move a part of the way."""
        return self.graded or self.has_margin


class UnknownPartError(ValueError):
    """A layer has a part that only the loops which call parts can run."""


KNOWN_PARTS: dict[str, tuple[type, ...]] = {
    "selection": (LeastNull, GumbelTopK, AcrossMechanisms),
    "dynamics": (LSTMDynamics, GRUDynamics),
    "communication": (AttentionCommunication, NoCommunication),
}
"""Parts that compiled loops support, by their exact type."""


def unknown_part(layer: RIMLayer) -> str | None:
    """Return which part of ``layer`` no compiled loop supports, in words that follow "it …", or None.

    Parts are matched by their exact type: a subclass with a rule of its own never runs as its parent.
    """
    parts = layer._modules  # not by attribute: this is asked in every step, and Module.__getattr__ is slow
    for name, types in KNOWN_PARTS.items():
        if type(parts[name]) not in types:
            return f"does not support {type(parts[name]).__name__}"
    if type(parts["selection"]) is AcrossMechanisms and layer.gives_relevance:
        return "does not differentiate what a balance's penalty reads across mechanisms"
    return "does not normalise queries and keys" if layer.normalize_scores else None


def describe(layer: RIMLayer) -> LayerOptions:
    """Return what a compiled loop has to know of ``layer``.

    Raises:
        UnknownPartError: A part is none of those that compiled loops support; the message names it.
    """
    if reason := unknown_part(layer):
        raise UnknownPartError(reason)
    selection, dynamics, talk = layer.selection, layer.dynamics, layer.communication
    own = selection if isinstance(selection, LeastNull) else None
    attention = talk if isinstance(talk, AttentionCommunication) else None
    return LayerOptions(
        cell="lstm" if isinstance(dynamics, LSTMDynamics) else "gru",
        num_mechanisms=layer.num_mechanisms,
        num_active=layer.num_active,
        input_heads=layer.input_heads,
        selection="least_null" if own else "across_mechanisms",
        margin=own.margin if own else "none",
        width=float(own.width) if own else 1.0,
        graded=own.graded if own else False,
        dynamic=own.dynamic if own else False,
        soft_cap=float(layer.soft_cap or 0),
        communication_heads=attention.heads if attention else 0,
        communication_key_size=attention.key_size if attention else 1,
        inactive=attention.inactive if attention else "preserved",
        communication_output=attention.output_kind if attention else "linear",
        project_in_bf16=layer.project_in_bf16,
        gives_relevance=layer.gives_relevance,
    )


class LayerInputs(NamedTuple):
    """What a layer runs on, from the backbone down to the loop.

    :mod:`rimlit.kernels.projection` puts keys and values in place of the sequence.
    """

    sequence: MaybeTensor  # (B, T, N, D); with tokens the vocabulary (1, V, 1, D)
    tokens: Tensor | None  # (B, T): rows of the vocabulary
    state: State  # tensors (B, M, d)
    initial: State  # the same shape: what a reset puts in place of the state
    resets: Tensor | None  # (B, T) bool
    keep_input: Tensor | None  # (T, M, B, I, N): dropout factors, 0 or 1/(1 − p), drawn ahead for all loops
    keep_communication: Tensor | None  # the same (T, …), by attention (T, B, C, M, M)
    offset: Tensor | None  # (T or 1, M, B or 1): added to the relevance for the ranking
    record: bool  # whether to return the activity
    checkpoint_every: int | None = None  # steps of a part whose tape the loop does not keep, fewer than all
    keys: MaybeTensor = None  # (1 or M, T, B, N, I, key); folded with the query (M, T, B, I, d)
    values: MaybeTensor = None  # (1 or M, T, B, N, I, value); folded with the cell's weights (M, T, B, I, gates)
    # with tokens, keys and values are folded and have the vocabulary's V rows in place of T, B

    @property
    def num_steps(self) -> int:
        """Steps of the sequence."""
        if self.tokens is not None:
            return self.tokens.shape[1]
        steps: int = self.sequence.shape[1] if self.keys is None else self.keys.shape[1]
        return steps

    def steps(self, steps: slice) -> "LayerInputs":
        """Return these steps of a sequence that is not projected, from the same state."""

        def cut(tensor: MaybeTensor) -> MaybeTensor:
            return None if tensor is None else tensor[:, steps]

        return self._replace(
            sequence=cut(self.sequence) if self.tokens is None else self.sequence,
            tokens=cut(self.tokens),
            resets=cut(self.resets),
            keep_input=None if self.keep_input is None else self.keep_input[steps],
            keep_communication=None if self.keep_communication is None else self.keep_communication[steps],
            offset=self.offset if self.offset is None or len(self.offset) == 1 else self.offset[steps],
        )

    def offset_at(self, step: int) -> MaybeTensor:
        """Return what is added to the relevance in a step, (M, B or 1); one may stand for all steps."""
        return None if self.offset is None else self.offset[step if len(self.offset) > 1 else 0]


@loads_as_data
class Activity(NamedTuple):
    """What the mechanisms of one layer did. Heads are averaged, before dropout.

    All is detached but relevance and penalty, which a backbone takes out before it reports the activity.
    """

    active: Tensor  # (B, T, M) bool
    null_attention: Tensor  # (B, T, M): 1 − attention to all slots, without cancellation where it is small
    slot_attention: Tensor  # (B, T, M, N)
    communication: Tensor | None  # (B, T, M, M): row reads column; rows of inactive mechanisms are zero
    gate: Tensor | None = None  # (B, T, M): how far active mechanisms move, where that is not in full
    hidden: Tensor | None = None  # (B, T, M, d): states after each step
    schema: Tensor | None = None  # (B, T, M) integers: which of several sets of parameters each followed
    penalty: Tensor | None = None  # (B, T): what the communication adds to the loss
    relevance: Tensor | None = None  # (B, T, M), at least where a balance's penalty reads it


LayerResult: TypeAlias = tuple[Tensor, State, Activity | None]
"""Features (B, T, M, d), the state after the last step, (B, M, d) each, and the activity where it is recorded."""


def parts_of(num_steps: int, every: int) -> list[slice]:
    """Return the parts of ``every`` steps; the first takes what is left over.

    The last part's tape is kept, and may be as long as any.
    """
    ends = range(num_steps % every or every, num_steps + 1, every)
    return [slice(max(0, end - every), end) for end in ends]


def join_results(parts: list[LayerResult]) -> LayerResult:
    """Join what consecutive steps returned."""
    features, states, activities = zip(*parts, strict=True)
    activity = None if activities[0] is None else Activity(*map(_joined, zip(*activities, strict=True)))
    return torch.cat(features, dim=1), states[-1], activity


def _joined(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else torch.cat(parts, dim=1)
