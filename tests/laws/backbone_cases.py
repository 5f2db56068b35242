"""Every backbone that exists, found by introspection, and the variants of it that the laws are tried on."""

from typing import Any

import pytest

from rimlit.backbones import Backbone, Bidirectional
from rimlit.testing import classes_in

INPUT_SIZE, HIDDEN_SIZE = 5, 24

SMALL: dict[str, Any] = {
    "input_key_size": 5,
    "input_value_size": 7,
    "communication.heads": 2,
    "communication.key_size": 3,
    "communication.value_size": 4,
}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "RIM": {
        "gru": {"cell": "gru", **SMALL},
        "official": {"preset": "official", **SMALL},
        "sparse": {"preset": "sparse", **SMALL},
        "best": {"preset": "dynamic", "selection": {"dynamic": False, "margin": "best"}, **SMALL},
        "official_gru": {"preset": "official", "cell": "gru", "learn_initial_state": True, **SMALL},
        "two_layers": {"num_layers": 2, "dropout": 0.2, "learn_initial_state": True, **SMALL},
        "heads": {"input_heads": 3, "input_sharing": "independent", "learn_initial_state": True, **SMALL},
        "across_mechanisms": {"selection": "across_mechanisms", "learn_initial_state": True, **SMALL},
        "across_heads": {"selection": "across_mechanisms", "input_heads": 2, "cell.forget_bias": 1.0, **SMALL},
        "silent": {"communication": "none", "num_active": 2, "learn_initial_state": True, **SMALL},
        "all_active": {"num_mechanisms": 3, "num_active": 3, **SMALL},
        "unattended": {"input_attention": False, "num_active": 6, "learn_initial_state": True, **SMALL},
        "single": {"num_mechanisms": 1, "num_active": 1, **SMALL},
    },
    "BRIM": {
        "top": {
            "num_mechanisms": (4, 2, 3),
            "num_active": (3, 2, 2),
            "top_down": "top",
            "cell": "gru",
            "input_heads": 2,
            "learn_initial_state": True,
            **SMALL,
        },
    },
    "LSTM": {
        "two_layers": {"num_layers": 2, "dropout": 0.2},
        "learned": {"learn_initial_state": True, "forget_bias": 1.0},
    },
    "GRU": {
        "two_layers": {"num_layers": 2, "dropout": 0.2},
        "learned": {"learn_initial_state": True},
    },
    "DNC": {
        "learned": {"num_locations": 6, "word_size": 4, "num_read_heads": 2, "learn_initial_state": True},
        "one_head": {"num_locations": 2, "word_size": 3, "num_read_heads": 1},
    },
    "EntNet": {"few_slots": {"num_slots": 3}, "one_slot": {"num_slots": 1}},
    "MinGRU": {
        "two_layers": {"num_layers": 2, "dropout": 0.2},
        "learned": {"num_layers": 2, "learn_initial_state": True, "forget_bias": 1.0},
    },
    "NTM": {
        "heads": {"num_locations": 7, "word_size": 3, "num_read_heads": 2, "num_write_heads": 2},
        "learned": {"num_locations": 6, "word_size": 4, "max_shift": 2, "learn_initial_state": True},
        "still": {"num_locations": 4, "word_size": 3, "max_shift": 0},
    },
    "RMC": {
        "uneven_heads": {"num_slots": 3, "num_heads": 5},
        "learned": {"num_slots": 2, "num_heads": 1, "learn_initial_state": True, "forget_bias": 0.0},
    },
    "RNN": {
        "two_layers": {"num_layers": 2, "dropout": 0.2},
        "learned": {"learn_initial_state": True, "nonlinearity": "relu"},
    },
    "Transformer": {
        "short_context": {"num_layers": 2, "num_heads": 3, "context": 4, "dropout": 0.0},
        "shortest_context": {"num_layers": 1, "num_heads": 1, "context": 2, "feedforward_size": 7},
        "uneven_heads": {"num_layers": 2, "num_heads": 5, "context": 9},
    },
}


def nested(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments, with those of a part, such as ``communication.heads``, in a mapping."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        part, _, inner = name.partition(".")
        if not inner:
            found[part] = value
        elif isinstance(found.setdefault(part, {}), dict):
            found[part][inner] = value
    return found


def backbone_classes() -> list[type[Backbone]]:
    """Return every class that is built from sizes; a keyword of theirs builds :class:`Bidirectional`."""
    return [cls for cls in classes_in("rimlit.backbones", Backbone) if cls is not Bidirectional]


def backbone_cases() -> list[Any]:
    """Return a pytest parameter (class, keyword arguments) for each class and variant."""
    return [
        pytest.param(cls, arguments, id=f"{cls.__name__}-{name}")
        for cls in backbone_classes()
        for name, arguments in {"default": {}, **VARIANTS.get(cls.__name__, {})}.items()
    ]


def make_backbone(cls: type[Backbone], arguments: dict[str, Any]) -> Backbone:
    """Build a small backbone of ``cls``."""
    return cls(INPUT_SIZE, HIDDEN_SIZE, **nested(arguments))  # type: ignore[call-arg]
