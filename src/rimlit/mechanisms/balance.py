"""What keeps the competition from being won by the same mechanisms for ever, or disturbs it on purpose."""

from typing import ClassVar

from torch import Tensor

from rimlit.mechanisms.base import Part
from rimlit.mechanisms.selection import attend_against_null, log_odds


class Balance(Part):
    """Influence on who wins. A subclass gives any of the methods; by default none has an effect.

    No time loop sees more than the offset.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
    """

    sizes: ClassVar[tuple[str, ...]] = ("num_mechanisms", "num_active")

    def __init__(self, num_mechanisms: int, num_active: int) -> None:
        super().__init__()
        self.num_mechanisms = num_mechanisms
        self.num_active = num_active

    def offset(self, num_steps: int, batch_size: int) -> Tensor | None:
        """Return what is added to the relevance for the ranking only, (T or 1, M, B or 1), or None.

        It carries no gradient; −∞ keeps a mechanism inactive.
        """
        return None

    def penalty(self, scores: Tensor, active: Tensor) -> Tensor | None:
        """Return a term of the loss, a scalar, from the scores of a training forward, or None.

        Args:
            scores: Scores (T, M, B, I, N) of the input, with a gradient.
            active: (T, M, B) bool.
        """
        return None

    def after_step(self) -> None:
        """Run after each optimiser step."""


class NoBalance(Balance):
    """No influence (the paper)."""


def relevance_of(scores: Tensor) -> Tensor:
    """Return the log-odds of reading the input against null (T, M, B) from the scores (T, M, B, I, N)."""
    relevance = log_odds(attend_against_null(scores.flatten(0, 1))[1])
    return relevance.view(*scores.shape[:2], -1)
