"""The Neural Turing Machine (Graves, Wayne and Danihelka 2014, arXiv:1410.5401)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.stepped import InitialState, MemoryBackbone
from rimlit.checks import require_positive
from rimlit.errors import ConfigError
from rimlit.nn import LSTMController, address_content
from rimlit.types import loads_as_data


@loads_as_data
class NTMState(NamedTuple):
    """State of a Neural Turing Machine."""

    hidden: Tensor  # (B, hidden_size): the controller's
    cell: Tensor  # (B, hidden_size): the controller's
    memory: Tensor  # (B, locations, word size)
    weights: Tensor  # (B, heads, locations): read heads first
    reads: Tensor  # (B, read heads · word size)


class NTM(MemoryBackbone):
    """A Neural Turing Machine (Graves, Wayne and Danihelka 2014) with an LSTM as its controller.

    In a step the controller reads the input and what was read before, its heads find their locations by content,
    interpolation, shift and sharpening (sec. 3.3), the write heads erase and add (sec. 3.2), and the read heads
    read (sec. 3.1). Features are the controller's hidden state plus a linear map of what was read.

    Departs from the paper: all heads find their locations in the memory before writing, so that one product serves
    them. The memory starts at a small constant and the heads on the first location, after Collier and Beel 2018
    (arXiv:1807.08518), who found that to learn fastest.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of the controller and of the features, at least 1.
        num_locations: Locations of the memory, at least 1 (paper: 128).
        word_size: Features of a location, at least 1 (paper: 20).
        num_read_heads: Heads that read, at least 1 (paper, copying: 1).
        num_write_heads: Heads that write, at least 1 (paper, copying: 1).
        max_shift: Locations by which a head may move in a step, to either side, at least 0 (paper: 1).
        learn_initial_state: Whether the controller's state, the memory and what was read start at learned values.
            The memory's rows are then drawn at random, so that content addresses them from the first step.
        forget_bias: What is added to the bias of the controller's forget gates at the start.
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> features, state = NTM(3, 8)(torch.ones(2, 5, 3))
        >>> features.shape, state.memory.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 128, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_locations: int = 128,
        word_size: int = 20,
        num_read_heads: int = 1,
        num_write_heads: int = 1,
        max_shift: int = 1,
        learn_initial_state: bool = False,
        forget_bias: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        require_positive(
            input_size=input_size,
            hidden_size=hidden_size,
            num_locations=num_locations,
            word_size=word_size,
            num_read_heads=num_read_heads,
            num_write_heads=num_write_heads,
        )
        if not 0 <= max_shift < num_locations:
            raise ConfigError(
                f"max_shift must be at least 0 and below num_locations; got max_shift={max_shift}, "
                f"num_locations={num_locations}."
            )
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.max_shift = max_shift
        self.num_read_heads = num_read_heads
        self.num_heads = num_read_heads + num_write_heads
        self.num_write_heads = num_write_heads
        self.word_size = word_size
        self.controller = LSTMController(input_size, num_read_heads * word_size, hidden_size, forget_bias)
        self.address_size = word_size + 3 + 2 * max_shift + 1
        self.heads = nn.Linear(hidden_size, self.num_heads * self.address_size + 2 * num_write_heads * word_size)
        self.read_output = nn.Linear(num_read_heads * word_size, hidden_size, bias=False)
        weights = torch.zeros(self.num_heads, num_locations)
        weights[:, 0] = 1
        memory = torch.full((num_locations, word_size), 1e-6)
        if learn_initial_state:  # different rows can be distinguished by content from the start
            memory.uniform_(-(word_size**-0.5), word_size**-0.5)
        self.initial = InitialState(
            {
                "hidden": torch.zeros(hidden_size),
                "cell": torch.zeros(hidden_size),
                "memory": memory,
                "weights": weights,
                "reads": torch.zeros(num_read_heads * word_size),
            },
            ("hidden", "cell", "memory", "reads") if learn_initial_state else (),
        )

    def initial_state(self, batch_size: int) -> NTMState:
        """Return the state a sequence starts from."""
        return NTMState(*self.initial(batch_size))

    def advance(self, projected: tuple[Tensor, ...], state: NTMState) -> NTMState:
        """Control, address, write, read."""
        hidden, cell = self.controller(projected[0], state.reads, state.hidden, state.cell)
        heads, words = self.num_heads * self.address_size, self.num_write_heads * self.word_size
        addressing, erase, add = torch.split(self.heads(hidden), [heads, words, words], dim=1)
        addressing = addressing.view(-1, self.num_heads, self.address_size)
        erase, add = (part.view(-1, self.num_write_heads, self.word_size) for part in (erase, add))
        weights = self.address(addressing, state.memory, state.weights)
        read_weights, write_weights = torch.split(weights, [self.num_read_heads, self.num_write_heads], dim=1)
        memory = write(state.memory, write_weights, erase.sigmoid(), add)
        reads = (read_weights @ memory).flatten(1)
        return NTMState(hidden, cell, memory, weights, reads)

    def address(self, emitted: Tensor, memory: Tensor, previous: Tensor) -> Tensor:
        """Return each head's weights over locations (B, heads, N), sec. 3.3.

        Args:
            emitted: What the controller said to each head, (B, heads, address_size).
            memory: (B, N, word size).
            previous: The heads' weights in the step before, (B, heads, N).
        """
        sizes = [self.word_size, 1, 1, 1, 2 * self.max_shift + 1]
        key, strength, gate, sharpness, shift = torch.split(emitted, sizes, dim=-1)
        content = address_content(memory, key, functional.softplus(strength.squeeze(-1)))
        gated = previous + gate.sigmoid() * (content - previous)
        if self.max_shift:
            around = torch.cat([gated[..., -self.max_shift :], gated, gated[..., : self.max_shift]], dim=-1)
            gated = around.unfold(-1, 2 * self.max_shift + 1, 1) @ shift.softmax(dim=-1).unsqueeze(-1)
            gated = gated.squeeze(-1)
        # w**γ / Σ w**γ with γ ≥ 1, by logarithms: no overflow, and a finite gradient where a weight is 0
        least = max(1e-8, torch.finfo(gated.dtype).tiny)
        return ((1 + functional.softplus(sharpness)) * gated.clamp_min(least).log()).softmax(dim=-1)


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Return the memory after every head erased and then added, sec. 3.2.

    Args:
        memory: (B, N, word size).
        weights: (B, heads, N).
        erase: (B, heads, word size), 0 to 1.
        add: (B, heads, word size).
    """
    erased = torch.einsum("bhn,bhw->bhnw", weights, erase)
    kept = 1 - erased[:, 0] if erased.shape[1] == 1 else (1 - erased).prod(dim=1)
    return memory * kept + weights.mT @ add  # not baddbmm, which autocast would round the memory for
