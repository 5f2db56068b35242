"""The parts of a RIM's layers, from what its constructor was given and a preset."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rimlit.checks import require_dropout, require_known, require_positive
from rimlit.errors import ConfigError
from rimlit.mechanisms import (
    Balance,
    Communication,
    Dynamics,
    LeastNull,
    RIMLayer,
    Selection,
    Sharing,
    part_factory,
)
from rimlit.mechanisms.selection import require_active
from rimlit.spec import Spec


class Recipe(NamedTuple):
    """What a preset fills in for a RIM with mechanisms of a certain size."""

    selection: Spec
    cell: Spec
    communication: Spec
    input_key_size: int
    input_value_size: int
    input_dropout: float
    communication_dropout: float
    learn_initial_state: bool


def paper(size: int) -> Recipe:
    """Return the paper's recipe (Goyal et al. 2021, table 3)."""
    talk = {"key_size": 32, "value_size": 32, "output": "linear", "inactive": "preserved"}
    return Recipe(
        selection={"class_path": "least_null", "init_args": {}},
        cell={"class_path": "lstm", "init_args": {}},
        communication={"class_path": "attention", "init_args": talk},
        input_key_size=64,
        input_value_size=4 * size,
        input_dropout=0.1,
        communication_dropout=0.1,
        learn_initial_state=False,
    )


def official(size: int) -> Recipe:
    """Return what the authors' released code does."""
    talk = {"key_size": 16, "value_size": 16, "output": "gated", "inactive": "candidate"}
    return paper(size)._replace(communication={"class_path": "attention", "init_args": talk})


def continuous(size: int) -> Recipe:
    """Return the recipe that learns best over our tasks (``docs/competition.md``).

    A winner's update fades in with its lead over the best loser, the communication passes through the cell's gate,
    and attention is as large as the mechanisms ask for.
    """
    attention = 16 * max(1, round(size / 16))
    heads = 8 * max(1, round(size / 32))
    talk = {"key_size": heads, "value_size": heads, "output": "cell_gate", "inactive": "preserved"}
    return Recipe(
        selection={"class_path": "least_null", "init_args": {"margin": "scores", "width": 0.5}},
        cell={"class_path": "gru", "init_args": {}},
        communication={"class_path": "attention", "init_args": talk},
        input_key_size=attention,
        input_value_size=attention,
        input_dropout=0.0,
        communication_dropout=0.0,
        learn_initial_state=True,
    )


PRESETS: dict[str, Callable[[int], Recipe]] = {"paper": paper, "official": official, "continuous": continuous}


class Parts(NamedTuple):
    """What builds the parts of a layer."""

    selection: Callable[..., Selection]
    cell: Callable[..., Dynamics]
    communication: Callable[..., Communication]
    sharing: Callable[..., Sharing]
    input_sharing: Callable[..., Sharing]
    balance: Callable[..., Balance]


def recipe_of(preset: str, size: int, **given: Any) -> Recipe:
    """Return the recipe of a preset for mechanisms of ``size`` features, with what was given in its place.

    Raises:
        ConfigError: The preset is unknown, or a size or a dropout is out of its range.
    """
    require_known(preset=(preset, tuple(PRESETS)))
    recipe = PRESETS[preset](size)
    recipe = recipe._replace(**{name: value for name, value in given.items() if value is not None})
    require_positive(input_key_size=recipe.input_key_size, input_value_size=recipe.input_value_size)
    require_dropout(input_dropout=recipe.input_dropout, communication_dropout=recipe.communication_dropout)
    return recipe


def parts_of(preset: str, size: int, recipe: Recipe, **given: Any) -> Parts:
    """Return what builds each part.

    Args:
        preset: Fills the arguments that a part of its own class leaves out.
        size: Features d of a mechanism.
        recipe: The selection, cell and communication.
        **given: The sharings and the balance.

    Raises:
        ConfigError: A part is unknown.
    """
    own = PRESETS[preset](size)
    return Parts(
        selection=part_factory(recipe.selection, Selection, "selection", own.selection),
        cell=part_factory(recipe.cell, Dynamics, "cell", own.cell),
        communication=part_factory(recipe.communication, Communication, "communication", own.communication),
        sharing=part_factory(given["sharing"], Sharing, "sharing", _plain("independent")),
        input_sharing=part_factory(given["input_sharing"], Sharing, "input_sharing", _plain("shared")),
        balance=part_factory(given["balance"], Balance, "balance", _plain("none")),
    )


def _plain(name: str) -> Spec:
    return {"class_path": name, "init_args": {}}


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
