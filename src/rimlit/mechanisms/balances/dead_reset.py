"""Mechanisms that are hardly ever active start again from one that is."""

import torch
from torch import Tensor, nn

from rimlit.checks import require_not_negative, require_positive, require_share
from rimlit.errors import ConfigError
from rimlit.mechanisms.balance import Counting
from rimlit.nn.surroundings import is_plain


class DeadReset(Counting):
    """Replaces the weights of a dead mechanism by those of the most active one, with noise.

    Every ``every`` optimiser steps, a mechanism that was active in a smaller share of the steps since than
    ``below`` gets the most active one's row of every weight of which each mechanism has its own, times
    1 + ``noise`` · N(0, 1). It keeps its initial state, which differs from the other's. All
    processes draw the same noise, from the number of optimiser steps. The optimiser's state of the weights is
    unchanged.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        every: Optimiser steps between two checks, at least 1.
        below: Share of steps under which a mechanism counts as dead, 0 to 1.
        noise: Relative size of the noise, at least 0.

    Raises:
        ConfigError: An argument is out of its range, or the weights are sharded.
    """

    def __init__(
        self, num_mechanisms: int, num_active: int, *, every: int = 500, below: float = 0.01, noise: float = 0.1
    ) -> None:
        super().__init__(num_mechanisms, num_active)
        require_positive(every=every)
        require_share(below=below)
        require_not_negative(noise=noise)
        self.every = every
        self.below = below
        self.noise = noise
        self.window: Tensor
        self.num_steps: Tensor
        self.register_buffer("window", torch.zeros(num_mechanisms + 1, dtype=torch.long))  # last: steps
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    def resize(self, num_mechanisms: int) -> None:
        """See :meth:`Balance.resize`: the count starts again."""
        super().resize(num_mechanisms)
        self.window = self.window.new_zeros(num_mechanisms + 1)

    def follow(self, counts: Tensor, total: Tensor, layer: nn.Module, rate: float) -> None:
        """See :meth:`Counting.follow`."""
        self.window += torch.cat([counts, total[None]])
        self.num_steps += 1
        if int(self.num_steps) % self.every:
            return
        *counted, steps = self.window.tolist()
        self.window.zero_()
        dead = [index for index, count in enumerate(counted) if count < self.below * steps]
        if dead:
            self._reset(layer, dead, counted.index(max(counted)))

    @torch.no_grad()
    def _reset(self, layer: nn.Module, dead: list[int], live: int) -> None:
        generator = torch.Generator().manual_seed(int(self.num_steps))
        for name, weight in layer.named_parameters():
            if weight.dim() == 0 or len(weight) != self.num_mechanisms:  # shared
                continue
            if not is_plain(weight):
                raise ConfigError(
                    f"dead_reset writes plain tensors; got {name} of type {type(weight).__name__}. With FSDP take "
                    "another balance."
                )
            for index in dead:
                drawn = 1 + self.noise * torch.randn(weight[live].shape, generator=generator)
                weight[index] = weight[live] * drawn.to(weight)
