"""The relational memory core (Santoro et al. 2018, sec. 3, arXiv:1806.01822)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.stepped import InitialState, SteppedBackbone
from rimlit.checks import require_positive
from rimlit.errors import ConfigError
from rimlit.types import loads_as_data


@loads_as_data
class RMCState(NamedTuple):
    """State of a relational memory core."""

    hidden: Tensor  # (B, slots, slot size)
    memory: Tensor  # (B, slots, slot size)


class RMC(SteppedBackbone):
    """A relational memory core (Santoro et al. 2018): slots that attend to each other and the input, behind gates.

    In a step every slot attends to all slots and the input; a residual, a layer norm and a perceptron for each
    slot follow, with another residual and norm; input, forget and output gates, as an LSTM's, which read the input
    and the slot's hidden state, mix the result into the memory. Features are the hidden states of all
    slots.

    Departs from the paper: the heads go through a linear map, so that the slot size need not be divisible by their
    number; what enters the memory goes through tanh, as in an LSTM, so that the memory stays bounded.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Total width of all slots, divisible by ``num_slots``.
        num_slots: Slots of the memory, at least 1.
        num_heads: Heads of the attention, at least 1.
        forget_bias: What is added to the forget gates' bias at the start.
        learn_initial_state: Whether the initial state is learned. It starts with hidden states of zeros and a
            memory in which slot i holds 1 at feature i, so that the slots differ.
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> features, state = RMC(3, 24)(torch.ones(2, 5, 3))
        >>> features.shape, state.memory.shape
        (torch.Size([2, 5, 24]), torch.Size([2, 4, 6]))
    """

    emitted = ("hidden",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_slots: int = 4,
        num_heads: int = 4,
        forget_bias: float = 1.0,
        learn_initial_state: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, hidden_size=hidden_size, num_slots=num_slots, num_heads=num_heads)
        if hidden_size % num_slots:
            near = hidden_size - hidden_size % num_slots
            raise ConfigError(
                f"hidden_size must be divisible by num_slots; got hidden_size={hidden_size}, "
                f"num_slots={num_slots} (near: {near or num_slots}, {near + num_slots})."
            )
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_heads = num_heads
        size = hidden_size // num_slots
        inner = num_heads * -(-size // num_heads)
        self.input = nn.Linear(input_size, size)
        self.query = nn.Linear(size, inner, bias=False)
        self.key_value = nn.Linear(size, 2 * inner, bias=False)
        self.attended = nn.Linear(inner, size)
        self.attention_norm = nn.LayerNorm(size)
        self.perceptron = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        self.perceptron_norm = nn.LayerNorm(size)
        self.input_gates = nn.Linear(size, 3 * size)
        self.hidden_gates = nn.Linear(size, 3 * size, bias=False)
        with torch.no_grad():
            self.input_gates.bias[size : 2 * size] += forget_bias
        self.initial = InitialState(
            {"hidden": torch.zeros(num_slots, size), "memory": torch.eye(num_slots, size)},
            ("hidden", "memory") if learn_initial_state else (),
        )

    def initial_state(self, batch_size: int) -> RMCState:
        """Return hidden and memory, each (B, num_slots, hidden_size / num_slots)."""
        return RMCState(*self.initial(batch_size))

    def project(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the input as a slot's key and value (T, B, 1, 2·inner), and its share of the gates."""
        slot = self.input(inputs).unsqueeze(2)  # (T, B, 1, slot size)
        return self.key_value(slot), self.input_gates(slot)

    def advance(self, projected: tuple[Tensor, ...], state: RMCState) -> RMCState:
        """Attend, transform, gate."""
        input_key_value, input_gates = projected
        memory = self.attention_norm(state.memory + self.attend(state.memory, input_key_value))
        memory = self.perceptron_norm(memory + self.perceptron(memory))
        enter, forget, output = (input_gates + self.hidden_gates(state.hidden)).sigmoid().chunk(3, dim=-1)
        memory = forget * state.memory + enter * memory.tanh()
        return RMCState(output * memory.tanh(), memory)

    def attend(self, memory: Tensor, input_key_value: Tensor) -> Tensor:
        """Return what every slot reads from all slots and the input, (B, slots, slot size)."""
        key_value = torch.cat([self.key_value(memory), input_key_value], dim=1)
        parts = (self.query(memory), *key_value.chunk(2, dim=-1))
        heads = (part.view(*part.shape[:2], self.num_heads, -1).transpose(1, 2) for part in parts)
        read = functional.scaled_dot_product_attention(*heads)  # (B, heads, slots, value size)
        attended: Tensor = self.attended(read.transpose(1, 2).flatten(2))
        return attended

    def read_out(self, projected: tuple[Tensor, ...], *emitted: Tensor) -> Tensor:
        """Return the hidden states of all slots, one behind the other."""
        return emitted[0].flatten(2)
