"""Communication: how active mechanisms read the others (Goyal et al. 2021, sec. 2.2, arXiv:1909.10893)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rimlit.checks import require_known, require_positive
from rimlit.mechanisms.base import Part
from rimlit.mechanisms.sharing import SharedSharing, Sharing
from rimlit.nn.attention import communicate
from rimlit.nn.dropout import draw_dropout_factors

Output = Literal["linear", "tanh", "gated", "cell_gate"]
Inactive = Literal["preserved", "candidate"]
OUTPUTS: tuple[Output, ...] = ("linear", "tanh", "gated", "cell_gate")
INACTIVE: tuple[Inactive, ...] = ("preserved", "candidate")


class TalkInputs(NamedTuple):
    """What a communication reads in a step."""

    candidate: Tensor  # (M, B, d): hidden states that the cells propose
    old: Tensor  # (M, B, d): hidden states before the step
    active: Tensor  # (M, B) bool
    cell_gate: Tensor | None  # (M, B, d): how far each cell lets new content in, where it has such a gate
    weights: tuple[Tensor | None, ...]  # what Communication.weights returned
    dropout: Tensor | None  # this step's factors of Communication.draw_dropout
    carried: Tensor | None  # what the step before returned as Talk.carried


class Talk(NamedTuple):
    """What a communication gives in a step."""

    added: Tensor  # (M, B, d): added to the candidate's hidden state
    attention: Tensor | None = None  # (B, M, M): row reads column, mean over heads, detached
    carried: Tensor | None = None  # what the part carries to the next step, (B, …)
    penalty: Tensor | None = None  # (B,): what the step adds to the loss, with a gradient


class Communication(Part, ABC):
    """How active mechanisms read the others. A subclass gives :meth:`forward`.

    Args:
        num_mechanisms: Mechanisms M.
        size: Features d of a mechanism.
        sharing: Builds a weight of all mechanisms from (M, inner, outer).
    """

    sizes: ClassVar[tuple[str, ...]] = ("num_mechanisms", "size", "sharing")
    is_penalised: ClassVar[bool] = False
    """Whether :meth:`forward` returns a penalty; it reaches the loss by ``RIM.penalty``."""

    def __init__(self, num_mechanisms: int, size: int, sharing: Callable[..., Sharing]) -> None:
        super().__init__()
        self.num_mechanisms = num_mechanisms
        self.size = size

    def weights(self) -> tuple[Tensor | None, ...]:
        """Return what :meth:`forward` reads beside the states, formed once per sequence."""
        return ()

    def initial_carried(self, batch_size: int) -> Tensor | None:
        """Return what the part carries through time at the start (B, …), or None where it carries nothing."""
        return None

    def draw_dropout(self, num_steps: int, batch_size: int, dropout: float, like: Tensor) -> Tensor | None:
        """Return the dropout factors of a sequence (T, …), 0 or 1/(1 − dropout), or None."""
        return None

    def products(self, num_computed: int, num_active: int) -> int:
        """Return the multiplications of a step of one sequence, for ``RIM.flops_per_step``.

        By default every matrix of :meth:`weights` once for each active mechanism.

        Args:
            num_computed: Mechanisms whose state changes what others read.
            num_active: Mechanisms that read.
        """
        return sum(
            num_active * weight[0].numel() for weight in self.weights() if weight is not None and weight.dim() == 3
        )

    @abstractmethod
    def forward(self, inputs: TalkInputs) -> Talk:
        """Run one step."""


class NoCommunication(Communication):
    """Mechanisms do not read each other (the paper's ablation)."""

    def forward(self, inputs: TalkInputs) -> Talk:
        """Add nothing."""
        return Talk(torch.zeros_like(inputs.candidate))


class AttentionCommunication(Communication):
    """Attention over the states of all mechanisms (Goyal et al. 2021, sec. 2.2).

    Args:
        num_mechanisms: Mechanisms M.
        size: Features d.
        sharing: Builds a weight of all mechanisms.
        heads: Heads C (paper, table 3: 4).
        key_size: Key size of each head; paper 32, the authors' code 16.
        value_size: Value size of each head; paper 32, the authors' code 16.
        output: What is added to the hidden state. ``linear`` (paper): the concatenated heads through a bias-free
            matrix per mechanism; it is unbounded and can diverge at large learning rates. ``tanh``: tanh of that.
            ``gated`` (the authors' code): σ(gate)·tanh(content), both layers shared over mechanisms.
            ``cell_gate``: the tanh times the cell's own gate for new content, so that communication cannot erase
            what the cell
            protects: 1 minus a GRU's update gate, an LSTM's output gate.
        inactive: Through which state others read an inactive mechanism: ``preserved`` (the one it keeps) or
            ``candidate`` (the authors' code: the one it would have had, without gradient).

    Raises:
        ValueError: A size is below 1 or a choice unknown.
    """

    def __init__(
        self,
        num_mechanisms: int,
        size: int,
        sharing: Callable[..., Sharing],
        *,
        heads: int = 4,
        key_size: int = 32,
        value_size: int = 32,
        output: Output = "linear",
        inactive: Inactive = "preserved",
    ) -> None:
        super().__init__(num_mechanisms, size, sharing)
        require_positive(heads=heads, key_size=key_size, value_size=value_size)
        require_known(output=(output, OUTPUTS), inactive=(inactive, INACTIVE))
        self.heads = heads
        self.key_size = key_size
        self.value_size = value_size
        self.output_kind = output
        self.inactive = inactive
        self.projection = sharing(num_mechanisms, size, heads * (2 * key_size + value_size))
        if output == "gated":
            self.output: Sharing = SharedSharing(num_mechanisms, heads * value_size, 2 * size)
            bound = self.output.init_scale
            self.output_bias = nn.Parameter(torch.empty(1, 2 * size).uniform_(-bound, bound))
        else:
            self.output = sharing(num_mechanisms, heads * value_size, size)

    def weights(self) -> tuple[Tensor | None, ...]:
        """Return projection (M, d, C·(2·key + value)), output (M or 1, C·value, d or 2·d) and bias (1, 2·d)."""
        bias = self.output_bias if self.output_kind == "gated" else None
        return self.projection.expand(), self.output.groups() if bias is not None else self.output.expand(), bias

    def products(self, num_computed: int, num_active: int) -> int:
        """See :meth:`Communication.products`; what others read of an inactive mechanism stays as it was."""
        projection, output = self.weights()[:2]
        assert projection is not None and output is not None
        read = self.num_mechanisms * self.heads * (self.key_size + self.value_size)
        return num_computed * projection[0].numel() + num_active * (read + output[0].numel())

    def draw_dropout(self, num_steps: int, batch_size: int, dropout: float, like: Tensor) -> Tensor | None:
        """Return factors (T, B, C, M, M) on the attention."""
        if not dropout:
            return None
        shape = (num_steps, batch_size, self.heads, self.num_mechanisms, self.num_mechanisms)
        return draw_dropout_factors(shape, dropout, like)

    def forward(self, inputs: TalkInputs) -> Talk:
        """See :meth:`Communication.forward`."""
        projection, output, bias = inputs.weights[:3]
        assert projection is not None and output is not None
        # the authors' code: what an inactive mechanism would have become, without gradient
        others = inputs.old if self.inactive == "preserved" else inputs.candidate.detach()
        visible = torch.where(inputs.active[..., None], inputs.candidate, others)
        num_mechanisms, batch_size, _ = visible.shape
        projected = torch.bmm(visible, projection).view(num_mechanisms, batch_size, self.heads, -1)
        projected = projected.permute(1, 2, 0, 3)  # (B, C, M, ·)
        query, key, value = projected.tensor_split((self.key_size, 2 * self.key_size), dim=-1)
        read, attention = communicate(query, key, value, inputs.dropout)
        read = read.permute(2, 0, 1, 3).reshape(num_mechanisms, batch_size, -1)  # (M, B, C·value)
        read, penalty = self.message(read, inputs)
        if bias is not None:
            gate, content = (read @ output + bias[:, None]).chunk(2, dim=-1)
            added = gate.sigmoid() * content.tanh()
        else:
            added = torch.bmm(read, output)
            if self.output_kind != "linear":
                added = added.tanh()
            if self.output_kind == "cell_gate":
                assert inputs.cell_gate is not None
                added = inputs.cell_gate * added
        return Talk(added, attention.detach().mean(dim=1), penalty=penalty)

    def message(self, read: Tensor, inputs: TalkInputs) -> tuple[Tensor, Tensor | None]:
        """Return what mechanisms get of what they read, (M, B, C·value), and what it adds to the loss, (B,)."""
        return read, None
