"""A RIM step by step: `rim.step` and `rim.stepper`."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from rimlit import RIM
from tests.backbones.small_rim import (
    FAST,
)
from tests.conftest import random_tensor
from tests.laws.backbone_cases import nested

STEPPED = {
    "wide": {},
    "gru": {"cell": "gru"},
    "official": {"preset": "official"},
    "official_gru": {"preset": "official", "cell": "gru"},
    "heads": {"input_heads": 2, "input_sharing": "independent"},
    "across": {"selection": "across_mechanisms"},
    "silent": {"communication": "none"},
    "tanh": {"communication.output": "tanh"},
    "cell_gate": {"communication.output": "cell_gate", "cell": "gru"},
    "continuous": {"selection": {"margin": "scores"}},
    "dynamic_capped": {
        "selection": {"dynamic": True, "graded": True},
        "soft_cap": 2.0,
        "score_bias": 0.5,
    },
    "shared": {"sharing": "shared"},
    "two_layers": {"num_layers": 2},
}


@pytest.mark.parametrize("input_size", [1, 40])  # where folding pays and where it does not
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("options", STEPPED.values(), ids=STEPPED)
def test_a_stepper_gives_what_a_sequence_gives(options: dict[str, Any], backend: str, input_size: int) -> None:
    sizes = {"num_mechanisms": 5, "num_active": 2, "learn_initial_state": True, "backend": backend}
    rim = RIM(input_size, 30, **nested({**sizes, **options}))
    rim = rim.double().eval()
    inputs = random_tensor(3, 4, input_size, dtype=torch.float64)
    expected, last = rim(inputs)
    stepper, state = rim.stepper(3), rim.initial_state(3)
    for step in range(4):
        features, state = stepper(inputs[:, step], state)
        torch.testing.assert_close(features, expected[:, step], rtol=1e-10, atol=1e-12)
        assert not features.requires_grad
    for part, other in zip(state, last, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("choice", [{"num_active": 2}, {"num_active": 3, "input_attention": False}])
def test_a_step_reads_the_weights_as_they_are(choice: dict[str, Any]) -> None:
    rim, inputs = RIM(2, 12, num_mechanisms=3, **choice).eval(), random_tensor(1, 2)
    with torch.no_grad():
        before, _ = rim.step(inputs, rim.initial_state(1))
        for parameter in rim.parameters():
            parameter.data.mul_(2)  # as fused optimisers do: autograd's count of versions does not see it
        after, _ = rim.step(inputs, rim.initial_state(1))
        copied, _ = copy.deepcopy(rim).step(inputs, rim.initial_state(1))
    expected, _ = rim(inputs[:, None])
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, expected[:, 0])
    assert torch.equal(copied, after)


def test_a_stepper_keeps_the_weights_it_was_built_from() -> None:
    rim, inputs = RIM(2, 12, num_mechanisms=3, num_active=2).eval(), random_tensor(1, 2)
    stepper, state = rim.stepper(), rim.initial_state(1)
    before, _ = stepper(inputs, state)
    for parameter in rim.parameters():
        parameter.data = torch.zeros_like(parameter)
    assert torch.equal(stepper(inputs, state)[0], before)


@pytest.mark.parametrize("is_cast", [True, False])
def test_a_stepper_rounds_to_bfloat16_where_a_step_does(is_cast: bool) -> None:
    rim, inputs = RIM(2, 12, num_mechanisms=3, num_active=2, project_in_bf16=is_cast).eval(), random_tensor(1, 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not is_cast):
        expected, _ = rim.step(inputs, rim.initial_state(1))
        features, _ = rim.stepper()(inputs, rim.initial_state(1))
    assert torch.equal(features, expected)


def test_threads_that_share_a_rim_step_it_without_harm() -> None:
    rim = RIM(2, 24, num_mechanisms=3, num_active=2).eval()
    inputs = random_tensor(4, 1, 2)

    def walk(which: int) -> torch.Tensor:
        with torch.no_grad():
            state = rim.initial_state(1)
            for _ in range(300):
                features, state = rim.step(inputs[which], state)
        return features

    expected = [walk(which) for which in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for features, other in zip(pool.map(walk, range(4)), expected, strict=True):
            assert torch.equal(features, other)


def test_a_stepper_refuses_shapes_it_was_not_built_for() -> None:
    rim = RIM(2, 12, num_mechanisms=3, num_active=2).eval()
    stepper = rim.stepper(2)
    with pytest.raises(
        ValueError, match=r"inputs must be \(batch_size, input_size\) = \(2, 2\); got shape \(1, 2\)"
    ):
        stepper(torch.ones(1, 2), rim.initial_state(1))
    with pytest.raises(
        ValueError, match=r"state must be LSTMState\(hidden=float32 \(2, 1, 3, 4\), .* got .*\(1, 1, 3, 4\)"
    ):
        stepper(torch.ones(2, 2), rim.initial_state(1))
    other = RIM(2, 12, num_mechanisms=3, num_active=2, cell="gru")
    with pytest.raises(
        ValueError, match=r"state must be LSTMState\(.* got GRUState\(hidden=float32 \(2, 1, 3, 4\)\)\."
    ):
        stepper(torch.ones(2, 2), other.initial_state(2))
    with pytest.raises(ValueError, match=r"batch_size must be at least 1; got batch_size=0"):
        rim.stepper(0)
