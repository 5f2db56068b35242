"""A small RIM in float64, for the tests of this folder."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.kernels import Activity
from tests.conftest import random_tensor
from tests.laws.backbone_cases import SMALL, nested

FAST = ("eager", "function", "cpu")
BATCH, STEPS, D, M, SIZE = 4, 5, 3, 5, 4

CHOICES: dict[str, dict[str, Any]] = {
    "paper_lstm": {},
    "paper_gru": {"cell": "gru"},
    "official_lstm": {"preset": "official"},
    "official_gru": {"preset": "official", "cell": "gru"},
    "heads": {"input_heads": 2, "input_sharing": "independent"},
    "across_mechanisms": {"selection": "across_mechanisms"},
    "silent": {"communication": "none"},
}
every_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


def make_rim(**arguments: Any) -> RIM:
    """A small RIM in float64, each mechanism with an initial state of its own."""
    defaults: dict[str, Any] = {"num_mechanisms": M, "num_active": 2, "learn_initial_state": True, **SMALL}
    rim = RIM(D, M * SIZE, **nested({**defaults, **arguments})).double()
    with torch.no_grad():
        for parameter in rim.parameters():
            parameter.mul_(2)  # scores that differ clearly
    return rim.eval()


def make_inputs(*, slots: int | None = None, steps: int = STEPS) -> Tensor:
    shape = (BATCH, steps, D) if slots is None else (BATCH, steps, slots, D)
    return 2 * random_tensor(*shape, seed=3, dtype=torch.float64)


def activity_of(rim: RIM, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any, Activity]:
    with rim.record_activity() as activities:
        features, state = rim(inputs, state)
    return features, state, activities[-1]
