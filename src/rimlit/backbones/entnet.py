"""The recurrent entity network (Henaff et al. 2017, sec. 2, arXiv:1612.03969)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.stepped import SteppedBackbone
from rimlit.checks import require_positive
from rimlit.types import loads_as_data


@loads_as_data
class EntNetState(NamedTuple):
    """State of a recurrent entity network."""

    memory: Tensor  # (B, slots, hidden_size): unit vectors


class EntNet(SteppedBackbone):
    """A recurrent entity network (Henaff et al. 2017): slots whose gates decide which inputs update them.

    A slot h with key w opens its gate σ(sᵀh + sᵀw) to the encoded input s, adds φ(Uh + Vw + Ws) through it, and
    is scaled to unit length (sec. 2.2). All slots share U, V, W and φ, a PReLU that starts as the identity.
    Slots start at their keys, which are learned, so that there is no option for a learned initial state.

    Departs from the paper: there is no question at the end. Features are φ(s + H Σ p_j h_j) with p = softmax(sᵀh),
    the paper's answer (sec. 2.3) with every step's own input as the question and without its last matrix, which is
    the head's.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of a slot and of the features, at least 1.
        num_slots: Slots, at least 1 (paper, bAbI: 20).
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: A size is below 1.

    Example:
        >>> features, state = EntNet(3, 8)(torch.ones(2, 5, 3))
        >>> features.shape, state.memory.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 20, 8]))
    """

    emitted = ("memory",)

    def __init__(
        self, input_size: int, hidden_size: int, *, num_slots: int = 20, bidirectional: bool = False
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, hidden_size=hidden_size, num_slots=num_slots)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.keys = nn.Parameter(torch.randn(num_slots, hidden_size) * hidden_size**-0.5)
        self.encode = nn.Linear(input_size, hidden_size)
        self.from_slot = nn.Linear(hidden_size, hidden_size, bias=False)  # U
        self.from_key = nn.Linear(hidden_size, hidden_size, bias=False)  # V
        self.from_input = nn.Linear(hidden_size, hidden_size, bias=False)  # W
        self.activation = nn.PReLU(init=1.0)
        self.from_read = nn.Linear(hidden_size, hidden_size, bias=False)  # H
        self.answer_activation = nn.PReLU(init=1.0)

    def initial_state(self, batch_size: int) -> EntNetState:
        """Return slots (B, num_slots, hidden_size) that hold their keys."""
        return EntNetState(functional.normalize(self.keys, dim=-1).expand(batch_size, *self.keys.shape))

    def flops_per_step(self) -> int:
        """Count as :meth:`Backbone.flops_per_step` does, without Vw, which is the same in every step."""
        return super().flops_per_step() - 2 * self.keys.numel() * self.output_size

    def project(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return s, Ws, Vw and sᵀw for every step."""
        encoded = self.encode(inputs)  # (T, B, H)
        from_key = self.from_key(self.keys).expand(len(inputs), *self.keys.shape)
        return encoded, self.from_input(encoded).unsqueeze(2), from_key, encoded @ self.keys.mT

    def advance(self, projected: tuple[Tensor, ...], state: EntNetState) -> EntNetState:
        """Gate, transform, add, normalise."""
        encoded, from_input, from_key, key_match = projected
        gate = ((state.memory @ encoded.unsqueeze(-1)).squeeze(-1) + key_match).sigmoid()  # (B, slots)
        candidate = self.activation(self.from_slot(state.memory) + from_key + from_input)
        return EntNetState(functional.normalize(state.memory + gate.unsqueeze(-1) * candidate, dim=-1))

    def read_out(self, projected: tuple[Tensor, ...], *emitted: Tensor) -> Tensor:
        """Read the memory with every step's input as the query."""
        encoded, (memory,) = projected[0], emitted
        match = (memory @ encoded.unsqueeze(-1)).softmax(dim=2)  # (T, B, slots, 1)
        features: Tensor = self.answer_activation(encoded + self.from_read((match * memory).sum(dim=2)))
        return features
