"""Backbones with a time loop in Python: projections of the input are computed before it, the read-out after."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from rimlit.backbones.base import Backbone, require_input, segments
from rimlit.nn import LSTMController
from rimlit.types import State, replace_state


class SteppedBackbone(Backbone):
    """Base of backbones in three parts, so that only computations that depend on the state are in the loop.

    Inside, time is the first dimension: the input of a step is then contiguous.
    """

    emitted: ClassVar[tuple[str, ...]]
    """Fields of the state that the read-out needs of every step."""

    @abstractmethod
    def project(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the steps read of ``inputs`` (T, B, input_size), as tensors (T, B, …)."""

    @abstractmethod
    def advance(self, projected: tuple[Tensor, ...], state: State) -> State:
        """Return the state after a step, given the step's share of what :meth:`project` returned."""

    @abstractmethod
    def read_out(self, projected: tuple[Tensor, ...], *emitted: Tensor) -> Tensor:
        """Return features (T, B, output_size) from the ``emitted`` fields, each (T, B, …)."""

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over (B, T, input_size); see :meth:`Backbone.forward`."""
        require_input(self, inputs, resets)
        state, initial = self.starting_state(inputs, state)
        projected = self.project(inputs.transpose(0, 1))
        reset_steps = {start for start, _ in segments(resets)} if resets is not None else set()
        emitted = []
        for step, parts in enumerate(zip(*(part.unbind() for part in projected), strict=True)):
            if resets is not None and step in reset_steps:
                state = replace_state(state, initial, resets[:, step])
            state = self.advance(parts, state)
            emitted.append([getattr(state, name) for name in self.emitted])
        features = self.read_out(projected, *(torch.stack(parts) for parts in zip(*emitted, strict=True)))
        return features.transpose(0, 1), state


class MemoryBackbone(SteppedBackbone):
    """Base of backbones with a memory, whose LSTM controller reads the input and the previous reads.

    A subclass sets ``controller`` and ``read_output``; its state has the fields ``hidden`` (of the controller) and
    ``reads`` (all vectors read in a step). Features are the controller's hidden state plus a linear map of the
    reads.
    """

    emitted = ("hidden", "reads")
    controller: LSTMController
    read_output: nn.Linear

    def project(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the input's share of the controller's gates (T, B, 4·hidden_size)."""
        return (self.controller.project(inputs),)

    def read_out(self, projected: tuple[Tensor, ...], *emitted: Tensor) -> Tensor:
        """Return the controller's hidden state plus a linear map of the reads."""
        hidden, reads = emitted
        features: Tensor = hidden + self.read_output(reads)
        return features


class InitialState(nn.Module):
    """Initial values of a state's fields; a subset of them may be learned.

    Args:
        values: Value of each field for one sample.
        learned: Fields whose values are parameters that start there.
    """

    def __init__(self, values: dict[str, Tensor], learned: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.names = tuple(values)
        for name, value in values.items():
            if name in learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)

    def forward(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return one tensor (batch_size, …) for each field."""
        return tuple(getattr(self, name).expand(batch_size, *getattr(self, name).shape) for name in self.names)
