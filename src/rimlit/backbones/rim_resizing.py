"""A RIM with more or fewer mechanisms than it was trained with, where they share their weights."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.errors import ConfigError
from rimlit.mechanisms import Part, Sharing
from rimlit.mechanisms.selection import require_active
from rimlit.nn.resizing import resize_module, resize_weights


def with_mechanisms(rim: Any, num_mechanisms: int, num_active: int) -> Any:
    """See :meth:`rimlit.RIM.with_mechanisms`."""
    require_positive(num_mechanisms=num_mechanisms)
    require_active(num_active, num_mechanisms)
    require_resizable(rim.layers)
    resized = copy.deepcopy(rim)
    for module in resized.modules():
        if isinstance(module, Part) or hasattr(module, "num_mechanisms"):
            if hasattr(module, "num_active"):
                module.num_active = num_active
            if hasattr(module, "num_mechanisms"):
                module.num_mechanisms = num_mechanisms
    layer, initial = resized.layers[0], resized.initial
    layer.balance.resize(num_mechanisms)
    resized.output_size = resized.hidden_size = num_mechanisms * layer.size
    initial.shape = (1, num_mechanisms, layer.size)
    resize_module(resized, num_mechanisms)
    return resized


def require_resizable(layers: nn.ModuleList) -> None:
    """Raise a ConfigError unless a RIM of these layers can have another number of mechanisms."""
    if len(layers) > 1:
        raise ConfigError(
            f"with_mechanisms needs num_layers=1: a second layer reads all mechanisms below; got "
            f"num_layers={len(layers)}."
        )
    for name, module in layers[0].named_modules():
        if isinstance(module, Sharing) and not module.is_resizable:
            raise ConfigError(
                f"with_mechanisms needs weights that all mechanisms share, sharing='shared' or 'embedded'; {name} "
                f"is {type(module).__name__}."
            )


def fit_weights(rim: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights of a RIM with another number of mechanisms for ``rim``.

    Raises:
        ConfigError: As in :func:`require_resizable`.
    """
    adapted = resize_weights(rim, weights)
    resized = [name for name in weights if adapted[name] is not weights[name]]
    if not resized:
        return weights
    own = rim.state_dict()
    if any(name not in own or own[name].shape != adapted[name].shape for name in resized):
        return weights  # of another model, which loading them says
    require_resizable(rim.layers)
    return adapted
