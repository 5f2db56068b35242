"""The parts of a RIM's layers, from what its constructor was given and a preset."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rimlit.checks import require_known
from rimlit.errors import ConfigError
from rimlit.mechanisms import (
    Balance,
    Communication,
    Dynamics,
    LeastNull,
    Part,
    RIMLayer,
    Selection,
    Sharing,
    part_factory,
)
from rimlit.mechanisms.selection import require_active

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {  # table 3
        "communication": {"key_size": 32, "value_size": 32, "output": "linear", "inactive": "preserved"},
    },
    "official": {  # what the authors' released code does
        "communication": {"key_size": 16, "value_size": 16, "output": "gated", "inactive": "candidate"},
    },
}


class Parts(NamedTuple):
    """What builds the parts of a layer."""

    selection: Callable[..., Selection]
    cell: Callable[..., Dynamics]
    communication: Callable[..., Communication]
    sharing: Callable[..., Sharing]
    input_sharing: Callable[..., Sharing]
    balance: Callable[..., Balance]


_KINDS: dict[str, tuple[type[Part], str]] = {
    "selection": (Selection, "least_null"),
    "cell": (Dynamics, "lstm"),
    "communication": (Communication, "attention"),
    "sharing": (Sharing, "independent"),
    "input_sharing": (Sharing, "shared"),
    "balance": (Balance, "none"),
}


def preset_parts(preset: str, **given: Any) -> Parts:
    """Return what builds each part: what was given, filled up by the preset.

    Raises:
        ConfigError: A part is unknown.
    """
    require_known(preset=(preset, tuple(PRESETS)))
    factories: dict[str, Any] = {}
    for name, (base, default) in _KINDS.items():
        spec: Mapping[str, Any] = {"class_path": default, "init_args": PRESETS[preset].get(name, {})}
        factories[name] = part_factory(given[name], base, name, spec)
    return Parts(**factories)


def make_layer(
    parts: Parts,
    input_size: int,
    size: int,
    num_mechanisms: int,
    num_active: int,
    *,
    input_attention: bool,
    normalize_scores: bool,
    **options: Any,
) -> RIMLayer:
    """Return a layer of ``num_mechanisms`` mechanisms of ``size`` features; options as in :class:`RIMLayer`.

    Raises:
        ConfigError: The selection does not fit a layer without input attention.
    """
    require_active(num_active, num_mechanisms)
    selection = parts.selection(num_mechanisms, num_active)
    if (selection.num_mechanisms, selection.num_active) != (num_mechanisms, num_active):
        raise ConfigError(
            f"selection must be made for num_mechanisms={num_mechanisms} and num_active={num_active}; got one for "
            f"num_mechanisms={selection.num_mechanisms} and num_active={selection.num_active}."
        )
    if not input_attention:
        is_plain = (
            type(selection) is LeastNull and not (selection.graded or selection.dynamic) and not normalize_scores
        )
        if num_active != num_mechanisms or not is_plain:
            raise ConfigError(
                "input_attention=False leaves nothing to select by: it needs num_active=num_mechanisms and "
                f"a plain 'least_null' as selection; got num_active={num_active}, "
                f"num_mechanisms={num_mechanisms}, selection={selection}."
            )
    return RIMLayer(
        input_size,
        size,
        selection=selection,
        dynamics=parts.cell,
        communication=parts.communication,
        sharing=parts.sharing,
        input_sharing=parts.input_sharing,
        balance=parts.balance(num_mechanisms, num_active),
        input_attention=input_attention,
        normalize_scores=normalize_scores,
        **options,
    )
