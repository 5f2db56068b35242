"""Inputs and outputs of a RIM layer's time loop: the interface between backbone and loops."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rimlit.checks import require_known
from rimlit.types import State, loads_as_data

Cell = Literal["lstm", "gru"]
Selection = Literal["least_null", "across_mechanisms"]
Inactive = Literal["preserved", "candidate"]
CommunicationOutput = Literal["linear", "tanh", "gated"]


@dataclass(frozen=True)
class LayerOptions:
    """The choices that change what a layer computes (meanings: :class:`rimlit.backbones.RIM`).

    Loops need not check the values: an unknown one is refused here.

    Raises:
        ValueError: A choice is unknown or ``num_active`` out of its range.
    """

    cell: Cell
    num_mechanisms: int
    num_active: int
    input_heads: int
    selection: Selection
    communication_heads: int  # 0: mechanisms do not communicate
    communication_key_size: int
    inactive: Inactive
    communication_output: CommunicationOutput
    project_in_bf16: bool

    def __post_init__(self) -> None:
        if not 1 <= self.num_active <= self.num_mechanisms:
            raise ValueError(
                f"num_active must be between 1 and num_mechanisms; got num_active={self.num_active}, "
                f"num_mechanisms={self.num_mechanisms}."
            )
        require_known(
            cell=(self.cell, get_args(Cell)),
            selection=(self.selection, get_args(Selection)),
            inactive=(self.inactive, get_args(Inactive)),
            communication_output=(self.communication_output, get_args(CommunicationOutput)),
        )


class LayerWeights(NamedTuple):
    """Parameters of one layer. A leading 1 where M could stand means: shared by all mechanisms."""

    input_query: Tensor  # (M, d, I·key)
    input_key: Tensor  # (1 or M, D, I·key)
    input_value: Tensor  # (1 or M, D, I·value)
    cell_input: (
        Tensor  # (M, I·value, gates): gates are input, forget, output, new (LSTM); reset, update, new (GRU)
    )
    cell_hidden: Tensor  # (M, d, gates)
    cell_bias: Tensor  # (M, 4·d): the GRU's last quarter is the bias inside the reset
    communication: Tensor | None  # (M, d, C·(key + key + value)): per head query, key, value
    communication_output: Tensor | None  # (M, C·value, d), or gated and shared (1, C·value, 2·d)
    communication_bias: Tensor | None  # (1, 2·d), gated only


class Keep(NamedTuple):
    """Dropout factors, 0 or 1/(1 − p), drawn before the loop so that all loops share them."""

    input: Tensor | None  # (T, M, B, I, N)
    communication: Tensor | None  # (T, B, C, M, M)

    def steps(self, steps: slice) -> "Keep":
        """Return the factors of these steps."""
        return Keep(*(None if factors is None else factors[steps] for factors in self))


class LayerInputs(NamedTuple):
    """What a layer runs on."""

    sequence: Tensor  # (B, T, N, D); with tokens the vocabulary (1, V, 1, D)
    tokens: Tensor | None  # (B, T): rows of the vocabulary
    state: State  # tensors (B, M, d)
    initial: State  # the same shape: what a reset puts in place of the state
    resets: Tensor | None  # (B, T) bool
    keep: Keep
    record: bool  # whether to return the activity
    checkpoint_every: int | None = None  # steps of a part whose tape the loop does not keep, fewer than all

    @property
    def num_steps(self) -> int:
        """Steps of the sequence."""
        return (self.sequence if self.tokens is None else self.tokens).shape[1]

    def steps(self, steps: slice) -> "LayerInputs":
        """Return these steps, from the same state."""
        keep, resets = self.keep.steps(steps), None if self.resets is None else self.resets[:, steps]
        if self.tokens is not None:
            return self._replace(tokens=self.tokens[:, steps], resets=resets, keep=keep)
        return self._replace(sequence=self.sequence[:, steps], resets=resets, keep=keep)


@loads_as_data
class Activity(NamedTuple):
    """What the mechanisms of one layer did, detached. Heads are averaged, before dropout."""

    active: Tensor  # (B, T, M) bool
    null_attention: Tensor  # (B, T, M): 1 − attention to all slots, without cancellation where it is small
    slot_attention: Tensor  # (B, T, M, N)
    communication: Tensor | None  # (B, T, M, M): row reads column; rows of inactive mechanisms are zero


class LayerResult(NamedTuple):
    """What a layer returns."""

    features: Tensor  # (B, T, M, d)
    state: State  # tensors (B, M, d)
    activity: Activity | None


def parts_of(num_steps: int, every: int) -> list[slice]:
    """Return the parts of ``every`` steps; the first takes what is left over.

    The last part's tape is kept, and may be as long as any.
    """
    ends = range(num_steps % every or every, num_steps + 1, every)
    return [slice(max(0, end - every), end) for end in ends]


def join_results(parts: list[LayerResult]) -> LayerResult:
    """Join what consecutive steps returned."""
    activities = [part.activity for part in parts if part.activity is not None]
    activity = None
    if activities:
        communication = [part.communication for part in activities if part.communication is not None]
        activity = Activity(
            torch.cat([part.active for part in activities], dim=1),
            torch.cat([part.null_attention for part in activities], dim=1),
            torch.cat([part.slot_attention for part in activities], dim=1),
            torch.cat(communication, dim=1) if communication else None,
        )
    return LayerResult(torch.cat([part.features for part in parts], dim=1), parts[-1].state, activity)
