"""A head in which mechanisms share out the places of the output."""

import torch
from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.errors import ConfigError
from rimlit.heads.base import Head


class MixtureHead(Head):
    """Let every mechanism predict every place, and weigh the predictions at each place by masks.

    The outputs fall into places of ``place_size`` outputs, such as the cells of a frame. One decoder, which all
    mechanisms share, maps a mechanism's state to values and a mask logit for each place; the outputs of a place
    are Σ α_m · values_m with α the softmax of the masks over mechanisms, as in models of objects (Greff et al.
    2017, arXiv:1708.03498). Nothing belongs to one mechanism, so that the head reads any number of them, also
    another than in training.

    Args:
        input_size: Features of the backbone, divisible by ``num_mechanisms``.
        output_size: Outputs of each step, divisible by ``place_size``.
        num_mechanisms: Mechanisms.
        place_size: Outputs of each place, at least 1; None for a single place. With ``prediction: motion`` the
            places are the cells of a frame, of 10 outputs each.
        hidden_size: Width of the decoder's hidden layer, at least 1.

    Raises:
        ConfigError: A size is out of its range.

    Example:
        >>> head = MixtureHead(12, 16 * 5, num_mechanisms=4, place_size=5)
        >>> features = torch.ones(2, 3, 12)
        >>> head(features).shape, head.masks(features).shape
        (torch.Size([2, 3, 80]), torch.Size([2, 3, 4, 16]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_mechanisms: int = 1,
        *,
        place_size: int | None = None,
        hidden_size: int = 256,
    ) -> None:
        super().__init__(input_size, output_size, num_mechanisms)
        place_size = output_size if place_size is None else place_size
        require_positive(place_size=place_size, hidden_size=hidden_size)
        if output_size % place_size:
            raise ConfigError(
                f"output_size must be divisible by place_size; got output_size={output_size}, "
                f"place_size={place_size}."
            )
        self.place_size, self.num_places = place_size, output_size // place_size
        self.decoder = nn.Sequential(
            nn.Linear(input_size // num_mechanisms, hidden_size),
            nn.ReLU(),
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, output_size + self.num_places),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, input_size) to (B, T, output_size)."""
        values, masks = self._predict(features)
        return (masks.softmax(dim=-2)[..., None] * values).sum(dim=-3).flatten(-2)

    def masks(self, features: Tensor) -> Tensor:
        """Return the weight of each mechanism at each place, α (B, T, M, places), summing to 1 over mechanisms."""
        return self._predict(features)[1].softmax(dim=-2)

    def _predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values (…, M, places, values) and the mask logits (…, M, places) of every mechanism."""
        spoken = self.decoder(self.by_mechanism(features))
        values = spoken[..., : self.output_size]
        values = values.reshape(*values.shape[:-1], self.num_places, self.place_size)
        # a softmax in bfloat16 is coarse
        masks = spoken[..., self.output_size :]
        return values, masks.to(torch.promote_types(masks.dtype, torch.float32))
