"""What each balance does to the loss and to the competition."""

import copy
import math
from typing import Any

import pytest
import torch

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import (
    ExpectedSparsity,
    GshardBalance,
    LossFreeBias,
    NoisyTopK,
    SwitchBalance,
    UsageFloor,
    ZLoss,
)
from tests.conftest import random_tensor

DYNAMIC: dict[str, Any] = {"num_mechanisms": 4, "preset": "dynamic"}


def test_inactive_mechanisms_cost_nothing_and_active_ones_their_attention() -> None:
    relevance = torch.tensor([[[2.0], [-1.0]], [[0.5], [0.5]]], requires_grad=True)  # (T, M, B)
    penalty = ExpectedSparsity(2, 2, coefficient=0.4).penalty(relevance, relevance > 0)
    awake = torch.tensor([2.0, 0.5, 0.5]).sigmoid().sum() / 4
    torch.testing.assert_close(penalty, 0.4 * awake)
    (gradient,) = torch.autograd.grad(penalty, relevance)
    assert (gradient > 0).flatten().tolist() == [True, False, True, True]
    within = ExpectedSparsity(2, 2, coefficient=0.4, target=0.6)
    assert within.penalty(relevance, relevance > 0) == 0


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
        ({"expected_sparsity": {"shift": math.inf}}, r"^balance: shift must be finite; got shift=inf\."),
        ({"loss_free_bias": {"step": -1}}, r"^balance: step must be at least 0 and finite; got step=-1\."),
        ({"noisy_top_k": {"load": -1}}, r"^balance: load must be at least 0 and finite; got load=-1\."),
        (
            "noisy_top_k",
            r"noisy_top_k needs num_active below num_mechanisms; got num_active=4, num_mechanisms=4\.",
        ),
        ({"random_activation": {"probability": 2}}, r"probability must be between 0 and 1; got probability=2\."),
        ({"dead_reset": {"every": 0}}, r"^balance: every must be at least 1; got every=0\."),
        ({"usage_floor": {"floor": 2}}, r"^balance: floor must be between 0 and 1; got floor=2\."),
        (["switch", {"z_loss": {"weight": 1}}], r"balance\[1\]: ZLoss takes coefficient; got weight=1"),
        (["switch", "even"], r"balance\[1\] must be one of .*switch.*; got balance\[1\]='even'\."),
        (
            {"class_path": "expected_sparsity", "target": 2.0},
            r"^balance: target must be between 0 and 1; got target=2\.0\.",
        ),
    ],
)
def test_a_value_out_of_its_range_is_named(balance: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RIM(3, 16, **DYNAMIC, balance=balance)


# Terms of the loss


def slow_shares(active: torch.Tensor) -> list[float]:
    counts = [int(active[:, m].sum()) for m in range(active.shape[1])]
    return [count / sum(counts) for count in counts]


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Relevance (T, M, B) and who is active: 2 of 4."""
    relevance = random_tensor(5, 4, 3, dtype=torch.float64)
    return relevance, relevance >= relevance.topk(2, dim=1).values[:, -1:]


def test_switch_weighs_the_mean_probability_by_the_share_of_choices() -> None:
    relevance, active = example()
    mean = relevance.softmax(dim=1).mean(dim=(0, 2)).tolist()
    expected = 0.3 * 4 * sum(f * p for f, p in zip(slow_shares(active), mean, strict=True))
    assert float(SwitchBalance(4, 2, coefficient=0.3).penalty(relevance, active)) == pytest.approx(expected)


def test_gshard_counts_first_choices() -> None:
    relevance, active = example()
    firsts = [0] * 4
    for step in range(5):
        for sample in range(3):
            firsts[int(relevance[step, :, sample].argmax())] += 1
    mean = relevance.softmax(dim=1).mean(dim=(0, 2)).tolist()
    expected = 0.3 / 4 * sum(count / 15 * p for count, p in zip(firsts, mean, strict=True))
    assert float(GshardBalance(4, 2, coefficient=0.3).penalty(relevance, active)) == pytest.approx(expected)
    inactive = GshardBalance(4, 2, coefficient=0.3).penalty(relevance, torch.zeros_like(active))
    assert inactive == 0


def test_the_z_loss_is_the_mean_square_of_the_logsumexp() -> None:
    relevance, active = example()
    expected = 0.3 * relevance.exp().sum(dim=1).log().square().mean()
    torch.testing.assert_close(ZLoss(4, 2, coefficient=0.3).penalty(relevance, active), expected)


def test_the_floor_lifts_who_is_below_it_and_leaves_the_others_alone() -> None:
    relevance = torch.tensor([[2.0], [1.0], [-1.0]]).expand(3, 10)[None].clone().requires_grad_()
    active = torch.tensor([[True] * 10, [True] * 9 + [False], [False] * 9 + [True]])[None]
    balance = UsageFloor(3, 2, coefficient=2.0, floor=0.5)
    penalty = balance.penalty(relevance, active)
    assert float(penalty.detach()) == pytest.approx(2 * (0.5 / 3 - 1 / 20))
    (gradient,) = torch.autograd.grad(penalty, relevance)
    assert (gradient[0, 2] < 0).all()
    assert (gradient[0, :2] == 0).all()


def test_importance_and_load_are_those_of_the_paper() -> None:
    relevance, active = example()
    balance = NoisyTopK(4, 2, importance=0.3, load=0.7).double()
    gates, load = torch.zeros(4), torch.zeros(4)
    for step in range(5):
        for sample in range(3):
            own = relevance[step, :, sample]
            kept = own.masked_fill(~active[step, :, sample], -torch.inf).softmax(dim=0)
            gates += kept.float()
            for m in range(4):
                others = torch.cat([own[:m], own[m + 1 :]]).sort(descending=True).values
                lead = float((own[m] - others[1]) / balance.spread[m].detach())
                load[m] += 0.5 * (1 + math.erf(lead / math.sqrt(2)))
    expected = sum(
        weight * float(values.var(correction=0) / values.mean() ** 2)
        for weight, values in ((0.3, gates), (0.7, load))
    )
    penalty = balance.penalty(relevance, active)
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(penalty, balance.noise)
    assert gradient.abs().sum() > 0
    drawn = balance.draw((4000, 4, 1))
    torch.testing.assert_close(drawn.std(dim=0).flatten(), balance.spread.detach(), rtol=0.1, atol=0)


# Influence on the ranking


def run(rim: RIM, steps: int = 1, rate: float = 1.0) -> torch.Tensor:
    """Who was active (B, T, M) in the last of some training forwards."""
    for _ in range(steps):
        with rim.record_activity() as activities:
            rim(random_tensor(4, 6, 3))
        rim.after_step(rate)
    return activities[0].active


def small(balance: Any, **options: Any) -> RIM:
    return RIM(
        3, 16, num_mechanisms=4, **{"num_active": 1, "balance": balance, "learn_initial_state": True, **options}
    )


def layer_of(rim: RIM) -> Any:
    return rim.layers[0]


def test_the_bias_wakes_every_mechanism_and_rests_in_evaluation() -> None:
    rim = small({"loss_free_bias": {"step": 0.05}}).train()
    with torch.no_grad():
        layer_of(rim).input_query.weight[0] *= 20
    run(rim, 40)
    balance = layer_of(rim).balance
    bias = balance.bias.clone()
    assert float(bias.sum()) == pytest.approx(0, abs=1e-5)
    assert bias.abs().max() > 0.1
    shares = torch.stack([run(rim).float().mean(dim=(0, 1)) for _ in range(40)]).mean(dim=0)
    assert shares.min() > 0.1
    bias = balance.bias.clone()
    rim.eval()
    rim(random_tensor(4, 6, 3))
    with torch.no_grad():
        rim.train()(random_tensor(4, 6, 3))
    assert torch.equal(balance.bias, bias)
    assert not balance.counts.any()


def test_the_bias_follows_the_schedule_where_it_is_asked_to() -> None:
    for follows, expected in ((False, 0.3), (True, 0.03)):
        balance = LossFreeBias(2, 1, step=0.3, follows_schedule=follows)
        balance.observe(torch.tensor([[True], [False]])[None])
        balance.after_step(balance, 0.1)
        assert balance.bias.tolist() == pytest.approx([-expected, expected])


def test_padding_is_neither_counted_nor_penalised() -> None:
    rim = small(["loss_free_bias", {"switch": {"coefficient": 1.0}}], input_dropout=0.0, communication_dropout=0.0)
    inputs, mask = random_tensor(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 2:] = False
    with rim.train().record_activity() as activities:
        rim(inputs)
    penalty = rim.penalty(mask)
    assert penalty is not None
    again = rim.penalty(mask)
    assert penalty is again, "a second call counts nothing twice"
    counts = layer_of(rim).balance.balances[0].counts
    assert counts.tolist() == [*activities[0].active[mask].sum(dim=0).tolist(), 7]
    relevance = -activities[0].null_attention.logit()
    mean = relevance[mask].softmax(dim=1).mean(dim=0)
    shares = activities[0].active[mask].double().mean(dim=0)
    assert float(penalty.detach()) == pytest.approx(4 * float((shares * mean).sum()), rel=1e-4)


def test_who_is_woken_by_chance_is_active_in_training_alone() -> None:
    rim = small({"random_activation": {"probability": 1.0}}, num_active=4, preset="dynamic", score_bias=-20.0)
    inputs = random_tensor(2, 5, 3)
    for mode in (True, False):
        with rim.train(mode).record_activity() as activities:
            rim(inputs)
        assert bool(activities[0].active.all()) is mode
        assert bool(activities[0].active.any()) is mode


def test_a_dead_mechanism_gets_the_most_active_one_s_weights_and_lives() -> None:
    rim = small({"dead_reset": {"every": 3, "noise": 0.01}}, preset="dynamic", num_active=4, score_bias=1.0)
    layer = layer_of(rim)
    with torch.no_grad():
        layer.score_bias[2] = -50.0
    before = copy.deepcopy(rim.state_dict())
    assert not run(rim, 2)[..., 2].any()
    assert torch.equal(rim.state_dict()["layers.0.input_query.weight"], before["layers.0.input_query.weight"])
    run(rim)
    after = rim.state_dict()
    assert float(layer.score_bias[2].detach()) == pytest.approx(1.0, abs=0.1)
    for name in ("input_query.weight", "dynamics.hidden.weight", "dynamics.input.weight"):
        own, old = after[f"layers.0.{name}"], before[f"layers.0.{name}"]
        others = [0, 1, 3]
        assert torch.equal(own[others], old[others])
        copied = [float((own[2] - own[m]).norm() / own[m].norm()) for m in others]
        assert 0 < min(copied) < 0.05
    assert torch.equal(after["initial.hidden"], before["initial.hidden"])
    assert run(rim)[..., 2].any()


def test_a_step_that_only_penalises_leaves_the_fast_stepper_in_place() -> None:
    for balance, mode, is_fast in (
        ("switch", True, True),
        ("random_activation", False, True),
        ("random_activation", True, False),
        ("loss_free_bias", False, False),
    ):
        rim = small(balance, input_dropout=0.0, communication_dropout=0.0).train(mode)
        assert bool(rim.stepper()._steps) is is_fast, balance  # type: ignore[attr-defined]


def test_a_copy_after_a_training_forward_has_no_graph() -> None:
    rim = small(["loss_free_bias", "switch"]).train()
    rim(random_tensor(2, 3, 3))
    assert rim.penalty() is not None
    twin = copy.deepcopy(rim)
    assert twin.penalty() is None
    rim(random_tensor(2, 3, 3))
    assert copy.deepcopy(rim).penalty() is None


def test_more_mechanisms_keep_the_bias_of_the_old_ones() -> None:
    parts = ["loss_free_bias", "noisy_top_k", "dead_reset"]
    rim = small(parts, sharing="shared", num_active=2).train()
    run(rim, 3)
    bias = layer_of(rim).balance.balances[0].bias
    more = rim.with_mechanisms(6)
    found = layer_of(more).balance.balances[0].bias
    assert torch.equal(found, torch.cat([bias, torch.zeros(2)]))
    assert torch.isfinite(more.train()(random_tensor(2, 3, 3))[0]).all()
    more.after_step()
    assert torch.equal(layer_of(rim.with_mechanisms(3)).balance.balances[0].bias, bias[:3])
