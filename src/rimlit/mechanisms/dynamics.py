"""How a mechanism's state changes with what it reads: an LSTM cell or a GRU cell (Goyal et al. 2021, sec. 2.1)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rimlit.mechanisms.base import Part
from rimlit.mechanisms.sharing import Sharing
from rimlit.types import GRUState, LSTMState, State


class Update(NamedTuple):
    """What a cell gives in a step."""

    candidate: State  # tensors (M, B, d)
    cell_gate: Tensor | None = None  # (M, B, d): how far the cell lets new content into its hidden state
    schema: Tensor | None = None  # (M, B) integers: which of several sets of parameters each mechanism followed


class Dynamics(Part, ABC):
    """The cell of every mechanism. A subclass gives ``num_gates``, ``state_type`` and :meth:`update`.

    Args:
        num_mechanisms: Mechanisms M.
        read_size: Numbers that a mechanism reads from the input in a step.
        size: Features d of a mechanism.
        sharing: Builds a weight of all mechanisms from (M, inner, outer, init_scale).
    """

    sizes: ClassVar[tuple[str, ...]] = ("num_mechanisms", "read_size", "size", "sharing")
    num_gates: ClassVar[int]
    """What is read is mapped to this many times d numbers, which :meth:`update` gets."""
    state_type: ClassVar[Any]
    """NamedTuple of the state; its first field is ``hidden``, every field is (M, B, d) in a step."""

    def __init__(self, num_mechanisms: int, read_size: int, size: int, sharing: Callable[..., Sharing]) -> None:
        super().__init__()
        self.init_scale = size**-0.5  # as nn.LSTM and nn.GRU start
        self.input = sharing(num_mechanisms, read_size, self.num_gates * size, self.init_scale)

    def weights(self) -> tuple[Tensor, ...]:
        """Return what :meth:`update` reads beside the input, formed once per sequence."""
        return ()

    def products(self) -> int:
        """Return the multiplications of a mechanism in a step beside those of what it reads.

        By default every matrix of :meth:`weights` once.
        """
        return sum(weight[0].numel() for weight in self.weights() if weight.dim() == 3)

    @abstractmethod
    def update(self, read: Tensor, state: State, weights: tuple[Tensor, ...]) -> Update:
        """Run one step of all mechanisms.

        Args:
            read: What was read from the input, mapped to (M, B, num_gates·d).
            state: Tensors (M, B, d).
            weights: What :meth:`weights` returned.

        Returns:
            An :class:`Update`, or its first fields in a plain tuple.
        """


class _Gated(Dynamics):
    """A cell with a recurrent weight and four biases."""

    def __init__(self, num_mechanisms: int, read_size: int, size: int, sharing: Callable[..., Sharing]) -> None:
        super().__init__(num_mechanisms, read_size, size, sharing)
        self.hidden = sharing(num_mechanisms, size, self.num_gates * size, self.init_scale)
        self.bias = sharing(num_mechanisms, 1, 4 * size, self.init_scale)

    def weights(self) -> tuple[Tensor, ...]:
        """Return the recurrent weights (M, d, gates) and the biases (M, 4·d)."""
        return self.hidden.expand(), self.bias.expand().squeeze(1)


class LSTMDynamics(_Gated):
    """An LSTM cell per mechanism.

    Its gate for new content is the output gate.

    Args:
        num_mechanisms: Mechanisms M.
        read_size: Numbers read in a step.
        size: Features d.
        sharing: Builds a weight of all mechanisms.
        forget_bias: Added to the forget gates' bias at the start.
    """

    num_gates = 4
    state_type = LSTMState

    def __init__(
        self,
        num_mechanisms: int,
        read_size: int,
        size: int,
        sharing: Callable[..., Sharing],
        *,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__(num_mechanisms, read_size, size, sharing)
        if forget_bias:
            added = torch.zeros(4 * size)
            added[size : 2 * size] = forget_bias
            self.bias.add(added)

    def update(self, read: Tensor, state: State, weights: tuple[Tensor, ...]) -> Update:
        """See :meth:`Dynamics.update`."""
        hidden, bias = weights
        size = state.hidden.shape[-1]
        gates = torch.baddbmm(read + bias[:, None], state.hidden, hidden)
        i, f, o = gates[..., : 3 * size].sigmoid().chunk(3, dim=-1)  # input, forget, output
        memory = f * state.memory + i * gates[..., 3 * size :].tanh()
        return Update(LSTMState(o * memory.tanh(), memory), o)


class GRUDynamics(_Gated):
    """A GRU cell per mechanism. Its gate for new content is 1 minus the update gate."""

    num_gates = 3
    state_type = GRUState

    def update(self, read: Tensor, state: State, weights: tuple[Tensor, ...]) -> Update:
        """See :meth:`Dynamics.update`."""
        weight, bias = weights
        size, bias = state.hidden.shape[-1], bias[:, None]
        recurrent = torch.bmm(state.hidden, weight)
        r, z = (
            (read + recurrent + bias[..., : 3 * size])[..., : 2 * size].sigmoid().chunk(2, dim=-1)
        )  # reset, update
        inside = recurrent[..., 2 * size :] + bias[..., 3 * size :]
        n = (read[..., 2 * size :] + bias[..., 2 * size : 3 * size] + r * inside).tanh()  # new
        return Update(GRUState(n + z * (state.hidden - n)), 1 - z)
