"""Communication through a few shared memory slots (Goyal et al. 2022, arXiv:2103.01197)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rimlit.checks import require_known, require_positive
from rimlit.errors import ConfigError
from rimlit.mechanisms.communication import Communication, Talk, TalkInputs
from rimlit.mechanisms.sharing import SharedSharing, Sharing
from rimlit.nn.dropout import draw_dropout_factors
from rimlit.nn.selection import rank

WorkspaceOutput = Literal["linear", "tanh", "cell_gate"]
OUTPUTS: tuple[WorkspaceOutput, ...] = ("linear", "tanh", "cell_gate")


class WorkspaceCommunication(Communication):
    """Mechanisms write to a few slots, and active ones read them (Goyal et al. 2022, arXiv:2103.01197).

    The slots Mem (S, slot size) are carried through time and begin with 1 at feature s of slot s. In a step

    - mechanisms compete for each slot, A = softmax(q(Mem) k(R)ᵀ / √key) over mechanisms, with R their states; a
      slot keeps the ``writers`` greatest shares as they are and drops the others; M̃ = A v(R);
    - they move as those of a relational memory core (Santoro et al. 2018), Mem ← f ⊙ Mem + i ⊙ tanh(M̃), with the
      gates i = σ(G_i), f = σ(G_f + forget_bias), G = W mean(R) + U tanh(Mem);
    - active mechanisms attend over the slots, and what they read is added to their state.

    A step costs M·S scores in place of the M² of attention between mechanisms.

    Departs from the paper: scores are divided by the root of the key size, as in the other attentions; an inactive
    mechanism writes the state that it keeps.

    Args:
        num_mechanisms: Mechanisms M.
        size: Features d.
        sharing: Builds the weights of mechanisms; those of the slots serve all slots.
        num_slots: Slots S, at least 1.
        slot_size: Size of a slot, at least 1; None for d.
        heads: Heads of both attentions, at least 1.
        key_size: Key size of each head, at least 1.
        value_size: Size of each head's values that mechanisms read, at least 1.
        writers: Mechanisms that write to a slot in a step, at least 1 (paper: 3); more than M or None: all.
        forget_bias: Added to the forget gates.
        output: What of the read is added: ``linear``, ``tanh``, or ``cell_gate``, the tanh times the cell's own
            gate; see :class:`rimlit.mechanisms.AttentionCommunication`.

    Raises:
        ConfigError: A size is below 1 or the output unknown.

    Example:
        >>> from rimlit import RIM
        >>> rim = RIM(3, 20, num_mechanisms=5, num_active=2, communication={"class_path": "workspace"})
        >>> features, state = rim(torch.ones(2, 4, 3))
        >>> state.carried.shape  # (B, layers, slots, slot size)
        torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self,
        num_mechanisms: int,
        size: int,
        sharing: Callable[..., Sharing],
        *,
        num_slots: int = 4,
        slot_size: int | None = None,
        heads: int = 4,
        key_size: int = 32,
        value_size: int = 32,
        writers: int | None = 3,
        forget_bias: float = 1.0,
        output: WorkspaceOutput = "linear",
    ) -> None:
        super().__init__(num_mechanisms, size, sharing)
        slot_size = size if slot_size is None else slot_size
        require_positive(
            num_slots=num_slots, slot_size=slot_size, heads=heads, key_size=key_size, value_size=value_size
        )
        require_positive(writers=writers)
        require_known(output=(output, OUTPUTS))
        if not math.isfinite(forget_bias):
            raise ConfigError(f"forget_bias must be finite; got forget_bias={forget_bias}.")
        self.num_slots, self.slot_size = num_slots, slot_size
        self.heads, self.key_size, self.value_size = heads, key_size, value_size
        self.writers, self.forget_bias, self.output_kind = writers, forget_bias, output
        keys, slot_values = heads * key_size, -(-slot_size // heads)
        # of a mechanism: key and values of what it writes, then the query of what it reads
        self.projection = sharing(num_mechanisms, size, 2 * keys + heads * slot_values)
        self.output = sharing(num_mechanisms, heads * value_size, size)
        # of a slot: query of what is written, then key and values of what is read
        self.slot_projection = SharedSharing(1, slot_size, 2 * keys + heads * value_size)
        self.written = SharedSharing(1, heads * slot_values, slot_size)
        self.state_gates = SharedSharing(1, size, 2 * slot_size)
        self.slot_gates = SharedSharing(1, slot_size, 2 * slot_size)
        self.first_slots: Tensor
        self.register_buffer("first_slots", torch.eye(num_slots, slot_size), persistent=False)

    def weights(self) -> tuple[Tensor | None, ...]:
        """Return the weights of mechanisms (M, ·, ·) and those of slots (1, ·, ·)."""
        slots = (self.slot_projection, self.written, self.state_gates, self.slot_gates)
        return self.projection.expand(), self.output.expand(), *(weight.groups() for weight in slots)

    def initial_carried(self, batch_size: int) -> Tensor:
        """Return the slots that a sequence starts with, (B, S, slot size)."""
        return self.first_slots.expand(batch_size, -1, -1)

    def products(self, num_computed: int, num_active: int) -> int:
        """See :meth:`Communication.products`; what an inactive mechanism writes stays as it was."""
        own, output, slots, written, state_gates, slot_gates = (
            0 if weight is None else weight[0].numel() for weight in self.weights()
        )
        scores = self.num_slots * self.heads * self.key_size
        write = self.num_mechanisms * (scores + self.num_slots * self.written.inner)
        read = scores + self.num_slots * self.output.inner + output
        return (
            num_computed * own
            + num_active * read
            + write
            + state_gates
            + self.num_slots * (slots + written + slot_gates)
        )

    def draw_dropout(self, num_steps: int, batch_size: int, dropout: float, like: Tensor) -> Tensor | None:
        """Return factors (T, B, C, M, S) on the attention by which mechanisms read."""
        if not dropout:
            return None
        shape = (num_steps, batch_size, self.heads, self.num_mechanisms, self.num_slots)
        return draw_dropout_factors(shape, dropout, like)

    def forward(self, inputs: TalkInputs) -> Talk:
        """See :meth:`Communication.forward`; the attention is the part of it that passes through the slots."""
        projection, output, slot_projection, written, state_gates, slot_gates = inputs.weights
        assert projection is not None and output is not None and slot_projection is not None
        assert written is not None and state_gates is not None and slot_gates is not None
        slots = inputs.carried
        assert slots is not None
        states = torch.where(inputs.active[..., None], inputs.candidate, inputs.old)
        keys = self.heads * self.key_size
        own = torch.bmm(states, projection).transpose(0, 1)  # (B, M, ·)
        write_key, read_query, write_value = (
            self._by_head(part) for part in own.tensor_split((keys, 2 * keys), -1)
        )
        write_query = self._by_head((slots @ slot_projection[0])[..., :keys])

        scale = math.sqrt(self.key_size)
        writes = (write_query @ write_key.mT / scale).softmax(dim=-1)  # (B, C, S, M)
        if self.writers is not None and self.writers < self.num_mechanisms:
            place = rank(writes.flatten(0, -2).mT)  # (M, B·C·S)
            writes = torch.where((place < self.writers).mT.view_as(writes), writes, 0)
        new = self._joined(writes @ write_value) @ written[0]  # (B, S, slot size)
        gates = (states.mean(dim=0) @ state_gates[0])[:, None] + slots.tanh() @ slot_gates[0]
        enter, forget = gates.chunk(2, dim=-1)
        slots = (forget + self.forget_bias).sigmoid() * slots + enter.sigmoid() * new.tanh()

        read_key, read_value = (
            self._by_head(part) for part in (slots @ slot_projection[0])[..., keys:].tensor_split((keys,), -1)
        )
        reads = (read_query @ read_key.mT / scale).softmax(dim=-1)  # (B, C, M, S)
        kept = reads if inputs.dropout is None else reads * inputs.dropout
        added = torch.bmm(self._joined(kept @ read_value).transpose(0, 1), output)  # (M, B, d)
        if self.output_kind != "linear":
            added = added.tanh()
        if self.output_kind == "cell_gate":
            if inputs.cell_gate is None:
                raise ConfigError(
                    "communication: output='cell_gate' needs a cell with such a gate, as lstm or gru."
                )
            added = inputs.cell_gate * added
        return Talk(added, (reads @ writes).detach().mean(dim=1), slots)

    def _by_head(self, values: Tensor) -> Tensor:
        """Return (B, rows, C·features) as (B, C, rows, features)."""
        return values.reshape(*values.shape[:2], self.heads, -1).transpose(1, 2)

    @staticmethod
    def _joined(values: Tensor) -> Tensor:
        """Return (B, C, rows, features) as (B, rows, C·features)."""
        return values.transpose(1, 2).flatten(2)
