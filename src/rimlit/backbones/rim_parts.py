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
    Part,
    RIMLayer,
    Selection,
    Sharing,
    part_factory,
)
from rimlit.mechanisms.selection import require_active
from rimlit.spec import Spec


class Recipe(NamedTuple):
    """What a preset fills in for a RIM. Parts are specs, or whatever a user gave, until :func:`fill` has run."""

    num_active: int
    selection: Any
    cell: Any
    communication: Any
    input_key_size: int
    input_value_size: int
    score_bias: float | None
    input_dropout: float
    communication_dropout: float
    learn_initial_state: bool
    sharing: Any
    input_sharing: Any
    balance: Any


def paper(num_mechanisms: int, size: int) -> Recipe:
    """Return the paper's recipe (Goyal et al. 2021, table 3)."""
    talk = {"key_size": 32, "value_size": 32, "output": "linear", "inactive": "preserved"}
    return Recipe(
        num_active=4,
        selection=_spec("least_null"),
        cell=_spec("lstm"),
        communication=_spec("attention", **talk),
        input_key_size=64,
        input_value_size=4 * size,
        score_bias=None,
        input_dropout=0.1,
        communication_dropout=0.1,
        learn_initial_state=False,
        sharing=_spec("independent"),
        input_sharing=_spec("shared"),
        balance=_spec("none"),
    )


def official(num_mechanisms: int, size: int) -> Recipe:
    """Return what the authors' released code does."""
    talk = {"key_size": 16, "value_size": 16, "output": "gated", "inactive": "candidate"}
    return paper(num_mechanisms, size)._replace(communication=_spec("attention", **talk))


def dynamic(num_mechanisms: int, size: int) -> Recipe:
    """Return the recipe that we recommend; ``docs/competition.md`` says why.

    Each mechanism competes with null alone: it is active where it attends to the input more than to null, and its
    update fades in above that. Communication passes through the cell's gate, and the attention scales with d.
    """
    attention = 8 * max(2, round(size / 8))
    head = 4 * max(2, round(size / 16))
    talk = {"key_size": head, "value_size": head, "output": "cell_gate", "inactive": "preserved"}
    return paper(num_mechanisms, size)._replace(
        num_active=num_mechanisms,
        selection=_spec("least_null", dynamic=True, margin="probabilities", width=0.25),
        cell=_spec("gru"),
        communication=_spec("attention", **talk),
        input_key_size=attention,
        input_value_size=attention,
        score_bias=2.0,
        input_dropout=0.0,
        communication_dropout=0.0,
        learn_initial_state=True,
    )


def sparse(num_mechanisms: int, size: int) -> Recipe:
    """Return ``dynamic`` with a penalty for more activity than half of all mechanisms and steps.

    The penalty is part of the loss: tasks add it, a training loop of your own adds ``rim.penalty()``.
    """
    return dynamic(num_mechanisms, size)._replace(balance=_spec("expected_sparsity", coefficient=0.02, target=0.5))


def _spec(name: str, **arguments: Any) -> Spec:
    return {"class_path": name, "init_args": arguments}


PRESETS: dict[str, Callable[[int, int], Recipe]] = {
    "paper": paper,
    "official": official,
    "dynamic": dynamic,
    "sparse": sparse,
}


KINDS: dict[str, type[Part]] = {
    "selection": Selection,
    "cell": Dynamics,
    "communication": Communication,
    "sharing": Sharing,
    "input_sharing": Sharing,
    "balance": Balance,
}
"""Arguments of the RIM that take a part, and the base class of each."""


def fill(preset: str, num_mechanisms: int, size: int, **given: Any) -> Recipe:
    """Return the recipe of a preset with what was given in its place, and with factories for parts.

    Args:
        preset: Also fills the arguments that a part of its own class leaves out.
        num_mechanisms: Mechanisms M.
        size: Features d of each.
        **given: What takes the place of the preset's; None for what was not given.

    Raises:
        ConfigError: The preset or a part is unknown, or a size or a dropout is out of its range.
    """
    require_known(preset=(preset, tuple(PRESETS)))
    own = PRESETS[preset](num_mechanisms, size)
    recipe = own._replace(**{name: value for name, value in given.items() if value is not None})
    require_positive(input_key_size=recipe.input_key_size, input_value_size=recipe.input_value_size)
    require_dropout(input_dropout=recipe.input_dropout, communication_dropout=recipe.communication_dropout)
    require_active(recipe.num_active, num_mechanisms)
    parts: dict[str, Any] = {
        name: part_factory(getattr(recipe, name), base, name, getattr(own, name)) for name, base in KINDS.items()
    }
    return recipe._replace(**parts)


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
    """Raise a ConfigError where zero initial states would freeze the state."""
    selection = layer.selection
    if not isinstance(selection, LeastNull) or learns or not layer.input_attention:
        return
    if selection.margin not in ("none", "best") and layer.num_active < layer.num_mechanisms:
        raise ConfigError(
            "learn_initial_state must be true where selection has a margin: initial states of zeros tie all "
            "scores, every gate is 0, and the state stays zero forever; got learn_initial_state=False, "
            f"selection={selection}."
        )
    bias = layer.score_bias
    if selection.dynamic and (bias is None or not bool((bias > 0).all())):
        raise ConfigError(
            "learn_initial_state must be true, or score_bias above 0, where selection is dynamic: with initial "
            "states of zeros no score is above 0, and no mechanism is ever active; got learn_initial_state=False, "
            f"selection={selection}."
        )


def make_layer(
    recipe: Recipe,
    input_size: int,
    size: int,
    num_mechanisms: int,
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
    num_active = recipe.num_active
    selection = recipe.selection(num_mechanisms, num_active)
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
        dynamics=recipe.cell,
        communication=recipe.communication,
        sharing=recipe.sharing,
        input_sharing=recipe.input_sharing,
        balance=recipe.balance(num_mechanisms, num_active),
        input_key_size=recipe.input_key_size,
        input_value_size=recipe.input_value_size,
        input_dropout=recipe.input_dropout,
        communication_dropout=recipe.communication_dropout,
        score_bias=recipe.score_bias,
        input_attention=input_attention,
        soft_cap=soft_cap,
        normalize_scores=normalize_scores,
        **options,
    )
