"""What in a module is random while it trains, so that a second forward pass differs from the first."""

from typing import NamedTuple

from torch import nn

from rimlit.mechanisms.balance import Balance
from rimlit.mechanisms.selection import Selection


class RandomPart(NamedTuple):
    """A part of a module that draws random numbers in training."""

    source: str  # the argument that removes it, or the class of a noisy rule
    value: float | None  # the probability of a dropout, None for a rule
    module: str  # where it is, as named_modules has it; "" for the module itself

    def __str__(self) -> str:
        what = self.source if self.value is None else f"{self.source}={self.value}"
        return f"{what} in {self.module}" if self.module else what


def find_noise(module: nn.Module) -> RandomPart | None:
    """Return the first part of ``module`` that is random in training: a dropout, a noisy selection or balance.

    Example:
        >>> str(find_noise(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1))))
        'dropout=0.1 in 1'
    """
    for name, inner in module.named_modules():
        if isinstance(inner, Selection | Balance) and inner.is_noisy:
            return RandomPart(type(inner).__name__, None, name)
        dropouts = {key: value for key, value in vars(inner).items() if "dropout" in key}
        if isinstance(inner, nn.Dropout):
            dropouts["dropout"] = inner.p
        for key, value in dropouts.items():
            if isinstance(value, float) and value > 0:
                return RandomPart(key, value, name)
    return None
