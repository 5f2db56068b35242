"""Which metrics earlier parts of a run have logged."""

import math
from collections.abc import Mapping
from typing import Any


class Logged:
    """The metrics that earlier parts of a run have logged; after a resume some steps are trained again.

    Example:
        >>> logged = Logged()
        >>> logged.note({"train/loss": 0.5}, step=300)
        >>> logged.new({"train/loss": 0.6}, step=250), logged.new({"train/loss": 0.4}, step=301)
        ({}, {'train/loss': 0.4})
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float]] = {}

    def note(self, values: Mapping[str, float], step: int) -> None:
        """Add logged values."""
        for name, value in values.items():
            if step >= self._last.get(name, (step, 0.0))[0]:
                self._last[name] = step, value

    def new(self, values: Mapping[str, float], step: int) -> dict[str, float]:
        """Return those of ``values`` that are not logged yet; a repeated test may have another result."""
        return {name: value for name, value in values.items() if self._is_new(name, value, step)}

    def _is_new(self, name: str, value: float, step: int) -> bool:
        last_step, last_value = self._last.get(name, (-1, 0.0))
        is_same = value == last_value or (math.isnan(value) and math.isnan(last_value))
        return step > last_step or (name.startswith("test/") and not is_same)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}
