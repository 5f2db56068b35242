"""What each balance does to the loss and to the competition."""

from typing import Any

import pytest
import torch

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import ExpectedSparsity
from tests.conftest import random_tensor

DYNAMIC: dict[str, Any] = {"num_mechanisms": 4, "preset": "dynamic"}


def test_sleep_is_free_and_who_is_awake_pays_its_attention() -> None:
    relevance = torch.tensor([[[2.0], [-1.0]], [[0.5], [0.5]]], requires_grad=True)  # (T, M, B)
    penalty = ExpectedSparsity(2, 2, coefficient=0.4).penalty(relevance[..., None, None], relevance > 0)
    awake = torch.tensor([2.0, 0.5, 0.5]).sigmoid().sum() / 4
    torch.testing.assert_close(penalty, 0.4 * awake)
    (gradient,) = torch.autograd.grad(penalty, relevance)
    assert (gradient > 0).flatten().tolist() == [True, False, True, True]
    within = ExpectedSparsity(2, 2, coefficient=0.4, target=0.6)
    assert within.penalty(relevance[..., None, None], relevance > 0) == 0


@pytest.mark.parametrize("slots", [1, 2])
def test_attention_of_several_slots_and_heads_is_that_of_the_loop(slots: int) -> None:
    rim = RIM(3, 16, **DYNAMIC, input_heads=2, balance={"class_path": "expected_sparsity"}).train()
    with rim.record_activity() as activities:
        rim(random_tensor(2, 5, slots, 3))
    awake = (1 - activities[0].null_attention) * activities[0].active
    torch.testing.assert_close(rim.penalty(), 0.01 * awake.mean())


def test_a_price_on_waking_puts_mechanisms_to_sleep_in_the_cpp_loop() -> None:
    rim = RIM(3, 16, **DYNAMIC, balance={"class_path": "expected_sparsity", "init_args": {"coefficient": 1.0}})
    assert rim.resolve_backend()[0] == "cpu"
    optimizer, shares = torch.optim.SGD(rim.parameters(), lr=2.0), []
    for _ in range(30):
        with rim.record_activity() as activities:
            rim(random_tensor(4, 6, 3))
        shares.append(float(activities[0].active.float().mean()))
        optimizer.zero_grad()
        penalty = rim.penalty()
        assert penalty is not None
        penalty.backward()
        optimizer.step()
    assert shares[0] > 0.9
    assert shares[-1] < 0.3


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        (
            {"class_path": "expected_sparsity", "coefficient": -1.0},
            r"^balance: coefficient must be at least 0 and finite; got coefficient=-1\.0\.",
        ),
        (
            {"class_path": "expected_sparsity", "target": 2.0},
            r"^balance: target must be between 0 and 1; got target=2\.0\.",
        ),
    ],
)
def test_a_value_out_of_its_range_is_named(balance: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RIM(3, 16, **DYNAMIC, balance=balance)
