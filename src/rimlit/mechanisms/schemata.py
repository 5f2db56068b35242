"""States that select their dynamics in each step (SCOFF, Goyal et al. 2021, arXiv:2006.16225)."""

from collections.abc import Callable

import torch
from torch import Tensor

from rimlit.checks import require_above_zero, require_positive
from rimlit.mechanisms.dynamics import Dynamics, Update
from rimlit.mechanisms.sharing import SharedSharing, Sharing
from rimlit.types import GRUState, State


class SchemataDynamics(Dynamics):
    """A few GRU cells, of which each state selects one in each step (SCOFF, Goyal et al. 2021, arXiv:2006.16225).

    Every state runs every schema on what it reads itself, h̃_j = GRU_j(z, h), and follows the one whose result fits
    it best: j* = argmax_j q(h)·κ(h̃_j). In training Gumbel noise is added to these scores, and the gradient is that
    of their softmax at ``temperature`` (straight-through); in evaluation nothing is drawn. With one schema all
    states follow the same GRU.

    What a state stands for is in the state alone, so that the number of states may be raised after training
    (``RIM.with_mechanisms``) where the layer's ``sharing`` is ``shared``, too. The activity records which schema
    each state followed.

    Args:
        num_mechanisms: States M.
        read_size: Numbers read in a step.
        size: Features d.
        sharing: Not used: schemata are shared by all states.
        num_schemata: Schemata, at least 1; the paper has no more than states.
        key_size: Size of queries and keys, at least 1 (paper: 16).
        temperature: Of the softmax in the gradient, above 0 (paper: .5 to 1).

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> schemata = SchemataDynamics(4, 6, 5, SharedSharing, num_schemata=2).eval()
        >>> read, state = torch.ones(4, 1, 2 * 3 * 5), GRUState(torch.zeros(4, 1, 5))
        >>> update = schemata.update(read, state, schemata.weights())
        >>> update.candidate.hidden.shape, update.schema.shape
        (torch.Size([4, 1, 5]), torch.Size([4, 1]))
    """

    state_type = GRUState

    def __init__(
        self,
        num_mechanisms: int,
        read_size: int,
        size: int,
        sharing: Callable[..., Sharing],
        *,
        num_schemata: int = 2,
        key_size: int = 16,
        temperature: float = 1.0,
    ) -> None:
        require_positive(num_schemata=num_schemata, key_size=key_size)
        require_above_zero(temperature=temperature)
        self.num_gates = 3 * num_schemata  # type: ignore[misc] # of the object, since schemata are counted
        super().__init__(num_mechanisms, read_size, size, SharedSharing)
        self.num_schemata = num_schemata
        self.key_size = key_size
        self.temperature = temperature
        self.hidden = SharedSharing(num_mechanisms, size, self.num_gates * size, self.init_scale)
        self.bias = SharedSharing(num_mechanisms, 1, 4 * num_schemata * size, self.init_scale)
        self.query = SharedSharing(num_mechanisms, size, key_size)
        self.key = SharedSharing(num_mechanisms, size, key_size)

    def weights(self) -> tuple[Tensor, ...]:
        """Return what all states share.

        Recurrent weights (1, d, schemata·3·d), biases (1, schemata·4·d), and the maps of queries and keys
        (1, d, key).
        """
        return self.hidden.groups(), self.bias.groups().squeeze(1), self.query.groups(), self.key.groups()

    def products(self) -> int:
        """See :meth:`Dynamics.products`: every state runs every schema."""
        size, num_gates = self.hidden.inner, self.hidden.outer
        return (
            size * num_gates + (1 + self.num_schemata) * size * self.key_size + self.num_schemata * self.key_size
        )

    def update(self, read: Tensor, state: State, weights: tuple[Tensor, ...]) -> Update:
        """See :meth:`Dynamics.update`."""
        hidden, bias, query, key = (weight[0] for weight in weights)
        old = state.hidden
        shape = (*old.shape[:2], self.num_schemata, -1)  # (M, B, schemata, ·)
        size = old.shape[-1]
        read, recurrent = read.view(shape), (old @ hidden).view(shape)
        first, inside = bias.view(self.num_schemata, -1).tensor_split((3 * size,), dim=-1)
        read = read + first
        r, z = (read + recurrent)[..., : 2 * size].sigmoid().chunk(2, dim=-1)  # reset, update
        n = (read[..., 2 * size :] + r * (recurrent[..., 2 * size :] + inside)).tanh()  # new
        candidates = n + z * (old[:, :, None] - n)  # (M, B, schemata, d)
        fit = ((candidates @ key) * (old @ query)[:, :, None]).sum(dim=-1)  # (M, B, schemata)
        if self.training:
            fit = fit - torch.empty_like(fit).exponential_().log()
        schema = fit.argmax(dim=-1)
        chosen = schema[..., None, None].expand(*old.shape[:2], 1, size)
        soft = (fit / self.temperature).softmax(dim=-1)
        # straight-through: the value is that of the chosen schema, bit for bit
        moved = candidates.gather(2, chosen).squeeze(2)
        moved = moved + ((soft - soft.detach())[..., None] * candidates).sum(dim=2)
        return Update(GRUState(moved), 1 - z.gather(2, chosen).squeeze(2), schema)
