"""Checks of arguments: each raises a ConfigError that names the argument, its value and what is allowed."""

import math
from collections.abc import Collection, Sequence

from rimlit.errors import ConfigError


def require_at_least(least: int, **values: float | Sequence[float] | None) -> None:
    """Raise a ConfigError that names the first of ``values`` below ``least``; None, where it is allowed, is not.

    Of a sequence each item is checked.

    Example:
        >>> require_at_least(1, batch_size=64, num_layers=0)
        Traceback (most recent call last):
        ...
        rimlit.errors.ConfigError: num_layers must be at least 1; got num_layers=0.
    """
    for name, value in values.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            require_at_least(least, **{f"{name}[{index}]": item for index, item in enumerate(value)})
        elif value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}; got {name}={value}.")


def require_positive(**sizes: int | Sequence[int] | None) -> None:
    """Raise a ConfigError that names the first of ``sizes`` below 1."""
    require_at_least(1, **sizes)


def require_dropout(**dropouts: float) -> None:
    """Raise a ConfigError that names the first of ``dropouts`` outside [0, 1)."""
    for name, dropout in dropouts.items():
        if not 0 <= dropout < 1:
            raise ConfigError(f"{name} must be at least 0 and below 1; got {name}={dropout}.")


def require_above_zero(**values: float) -> None:
    """Raise a ConfigError that names the first of ``values`` that is not finite and above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} must be above 0 and finite; got {name}={value}.")


def require_not_negative(**values: float) -> None:
    """Raise a ConfigError that names the first of ``values`` that is not finite and at least 0."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be at least 0 and finite; got {name}={value}.")


def require_share(**shares: float) -> None:
    """Raise a ConfigError that names the first of ``shares`` outside [0, 1]."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} must be between 0 and 1; got {name}={share}.")


def require_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise a ConfigError unless validation and test get a part each and leave one for training."""
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise ConfigError(
            "val_fraction and test_fraction must be above 0 and sum to less than 1; got "
            f"val_fraction={val_fraction}, test_fraction={test_fraction}."
        )


def require_known(**choices: tuple[str, Collection[str]]) -> None:
    """Raise a ConfigError that names the first of ``choices`` (value, known values) that is not known."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}; got {name}={value!r}.")
