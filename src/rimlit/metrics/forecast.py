"""Metrics of forecasts several steps ahead, each counted once per number; sums are kept in float64.

All take forecasts (B, H, V, Q), which are quantiles at the levels of the task, or one number where Q is 1, and
true values, (B, H, V). ``curve`` holds the score of each step ahead (H,) after :meth:`compute`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ForecastMean(Metric):
    """The mean of a score over all steps ahead, and over each.

    Args:
        horizon: Steps ahead H.
    """

    full_state_update = False
    higher_is_better: bool | None = False
    total: Tensor
    count: Tensor

    def __init__(self, horizon: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.curve: Tensor | None = None
        self.add_state("total", torch.zeros(horizon, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def add(self, scores: Tensor) -> None:
        """Add scores (B, H, …), each of which counts once."""
        self.total += scores.flatten(2).sum(dim=(0, 2), dtype=self.total.dtype)
        self.count += scores[:, 0].numel()

    def compute(self) -> Tensor:
        """Return the mean over all steps ahead."""
        self.curve = self.total / self.count
        return self.curve.mean()


class ForecastSquaredError(ForecastMean):
    """Mean squared error of the middle quantile, or of the one number."""

    def update(self, forecasts: Tensor, targets: Tensor) -> None:
        """Add forecasts and true values."""
        self.add((middle(forecasts).float() - targets.float()).square())


class ForecastAbsoluteError(ForecastMean):
    """Mean absolute error of the middle quantile, or of the one number."""

    def update(self, forecasts: Tensor, targets: Tensor) -> None:
        """Add forecasts and true values."""
        self.add((middle(forecasts).float() - targets.float()).abs())


class Pinball(ForecastMean):
    """Mean pinball loss over all levels (Koenker and Bassett 1978); half the absolute error at the median.

    Args:
        horizon: Steps ahead H.
        levels: Levels of the quantiles, 0 to 1.

    Example:
        >>> metric = Pinball(1, levels=[0.5])
        >>> metric.update(torch.tensor([[[[1.0]]]]), torch.tensor([[[4.0]]]))
        >>> metric.compute().item()
        1.5
    """

    def __init__(self, horizon: int, levels: Sequence[float], **kwargs: Any) -> None:
        super().__init__(horizon, **kwargs)
        self.levels = tuple(levels)

    def update(self, forecasts: Tensor, targets: Tensor) -> None:
        """Add forecasts and true values."""
        self.add(pinball_losses(forecasts.float(), targets.float(), self.levels).mean(dim=-1))


class Coverage(ForecastMean):
    """Share of true values between two quantiles, 0 to 1; ideally the difference of their levels.

    Args:
        horizon: Steps ahead H.
        lower: Place of the lower quantile among the levels.
        upper: Place of the upper one.
    """

    higher_is_better = None

    def __init__(self, horizon: int, lower: int, upper: int, **kwargs: Any) -> None:
        super().__init__(horizon, **kwargs)
        self.places = lower, upper

    def update(self, forecasts: Tensor, targets: Tensor) -> None:
        """Add forecasts and true values."""
        lower, upper = (forecasts[..., place] for place in self.places)
        self.add((lower <= targets) & (targets <= upper))


def middle(forecasts: Tensor) -> Tensor:
    """Return the middle quantile (…) of forecasts (…, Q); of an even number the mean of two."""
    number = forecasts.shape[-1]
    return (forecasts[..., (number - 1) // 2] + forecasts[..., number // 2]) / 2


def pinball_losses(forecasts: Tensor, targets: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the pinball loss of each quantile.

    Args:
        forecasts: (…, Q).
        targets: (…).
        levels: Q levels, 0 to 1.

    Returns:
        (…, Q).
    """
    errors = targets.unsqueeze(-1) - forecasts
    at = errors.new_tensor(levels)
    return torch.maximum(at * errors, (at - 1) * errors)


def intervals(levels: Sequence[float]) -> dict[str, tuple[int, int]]:
    """Return the places of each central interval's quantiles by the percentage that it should cover.

    Example:
        >>> intervals([0.05, 0.1, 0.5, 0.9, 0.95])
        {'90': (0, 4), '80': (1, 3)}
    """
    found = {}
    for lower, level in enumerate(levels):
        for upper in range(lower + 1, len(levels)):
            if abs(level + levels[upper] - 1) < 1e-9:
                found[f"{100 * (levels[upper] - level):.6g}".replace(".", "_")] = (lower, upper)
    return found
