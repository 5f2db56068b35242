"""Spaces that are searched: settings of rimlit, each with a range or a list of values."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rimlit.comparison.tuning import full_setting, require_tunable
from rimlit.errors import ConfigError
from rimlit.yaml_files import load_given

EXAMPLE = "model.optimizer.lr: {log_uniform: [0.0001, 0.01]}"
KINDS = {
    "uniform": "numbers between two ends",
    "log_uniform": "numbers above 0 between two ends, alike on a logarithmic scale",
    "int": "whole numbers, both ends included",
    "log_int": "whole numbers of at least 1, alike on a logarithmic scale",
    "choice": "two or more values",
}
"""What a setting may be given, with its meaning."""


class Dimension(NamedTuple):
    """A setting of a space: a range, or values to choose from."""

    setting: str
    kind: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The last part of the setting."""
        return self.setting.rpartition(".")[2]

    @property
    def is_choice(self) -> bool:
        """Whether it has a list of values, and no range."""
        return self.kind == "choice"

    @property
    def is_log(self) -> bool:
        """Whether its scale is logarithmic."""
        return self.kind.startswith("log_")

    def label(self, value: Any) -> Any:
        """Return a value as storages keep it: a number or word as it is, anything else as YAML in one line."""
        if value is None or isinstance(value, str | int | float | bool):
            return value
        return yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip()

    def value_of(self, label: Any) -> Any:
        """Return the value whose :meth:`label` this is."""
        return next((value for value in self.values if self.label(value) == label), label)


@dataclass(frozen=True)
class Space:
    """The settings that are searched together.

    Args:
        dimensions: One per setting.
    """

    dimensions: tuple[Dimension, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """The full names of the settings."""
        return tuple(dimension.setting for dimension in self.dimensions)

    def report(self) -> dict[str, Any]:
        """Return the space as plain data: by setting, its kind and values."""
        return {dimension.setting: {dimension.kind: list(dimension.values)} for dimension in self.dimensions}


def read_space(given: str | Path | Mapping[str, Any]) -> Space:
    """Return a space from a YAML file or a mapping of settings.

    Args:
        given: Such as ``{"model.optimizer.lr": {"log_uniform": [1e-4, 1e-2]}}``, or the file that holds it.
            A list of values is short for ``{"choice": [...]}``, ``lr`` for ``model.optimizer.lr``.

    Raises:
        ConfigError: It cannot be read, or a setting, a kind or a value of it cannot be searched.

    Example:
        >>> read_space({"lr": {"log_uniform": [1e-4, 1e-2]}}).settings
        ('model.optimizer.init_args.lr',)
    """
    whose = "space"
    if isinstance(given, str | Path):
        whose = f"space={str(given)!r}"
        given = load_given(Path(given), whose, f"settings, such as {EXAMPLE}")
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{whose} must hold settings, such as {EXAMPLE}; got {given!r}.")
    dimensions = [_dimension(str(key), entry, whose) for key, entry in given.items()]
    settings = [dimension.setting.replace(".init_args", "") for dimension in dimensions]
    for setting in settings:
        if settings.count(setting) > 1:
            raise ConfigError(f"{whose} has {setting} twice.")
    return Space(tuple(dimensions))


def _dimension(key: str, entry: Any, whose: str) -> Dimension:
    setting = full_setting(key)
    require_tunable(setting, key, whose, EXAMPLE)
    if isinstance(entry, Sequence) and not isinstance(entry, str):
        entry = {"choice": entry}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(f"{whose}: {key} must have one of {', '.join(KINDS)}, such as {EXAMPLE}; got {entry!r}.")
    ((kind, values),) = entry.items()
    if kind not in KINDS:
        near = get_close_matches(str(kind), KINDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{whose}: {key} has {kind!r}; there are {', '.join(KINDS)}.{hint}")
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{whose}: {key}.{kind} must be a list: {KINDS[kind]}; got {values!r}.")
    if kind == "choice":
        if len(values) < 2 or any(value in values[:index] for index, value in enumerate(values)):
            raise ConfigError(
                f"{whose}: {key}.choice must hold two or more different values; got {list(values)!r}."
            )
        return Dimension(setting, kind, tuple(values))
    ends = tuple(_number(value, int if kind.endswith("int") else float) for value in values)
    least = {"log_uniform": 0, "log_int": 1}.get(kind, -math.inf)
    is_right = len(ends) == 2 and None not in ends and ends[0] < ends[1] and ends[0] >= least
    if not is_right or (kind == "log_uniform" and not ends[0]):
        raise ConfigError(f"{whose}: {key}.{kind} must be [LOW, HIGH], {KINDS[kind]}; got {list(values)!r}.")
    return Dimension(setting, kind, ends)


def _number(value: Any, kind: Callable[[Any], Any]) -> Any:
    """Return a finite number, None of anything else; YAML reads 1e-4, without a point, as text."""
    if isinstance(value, bool) or (kind is int and not isinstance(value, int)):
        return None
    try:
        number = kind(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
