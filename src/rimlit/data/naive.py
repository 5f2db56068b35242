"""Forecasts without a model: the last value, and the value one season before."""

from collections.abc import Sequence

import numpy as np

from rimlit.data.windows import Window


def naive_forecasts(
    values: Sequence[np.ndarray], windows: Sequence[Window], horizon: int, season: int
) -> np.ndarray:
    """Repeat the last season before each forecast.

    Args:
        values: (rows, V) for each series.
        windows: Windows whose last ``horizon`` rows are forecast.
        horizon: Rows of a forecast.
        season: Rows of a season; 1 repeats the last value. A series that is shorter has its last value repeated.

    Returns:
        (windows, horizon, V).

    Example:
        >>> series = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
        >>> naive_forecasts([series], [Window(0, 6)], horizon=3, season=2)[..., 0].tolist()
        [[2.0, 3.0, 2.0]]
    """
    found = []
    for series, end in windows:
        now = end - horizon
        length = season if season <= now else 1
        found.append(values[series][now - length : now][np.arange(horizon) % length])
    return np.stack(found)


def true_values(values: Sequence[np.ndarray], windows: Sequence[Window], horizon: int) -> np.ndarray:
    """Return the true values: (windows, horizon, V)."""
    return np.stack([values[series][end - horizon : end] for series, end in windows])
