"""Messages of a small vocabulary (discrete-valued neural communication, Liu et al. 2021, arXiv:2107.02367)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rimlit.checks import require_above_zero, require_at_least, require_not_negative, require_positive
from rimlit.errors import ConfigError
from rimlit.mechanisms.communication import AttentionCommunication, Inactive, Output, TalkInputs
from rimlit.mechanisms.sharing import Sharing


class QuantizedCommunication(AttentionCommunication):
    """Attention whose messages are made of entries of one codebook (DVNC, Liu et al. 2021, arXiv:2107.02367).

    What a mechanism reads, all heads side by side, is cut into ``num_parts`` parts of one length, and each becomes
    the nearest entry e of a codebook that all parts and mechanisms share. The gradient passes the choice unchanged
    (straight-through). In training the loss grows by (weight / num_parts) Σ ‖sg(s) − e‖² + β ‖s − sg(e)‖² over the
    parts s, averaged over active mechanisms, samples and steps; sg stops the gradient.

    Args:
        num_mechanisms: Mechanisms M.
        size: Features d.
        sharing: Builds a weight of all mechanisms.
        heads: Heads of the attention.
        key_size: Key size of each head.
        value_size: Value size of each head.
        output: What is added; see :class:`rimlit.mechanisms.AttentionCommunication`.
        inactive: Through which state others read an inactive mechanism; see there.
        num_parts: Parts of a message, at least 1; divides ``heads · value_size`` (paper: 8 to 16).
        codebook_size: Entries of the codebook, at least 2.
        commitment: β, at least 0 (paper: .25).
        weight: Weight of the term in the loss, above 0.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> from rimlit import RIM
        >>> rim = RIM(3, 20, num_mechanisms=5, num_active=2, communication="quantized").train()
        >>> features, _ = rim(torch.ones(2, 4, 3))
        >>> rim.penalty() > 0
        tensor(True)
    """

    is_penalised = True

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
        num_parts: int = 8,
        codebook_size: int = 512,
        commitment: float = 0.25,
        weight: float = 1.0,
    ) -> None:
        super().__init__(
            num_mechanisms,
            size,
            sharing,
            heads=heads,
            key_size=key_size,
            value_size=value_size,
            output=output,
            inactive=inactive,
        )
        require_positive(num_parts=num_parts)
        message = heads * value_size
        if message % num_parts:
            raise ConfigError(f"num_parts must divide heads · value_size = {message}; got num_parts={num_parts}.")
        require_at_least(2, codebook_size=codebook_size)
        require_not_negative(commitment=commitment)
        require_above_zero(weight=weight)
        self.num_parts, self.codebook_size = num_parts, codebook_size
        self.commitment, self.weight = commitment, weight
        bound = size**-0.5  # about as large as what is read at the start
        self.codebook = nn.Parameter(torch.empty(codebook_size, message // num_parts).uniform_(-bound, bound))

    def weights(self) -> tuple[Tensor | None, ...]:
        """Return those of the attention and the codebook (entries, C·value / parts)."""
        return *super().weights(), self.codebook

    def products(self, num_computed: int, num_active: int) -> int:
        """See :meth:`Communication.products`; with the distances to all entries."""
        return super().products(num_computed, num_active) + num_active * self.num_parts * self.codebook.numel()

    def message(self, read: Tensor, inputs: TalkInputs) -> tuple[Tensor, Tensor | None]:
        """See :meth:`AttentionCommunication.message`."""
        codebook = inputs.weights[3]
        assert codebook is not None
        parts = read.view(*read.shape[:2], self.num_parts, -1)  # (M, B, parts, ·)
        with torch.no_grad():  # ‖s − e‖² without what is the same for all entries
            distance = codebook.square().sum(dim=-1) - 2 * parts @ codebook.mT
            nearest = distance.argmin(dim=-1)
        entries = nn.functional.embedding(nearest, codebook)
        # the codebook stays in the graph, with a gradient of zeros: plain DDP waits for every parameter
        sent = entries.detach() + (parts - parts.detach()) + 0 * entries
        if not self.training:
            return sent.flatten(-2), None
        moves = (parts.detach() - entries).square().sum(dim=-1)
        stays = (parts - entries.detach()).square().sum(dim=-1)
        loss = (moves + self.commitment * stays).mean(dim=-1)  # (M, B)
        active = inputs.active
        per_sample = torch.where(active, loss, 0).sum(dim=0) / active.sum(dim=0).clamp(min=1)
        return sent.flatten(-2), self.weight * per_sample
