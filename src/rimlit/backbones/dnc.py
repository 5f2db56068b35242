"""The differentiable neural computer (Graves et al. 2016, Nature 538, Methods, doi:10.1038/nature20101)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.stepped import InitialState, MemoryBackbone
from rimlit.checks import require_positive
from rimlit.nn import LSTMController, address_content
from rimlit.nn.surroundings import is_traced
from rimlit.types import loads_as_data


@loads_as_data
class DNCState(NamedTuple):
    """State of a differentiable neural computer."""

    hidden: Tensor  # (B, hidden_size): the controller's
    cell: Tensor  # (B, hidden_size): the controller's
    memory: Tensor  # (B, N locations, word size)
    usage: Tensor  # (B, N)
    link: Tensor  # (B, N, N): how far i was written right after j
    precedence: Tensor  # (B, N): how far a location was the last one written
    write_weights: Tensor  # (B, N)
    read_weights: Tensor  # (B, read heads, N)
    reads: Tensor  # (B, read heads · word size)


class DNC(MemoryBackbone):
    """A differentiable neural computer (Graves et al. 2016) with an LSTM as its controller and one write head.

    In a step the controller reads the input and what was read before; the memory is written where content or
    free space says, links remember the order of writing, and the read heads follow content or the links, forwards
    or backwards. Features are the controller's hidden state plus a linear map of what was read.

    Departs from the paper: one layer in the controller, and no matrix of its own on the hidden state in the
    read-out, since a head's linear map follows.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of the controller and of the features, at least 1.
        num_locations: Locations of the memory, at least 1.
        word_size: Features of a location, at least 1.
        num_read_heads: Heads that read, at least 1 (paper: 4).
        learn_initial_state: Whether the controller's state, the memory and what was read start at learned values,
            which start at zero; usage, links and weights always start at zero.
        forget_bias: What is added to the bias of the controller's forget gates at the start.
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: A size is below 1.

    Example:
        >>> features, state = DNC(3, 8)(torch.ones(2, 5, 3))
        >>> features.shape, state.link.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 32, 32]))
    """

    # rounding decides which of several equally free locations is written first
    unordered_state = ("memory", "usage", "link", "precedence", "write_weights", "read_weights")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_locations: int = 32,
        word_size: int = 16,
        num_read_heads: int = 4,
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
        )
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.word_size = word_size
        self.num_read_heads = num_read_heads
        self.controller = LSTMController(input_size, num_read_heads * word_size, hidden_size, forget_bias)
        # read keys, write key, erase and write vectors; then strengths, free gates, two gates, read modes
        self.vectors = nn.Linear(hidden_size, (num_read_heads + 3) * word_size)
        self.scalars = nn.Linear(hidden_size, 5 * num_read_heads + 3)
        self.read_output = nn.Linear(num_read_heads * word_size, hidden_size, bias=False)
        self.initial = InitialState(
            {
                "hidden": torch.zeros(hidden_size),
                "cell": torch.zeros(hidden_size),
                "memory": torch.zeros(num_locations, word_size),
                "usage": torch.zeros(num_locations),
                "link": torch.zeros(num_locations, num_locations),
                "precedence": torch.zeros(num_locations),
                "write_weights": torch.zeros(num_locations),
                "read_weights": torch.zeros(num_read_heads, num_locations),
                "reads": torch.zeros(num_read_heads * word_size),
            },
            ("hidden", "cell", "memory", "reads") if learn_initial_state else (),
        )
        self.off_diagonal: Tensor
        self.register_buffer("off_diagonal", 1 - torch.eye(num_locations), persistent=False)

    def initial_state(self, batch_size: int) -> DNCState:
        """Return the state a sequence starts from."""
        return DNCState(*self.initial(batch_size))

    def advance(self, projected: tuple[Tensor, ...], state: DNCState) -> DNCState:
        """Control, write, link, read."""
        heads = self.num_read_heads
        hidden, cell = self.controller(projected[0], state.reads, state.hidden, state.cell)
        vectors = self.vectors(hidden).view(-1, heads + 3, self.word_size)
        read_keys, write_key, erase, add = torch.split(vectors, [heads, 1, 1, 1], dim=1)
        strengths, gates, modes = torch.split(self.scalars(hidden), [heads + 1, heads + 2, 3 * heads], dim=1)
        read_strengths, write_strength = torch.split(1 + functional.softplus(strengths), [heads, 1], dim=1)
        free, allocate, write = torch.split(gates.sigmoid(), [heads, 1, 1], dim=1)
        modes = modes.view(-1, heads, 3).softmax(dim=-1)

        retained = (1 - free.unsqueeze(-1) * state.read_weights).prod(dim=1)  # (B, N)
        usage = (state.usage + state.write_weights * (1 - state.usage)) * retained
        content = address_content(state.memory, write_key, write_strength).squeeze(1)
        write_weights = write * (content + allocate * (allocation(usage) - content))
        where = write_weights.unsqueeze(2)  # (B, N, 1)
        memory = state.memory * (1 - where * erase.sigmoid()) + where * add

        link = self.link(state.link, state.precedence, write_weights)
        precedence = (1 - write_weights.sum(dim=1, keepdim=True)) * state.precedence + write_weights
        backward, forward = state.read_weights @ link, state.read_weights @ link.mT  # (B, heads, N)
        content = address_content(memory, read_keys, read_strengths)
        choices = torch.stack([backward, content, forward], dim=2)  # (B, heads, 3, N)
        read_weights = (modes.unsqueeze(2) @ choices).squeeze(2)
        reads = (read_weights @ memory).flatten(1)
        return DNCState(hidden, cell, memory, usage, link, precedence, write_weights, read_weights, reads)

    def link(self, link: Tensor, precedence: Tensor, write_weights: Tensor) -> Tensor:
        """Return the temporal links (B, N, N) after a write."""
        to, origin = write_weights.unsqueeze(2), write_weights.unsqueeze(1)
        return ((1 - to - origin) * link + to * precedence.unsqueeze(1)) * self.off_diagonal


def allocation(usage: Tensor) -> Tensor:
    """Return weights that favour the least used locations; ties go to the lowest index.

    Args:
        usage: (B, N), 0 to 1.

    Returns:
        (B, N): for each location 1 − its usage, times the usage of all that are used less.

    Example:
        >>> allocation(torch.tensor([[1.0, 0.5, 0.25]]))
        tensor([[0.0000, 0.1250, 0.7500]])
    """
    if is_traced():
        return _allocation_by_comparison(usage)
    ascending, order = usage.sort(dim=-1, stable=True)
    logarithms = ascending.clamp_min(1e-6).log()
    free = (1 - ascending) * (logarithms.cumsum(dim=-1) - logarithms).exp()
    return torch.zeros_like(free).scatter(-1, order, free)


def _allocation_by_comparison(usage: Tensor) -> Tensor:
    """Return the same in N² comparisons per sample: ONNX has no stable sort."""
    index = torch.arange(usage.shape[-1], device=usage.device)
    own, other = usage.unsqueeze(-1), usage.unsqueeze(-2)
    is_before = (other < own) | ((other == own) & (index < index[:, None]))  # (B, N, N): the second is used less
    logarithms = usage.clamp_min(1e-6).log().unsqueeze(-1)
    return (1 - usage) * (is_before.to(usage.dtype) @ logarithms).squeeze(-1).exp()
