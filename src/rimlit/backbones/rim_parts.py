"""The parts of a RIM's layers, from what its constructor was given and a preset."""

import math
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


def size_of(hidden_size: int, num_mechanisms: int) -> int:
    """Return the features d of a mechanism.

    Raises:
        ConfigError: ``hidden_size`` is not divisible by ``num_mechanisms``.
    """
    if hidden_size % num_mechanisms:
        near = hidden_size - hidden_size % num_mechanisms
        raise ConfigError(
            f"hidden_size must be divisible by num_mechanisms; got hidden_size={hidden_size}, "
            f"num_mechanisms={num_mechanisms} (near: {near or num_mechanisms}, {near + num_mechanisms})."
        )
    return hidden_size // num_mechanisms


def refuse_frozen_states(layer: RIMLayer, learns: bool) -> None:
    """Raise a ConfigError where zero initial states would freeze the state for ever."""
    selection = layer.selection
    if not isinstance(selection, LeastNull) or learns or not layer.input_attention:
        return
    if selection.margin != "none" and layer.num_active < layer.num_mechanisms:
        raise ConfigError(
            "learn_initial_state must be true where selection has a margin: initial states of zeros tie all "
            "scores, every gate is 0, and the state stays zero for ever; got learn_initial_state=False, "
            f"selection={selection}."
        )
    bias = layer.score_bias
    if selection.dynamic and (bias is None or not bool((bias > 0).all())):
        raise ConfigError(
            "learn_initial_state must be true, or score_bias above 0, where selection is dynamic: with initial "
            "states of zeros no score is above 0, and no mechanism ever wakes up; got learn_initial_state=False, "
            f"selection={selection}."
        )


def make_layer(
    parts: Parts,
    input_size: int,
    size: int,
    num_mechanisms: int,
    num_active: int,
    *,
    input_attention: bool,
    soft_cap: float | None,
    normalize_scores: bool,
    **options: Any,
) -> RIMLayer:
    """Return a layer of ``num_mechanisms`` mechanisms of ``size`` features; options as in :class:`RIMLayer`.

    Raises:
        ConfigError: The selection does not fit the layer, or ``soft_cap`` is out of its range.
    """
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ConfigError(f"soft_cap must be above 0 and finite, or None; got soft_cap={soft_cap}.")
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
        soft_cap=soft_cap,
        normalize_scores=normalize_scores,
        **options,
    )
