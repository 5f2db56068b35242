"""Metrics of token sequences, each counted once per token or sequence whatever the batch size.

All take logits (B, T, V) and targets (B, T) in which ``IGNORED`` marks padding at the end of a row, and score
the last ``last_steps`` unpadded steps of each row, or all of them. Sums are kept in float64.
"""

import math
from typing import Any

from torch import Tensor
from torch.nn import functional

from rimlit.metrics.mean import Mean

IGNORED = -100
"""Target of a step that is not scored, as in :func:`torch.nn.functional.cross_entropy`."""


def scored_steps(targets: Tensor, last_steps: int | None) -> Tensor:
    """Mark the steps (B, T) that count: the last ``last_steps`` unpadded ones of each row, or all."""
    is_real = targets != IGNORED
    if last_steps is None:
        return is_real
    steps_left = is_real.flip(1).cumsum(1).flip(1)  # real steps from here to the end
    return is_real & (steps_left <= last_steps)


class _Scored(Mean):
    """A mean over the scored steps."""

    higher_is_better: bool | None = True

    def __init__(self, last_steps: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last_steps = last_steps


class CrossEntropy(_Scored):
    """Mean cross-entropy per token, nats."""

    higher_is_better = False

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (B, T, V) and targets (B, T)."""
        scored = scored_steps(targets, self.last_steps)
        self.add(functional.cross_entropy(logits[scored].float(), targets[scored], reduction="none"))


class Perplexity(CrossEntropy):
    """exp of the mean cross-entropy per token."""

    def compute(self) -> Tensor:
        """Return exp of the mean."""
        return super().compute().exp()


class BitsPerCharacter(CrossEntropy):
    """Mean cross-entropy per token in bits, for tokens that are characters or bytes."""

    def compute(self) -> Tensor:
        """Return the mean in bits."""
        return super().compute() / math.log(2)


class SymbolAccuracy(_Scored):
    """Share of scored tokens whose most likely prediction is right, 0 to 1."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (B, T, V) and targets (B, T)."""
        scored = scored_steps(targets, self.last_steps)
        self.add(logits[scored].argmax(dim=-1) == targets[scored])


class SequenceAccuracy(_Scored):
    """Share of sequences in which every scored token is right, 0 to 1."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (B, T, V) and targets (B, T)."""
        wrong = (logits.argmax(dim=-1) != targets) & scored_steps(targets, self.last_steps)
        self.add(~wrong.any(dim=1))
