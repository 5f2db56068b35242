"""Recurrent Independent Mechanisms: competition, preservation, permutation, gradients, records, refusals."""

import copy
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.kernels import Activity
from rimlit.mechanisms import LeastNull
from rimlit.types import GRUState, LSTMState, map_state
from tests.conftest import counting_tensor, random_tensor
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


def scores_of(rim: RIM, inputs: Tensor, hidden: Tensor) -> Tensor:
    """Scores (B, M, I, N) of one step's slots (B, N, D) for hidden states (B, M, d), without null."""
    layer = rim.layers[0]
    heads = layer.input_heads
    query = torch.einsum("bmd,mdk->bmk", hidden, layer.input_query.weight).unflatten(-1, (heads, -1))
    weight = layer.input_key.weight.expand(rim.num_mechanisms, -1, -1)
    key = torch.einsum("bnx,mxk->bmnk", inputs, weight).unflatten(-1, (heads, -1))
    return torch.einsum("bmik,bmnik->bmin", query, key) / query.shape[-1] ** 0.5


def winners(relevance: Tensor, number: int) -> Tensor:
    return torch.zeros_like(relevance, dtype=torch.bool).scatter(1, relevance.topk(number, dim=1).indices, True)


# Competition


@pytest.mark.parametrize("num_active", [1, 2, 4, 5])
@pytest.mark.parametrize("slots", [None, 3])
@every_choice
def test_exactly_k_mechanisms_are_active_in_every_step(
    choice: dict[str, Any], slots: int | None, num_active: int
) -> None:
    _, _, activity = activity_of(make_rim(**choice, num_active=num_active), make_inputs(slots=slots))
    assert activity.active.dtype == torch.bool
    assert activity.active.shape == (BATCH, STEPS, M)
    assert (activity.active.sum(dim=-1) == num_active).all()


def test_different_samples_and_steps_have_different_winners() -> None:
    _, _, activity = activity_of(make_rim(), make_inputs())
    assert len(activity.active.flatten(0, 1).unique(dim=0)) > 2


@pytest.mark.parametrize("input_sharing", ["shared", "independent"])
def test_with_one_slot_and_one_head_least_null_means_the_largest_score(input_sharing: str) -> None:
    rim, inputs = make_rim(input_sharing=input_sharing), make_inputs(steps=1)
    _, _, activity = activity_of(rim, inputs)
    scores = scores_of(rim, inputs[:, :1].squeeze(1)[:, None], rim.initial_state(BATCH).hidden[:, 0])[:, :, 0, 0]
    torch.testing.assert_close(activity.null_attention[:, 0], torch.sigmoid(-scores))
    assert torch.equal(activity.active[:, 0], winners(scores, 2))
    assert torch.equal(activity.active[:, 0], winners(-activity.null_attention[:, 0], 2))


@pytest.mark.parametrize("input_sharing", ["shared", "independent"])
def test_with_several_slots_and_one_head_least_null_means_the_largest_logsumexp(
    input_sharing: str,
) -> None:
    rim, inputs = make_rim(input_sharing=input_sharing), make_inputs(slots=3, steps=1)
    _, _, activity = activity_of(rim, inputs)
    scores = scores_of(rim, inputs[:, 0], rim.initial_state(BATCH).hidden[:, 0])[:, :, 0]
    torch.testing.assert_close(activity.null_attention[:, 0], 1 / (1 + scores.exp().sum(dim=-1)))
    assert torch.equal(activity.active[:, 0], winners(scores.logsumexp(dim=-1), 2))


@pytest.mark.parametrize("slots", [1, 3])
def test_with_several_heads_the_least_mean_null_probability_wins(slots: int) -> None:
    rim, inputs = make_rim(input_heads=3), make_inputs(slots=slots, steps=1).repeat(8, 1, 1, 1)
    start = map_state(lambda tensor: 2 * random_tensor(*tensor.shape, dtype=torch.float64), rim.initial_state(32))
    _, _, activity = activity_of(rim, inputs, start)
    scores = scores_of(rim, inputs[:, 0], start.hidden[:, 0])
    null = 1 / (1 + scores.exp().sum(dim=-1))  # (B, M, I)
    torch.testing.assert_close(activity.null_attention[:, 0], null.mean(dim=-1))
    assert torch.equal(activity.active[:, 0], winners(-null.mean(dim=-1), 2))
    # the test would prove nothing if the mean score ranked the same
    assert not torch.equal(activity.active[:, 0], winners(scores.logsumexp(dim=-1).mean(dim=-1), 2))


@pytest.mark.parametrize("slots", [1, 3])
def test_across_mechanisms_the_largest_share_wins(slots: int) -> None:
    rim, inputs = make_rim(selection="across_mechanisms", input_heads=2), make_inputs(slots=slots, steps=1)
    _, _, activity = activity_of(rim, inputs)
    scores = scores_of(rim, inputs[:, 0], rim.initial_state(BATCH).hidden[:, 0])
    share = scores.softmax(dim=1).mean(dim=2)  # (B, M, N)
    torch.testing.assert_close(activity.slot_attention[:, 0], share)
    assert torch.equal(activity.active[:, 0], winners(share.sum(dim=-1), 2))


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_ties_go_to_the_lowest_index(backend: str) -> None:
    rim = make_rim(learn_initial_state=False, num_active=3, backend=backend)  # zero states: every score is 0
    _, _, activity = activity_of(rim, make_inputs(steps=1))
    assert activity.active[:, 0].tolist() == [[True, True, True, False, False]] * BATCH


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("slots", [None, 2])
@every_choice
def test_inputs_that_are_no_numbers_still_leave_exactly_k_active(
    choice: dict[str, Any], slots: int | None, bad: float, backend: str
) -> None:
    inputs = make_inputs(slots=slots, steps=3)
    inputs[0, 1] = bad
    features, _, activity = activity_of(make_rim(**choice, backend=backend), inputs)
    assert (activity.active.sum(dim=-1) == 2).all()
    assert features[1:].isfinite().all()  # the other samples do not notice


@pytest.mark.parametrize("slots", [None, 3])
@every_choice
def test_dropout_never_changes_the_selection(choice: dict[str, Any], slots: int | None) -> None:
    rim, inputs = (
        make_rim(**choice, input_dropout=0.6, communication_dropout=0.6),
        make_inputs(slots=slots, steps=1),
    )
    plain_features, _, plain = activity_of(rim, inputs)
    rim.train()
    dropped_features, _, dropped = activity_of(rim, inputs)
    assert not torch.allclose(plain_features, dropped_features)
    assert torch.equal(plain.active, dropped.active)
    assert torch.equal(plain.null_attention, dropped.null_attention)  # recorded before dropout


# Preservation


@pytest.mark.parametrize("slots", [None, 3])
@pytest.mark.parametrize("backend", ["eager", "reference"])
@every_choice
def test_inactive_mechanisms_keep_their_state_bit_for_bit(
    choice: dict[str, Any], backend: str, slots: int | None
) -> None:
    rim, inputs = make_rim(**choice, backend=backend), make_inputs(slots=slots)
    state = rim.initial_state(BATCH)
    for step in range(STEPS):
        _, later, activity = activity_of(rim, inputs[:, step : step + 1], state)
        active = activity.active[:, 0]
        for before, after in zip(state, later, strict=True):
            same = (before == after)[:, 0].all(dim=-1)
            assert torch.equal(same, ~active)
        state = later


def test_the_memory_of_an_active_mechanism_does_not_hear_communication() -> None:
    silent, talking = make_rim(communication="none"), make_rim()
    talking.load_state_dict(silent.state_dict(), strict=False)
    inputs = make_inputs(steps=1)
    _, alone, _ = activity_of(silent, inputs)
    _, together, _ = activity_of(talking, inputs)
    assert torch.equal(alone.memory, together.memory)
    assert not torch.allclose(alone.hidden, together.hidden)


@every_choice
def test_the_gradient_flows_through_an_inactive_mechanism_along_the_identity(choice: dict[str, Any]) -> None:
    rim = make_rim(**choice, num_active=1)
    start = map_state(lambda tensor: tensor.detach().clone().requires_grad_(), rim.initial_state(BATCH))
    features, _, activity = activity_of(rim, make_inputs(), start)
    never = ~activity.active.any(dim=1)  # (B, M)
    assert never.any()
    # only the features of a mechanism that was never active: nothing but the identity leads to its state
    weights = counting_tensor(BATCH, M, SIZE, dtype=torch.float64) * never[..., None]
    (features[:, -1].unflatten(-1, (M, SIZE)) * weights).sum().backward()
    assert torch.equal(start.hidden.grad[:, 0], weights)


def test_under_paper_an_inactive_mechanism_that_is_read_gets_a_gradient() -> None:
    def gradient_of(**arguments: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        rim = make_rim(num_active=2, **arguments)
        start = map_state(lambda tensor: tensor.detach().clone().requires_grad_(), rim.initial_state(BATCH))
        features, _, activity = activity_of(rim, make_inputs(steps=1), start)
        active = activity.active[:, 0]
        (features[:, 0].unflatten(-1, (M, SIZE)) * active[..., None]).sum().backward()
        return start.hidden.grad[:, 0].abs().sum(dim=-1), active

    read, active = gradient_of(preset="paper")
    assert (read[~active] > 0).all()
    detached, active = gradient_of(preset="official")
    assert (detached[~active] == 0).all()
    silent, active = gradient_of(communication="none")
    assert (silent[~active] == 0).all()
    assert (silent[active] > 0).all()


# Permutation


@pytest.mark.parametrize("slots", [None, 3])
@every_choice
def test_permuting_the_mechanisms_permutes_the_features(choice: dict[str, Any], slots: int | None) -> None:
    rim, permuted = make_rim(**choice), make_rim(**choice)
    order = torch.tensor([3, 1, 4, 0, 2])
    weights = {
        # initial states are (layers, M, d); shared weights have a leading 1
        name: value[:, order] if name.startswith("initial.") else value[order] if len(value) == M else value
        for name, value in rim.state_dict().items()
    }
    permuted.load_state_dict(weights)
    inputs = make_inputs(slots=slots)
    features, state, activity = activity_of(rim, inputs)
    others, other_state, other_activity = activity_of(permuted, inputs)
    torch.testing.assert_close(
        others.unflatten(-1, (M, SIZE)), features.unflatten(-1, (M, SIZE))[:, :, order], rtol=1e-9, atol=1e-11
    )
    assert torch.equal(other_activity.active, activity.active[..., order])
    torch.testing.assert_close(other_state.hidden, state.hidden[:, :, order], rtol=1e-9, atol=1e-11)


# Sizes, presets, layers


def test_defaults_are_the_paper_s() -> None:
    rim = RIM(7, 600)
    layer = rim.layers[0]
    assert (rim.num_mechanisms, rim.num_active) == (6, 4)
    assert layer.input_query.weight.shape == (6, 100, 64)
    assert layer.input_value.weight.shape == (1, 7, 400)
    assert type(layer.selection) is LeastNull
    assert (layer.selection.margin, layer.selection.graded, layer.selection.dynamic) == ("none", False, False)
    assert (layer.soft_cap, layer.score_bias) == (None, None)
    assert layer.communication.projection.weight.shape == (6, 100, 4 * (32 + 32 + 32))
    assert layer.communication.output.weight.shape == (6, 4 * 32, 100)
    assert (layer.communication.output_kind, layer.communication.inactive) == ("linear", "preserved")
    assert (layer.input_dropout, layer.communication_dropout) == (0.1, 0.1)


def test_the_preset_fills_only_what_is_not_given() -> None:
    official = RIM(3, 12, preset="official").layers[0]
    assert (official.communication.output_kind, official.communication.inactive) == ("gated", "candidate")
    assert official.communication.projection.weight.shape == (6, 2, 4 * 48)
    assert official.communication.output.weight.shape == (1, 4 * 16, 4)
    given = RIM(
        3,
        12,
        preset="official",
        communication={"inactive": "preserved", "key_size": 5, "value_size": 7},
    ).layers[0]
    assert (given.communication.output_kind, given.communication.inactive) == ("gated", "preserved")
    assert given.communication.projection.weight.shape == (6, 2, 4 * (5 + 5 + 7))


def test_the_dynamic_preset_fills_the_whole_recipe() -> None:
    rim = RIM(3, 6 * 100, preset="dynamic")
    layer = rim.layers[0]
    assert repr(layer.selection) == "LeastNull(margin='probabilities', width=0.25, graded=False, dynamic=True)"
    assert (rim.num_active, rim.state_type) == (6, GRUState)
    assert layer.communication.output_kind == "cell_gate"
    assert layer.input_query.weight.shape == (6, 100, 96)  # keys, values and heads in proportion to 100
    assert layer.input_value.weight.shape == (1, 3, 96)
    assert layer.communication.projection.weight.shape == (6, 100, 4 * 3 * 24)
    assert rim.initial_state(1).hidden.requires_grad
    assert layer.score_bias.tolist() == [2.0] * 6
    assert (layer.input_dropout, layer.communication_dropout) == (0, 0)
    small = RIM(3, 6 * 16, preset="dynamic").layers[0]
    assert (small.input_value.weight.shape[2], small.communication.key_size) == (16, 8)


def test_the_near_best_preset_differs_from_the_dynamic_one_in_the_competition_alone() -> None:
    layer, dynamic = RIM(3, 600, preset="near_best").layers[0], RIM(3, 600, preset="dynamic").layers[0]
    assert layer.selection.spec == LeastNull(6, 6, margin="best", width=0.7).spec
    assert layer.score_bias is None
    for part in ("dynamics", "communication"):
        assert getattr(layer, part).spec == getattr(dynamic, part).spec
    assert layer.input_query.weight.shape == dynamic.input_query.weight.shape
    assert layer.input_value.weight.shape == dynamic.input_value.weight.shape


def test_what_is_given_wins_over_the_dynamic_preset() -> None:
    given = {
        "num_active": 4,
        "cell": "lstm",
        "input_key_size": 5,
        "selection": {"width": 2.0},
        "input_dropout": 0.2,
    }
    rim = RIM(3, 60, preset="dynamic", **given)
    layer = rim.layers[0]
    assert (rim.num_active, rim.state_type) == (4, LSTMState)
    assert repr(layer.selection) == "LeastNull(margin='probabilities', width=2.0, graded=False, dynamic=True)"
    assert layer.input_query.weight.shape == (6, 10, 5)
    assert layer.input_dropout == 0.2
    with pytest.raises(ConfigError, match="learn_initial_state must be true"):
        RIM(3, 60, preset="dynamic", num_active=4, learn_initial_state=False)


def test_a_layer_reads_the_features_of_the_one_below_as_one_slot() -> None:
    rim = make_rim(num_layers=2)
    assert rim.layers[1].input_key.weight.shape[1] == M * SIZE
    features, state, _ = activity_of(rim, make_inputs(slots=3))
    assert state.hidden.shape == (BATCH, 2, M, SIZE)
    assert torch.equal(features[:, -1], state.hidden[:, 1].flatten(1))


def test_forget_bias_is_added_to_the_forget_gates_only() -> None:
    torch.manual_seed(0)
    plain = RIM(3, 12).layers[0].dynamics.bias.weight[:, 0]
    torch.manual_seed(0)
    raised = RIM(3, 12, cell={"forget_bias": 1.5}).layers[0].dynamics.bias.weight[:, 0]
    torch.testing.assert_close(raised - plain, torch.tensor([0.0, 0, 1.5, 1.5, 0, 0, 0, 0]).expand(6, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 0}, r"input_size must be at least 1; got input_size=0\."),
        ({"hidden_size": 0}, r"hidden_size must be at least 1; got hidden_size=0\."),
        ({"num_mechanisms": 0}, r"num_mechanisms must be at least 1; got num_mechanisms=0\."),
        ({"num_layers": -1}, r"num_layers must be at least 1; got num_layers=-1\."),
        ({"input_heads": 0}, r"input_heads must be at least 1; got input_heads=0\."),
        ({"input_key_size": 0}, r"input_key_size must be at least 1; got input_key_size=0\."),
        ({"input_value_size": 0}, r"input_value_size must be at least 1; got input_value_size=0\."),
        ({"communication.heads": 0}, r"^communication: heads must be at least 1; got heads=0\."),
        ({"communication.key_size": 0}, r"^communication: key_size must be .*; got key_size=0\."),
        (
            {"communication.value_size": -2},
            r"^communication: value_size must be .*; got value_size=-2\.",
        ),
        (
            {"hidden_size": 100},
            r"divisible by num_mechanisms; got hidden_size=100, num_mechanisms=6 \(near: 96, 102\)\.",
        ),
        ({"hidden_size": 4}, r"got hidden_size=4, num_mechanisms=6 \(near: 6, "),
        ({"num_active": 7}, r"num_active must be between 1 and .*; got num_active=7, num_mechanisms=6\."),
        ({"num_active": 0}, r"num_active must be between 1 and .*; got num_active=0, num_mechanisms=6\."),
        ({"input_dropout": 1.0}, r"input_dropout must be at least 0 and below 1; got input_dropout=1\.0\."),
        ({"communication_dropout": -0.5}, r"communication_dropout must be .*; got communication_dropout=-0\.5\."),
        ({"dropout": 2.0}, r"dropout must be .*; got dropout=2\.0\."),
        (
            {"preset": "papers"},
            r"preset must be one of paper, official, dynamic, near_best; got preset='papers'\.",
        ),
        ({"cell": "rnn"}, r"^cell must be one of gru, lstm, schemata, or a class path; got cell='rnn'\."),
        (
            {"selection": "top"},
            r"^selection must be one of across_mechanisms, .*, or a class path; got selection='top'\.",
        ),
        ({"communication.output": "sum"}, r"must be one of linear, tanh, gated, cell_gate; got output='sum'\."),
        (
            {"communication.inactive": "frozen"},
            r"inactive must be one of preserved, candidate; got inactive='frozen'\.",
        ),
        ({"backend": "fast"}, r"backend must be one of auto, cpu, function, eager.*; got backend='fast'\."),
        (
            {"input_attention": False},
            r"input_attention=False .* needs num_active=num_mechanisms .*; got num_active=4, num_mechanisms=6",
        ),
        (
            {"input_attention": False, "num_active": 6, "selection": "across_mechanisms"},
            r"and a plain 'least_null' as selection; got .* selection=AcrossMechanisms\(\)\.",
        ),
        (
            {"cell": {"class_path": "gru", "init_args": {"forget_bias": 1.0}}},
            r"^cell: GRUDynamics takes no arguments; got forget_bias=1\.0\.",
        ),
    ],
)
def test_an_argument_out_of_its_range_is_refused_with_its_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RIM(**nested({"input_size": 3, "hidden_size": 12, **arguments}))


def test_without_input_attention_and_communication_a_mechanism_is_an_lstm_of_the_whole_input() -> None:
    rim = make_rim(input_attention=False, num_active=M, communication="none", input_value_size=7)
    layer, inputs = rim.layers[0], make_inputs()
    features, _, activity = activity_of(rim, inputs)
    assert activity.active.all()
    for mechanism, own in enumerate(features.unflatten(-1, (M, SIZE)).unbind(dim=2)):
        lstm = torch.nn.LSTM(inputs.shape[-1], SIZE, batch_first=True, dtype=inputs.dtype)
        values = layer.input_value.weight[0] @ layer.dynamics.input.weight[mechanism]
        order = torch.cat(
            [torch.arange(2 * SIZE), torch.arange(3 * SIZE, 4 * SIZE), torch.arange(2 * SIZE, 3 * SIZE)]
        )
        with torch.no_grad():  # torch has the new memory before the output gate
            lstm.weight_ih_l0.copy_(values.t()[order])
            lstm.weight_hh_l0.copy_(layer.dynamics.hidden.weight[mechanism].t()[order])
            lstm.bias_ih_l0.copy_(layer.dynamics.bias.weight[mechanism, 0][order])
            lstm.bias_hh_l0.zero_()
        initial = rim.initial_state(len(inputs))
        start = tuple(part[:, 0, mechanism].unsqueeze(0).contiguous() for part in initial)
        torch.testing.assert_close(own, lstm(inputs, start)[0], rtol=1e-9, atol=1e-11)
    names = {name.split(".")[-2] for name, _ in rim.named_parameters()}
    assert not {"input_query", "input_key"} & names


def test_without_input_attention_there_are_no_slots_to_choose_from() -> None:
    with pytest.raises(
        ValueError, match=r"This RIM reads one vector per step, .* no input slots; got shape .*True"
    ):
        make_rim(input_attention=False, num_active=M)(make_inputs(slots=3))


# Records


@pytest.mark.parametrize("slots", [None, 3])
@pytest.mark.parametrize("backend", ["reference", *FAST])
@every_choice
def test_a_record_holds_mask_and_attention_of_a_normal_forward(
    choice: dict[str, Any], backend: str, slots: int | None
) -> None:
    rim, inputs = make_rim(**choice, backend=backend), make_inputs(slots=slots)
    expected, _ = rim(inputs)
    features, _, activity = activity_of(rim, inputs)
    assert torch.equal(features, expected)
    assert activity.null_attention.shape == (BATCH, STEPS, M)
    assert activity.slot_attention.shape == (BATCH, STEPS, M, slots or 1)
    slots_together = activity.slot_attention.sum(dim=-1)
    if choice.get("selection") == "across_mechanisms":  # there is no null slot: 1 − a mechanism's share
        slots_together = activity.slot_attention.mean(dim=-1)
    total = activity.null_attention + slots_together
    torch.testing.assert_close(total, torch.ones_like(total))
    assert not activity.slot_attention.requires_grad
    if "communication" in choice:
        assert activity.communication is None
    else:
        assert activity.communication.shape == (BATCH, STEPS, M, M)
        # an active mechanism's attention to all, an inactive one's none
        torch.testing.assert_close(activity.communication.sum(dim=-1), activity.active.to(features.dtype))


def test_a_record_has_one_activity_per_layer_and_forward_and_ends_with_its_block() -> None:
    rim = make_rim(num_layers=2)
    with rim.record_activity() as activities:
        rim(make_inputs())
        rim(make_inputs(steps=2))
    rim(make_inputs())
    assert [activity.active.shape[1] for activity in activities] == [STEPS, STEPS, 2, 2]


def run_well_then_badly(rim: RIM) -> None:
    rim(make_inputs())
    rim(make_inputs()[..., :2])


def test_watching_calls_the_hook_with_all_layers_and_stops_after_an_error() -> None:
    rim, seen = make_rim(num_layers=2), []
    with pytest.raises(ValueError, match="input_size=3"), rim.watch(seen.append):
        run_well_then_badly(rim)
    rim(make_inputs())
    assert [len(layers) for layers in seen] == [2]


# Backends


def test_the_environment_overrides_the_backend_at_forward(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rim, inputs = make_rim(backend="eager"), make_inputs()
    expected, _ = rim(inputs)
    caplog.clear()  # what it logged where an earlier test has set the level
    monkeypatch.setenv("RIMLIT_BACKEND", "reference")
    with caplog.at_level(logging.INFO, logger="rimlit"):
        features, _ = rim(inputs)
        rim(inputs)
    torch.testing.assert_close(features, expected)
    assert caplog.messages == ["RIM time loop: reference (RIMLIT_BACKEND)."]
    assert rim.backend == "eager"  # never saved resolved


def test_an_unknown_backend_in_the_environment_is_refused_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RIMLIT_BACKEND", "warp")
    with pytest.raises(
        ValueError, match=r"RIMLIT_BACKEND must be one of auto, cpu, function, .*got RIMLIT_BACKEND='warp'"
    ):
        make_rim()(make_inputs())


# Imports


@pytest.mark.parametrize(
    ("statement", "absent"),
    [("from rimlit import RIM; RIM(3, 12)", "lightning"), ("import rimlit; rimlit.__version__", "torch")],
)
def test_importing_what_is_light_leaves_the_heavy_out(statement: str, absent: str) -> None:
    command = f"import sys; {statement}; sys.exit({absent!r} in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_public_name_that_does_not_exist_is_an_attribute_error() -> None:
    import rimlit

    assert set(dir(rimlit)) >= {"RIM", "LSTM", "GRU", "Task", "DataModule"}
    with pytest.raises(AttributeError, match="module 'rimlit' has no attribute 'RIMM'"):
        rimlit.RIMM  # noqa: B018


def test_active_counts_add_up_over_a_carried_state() -> None:
    rim, inputs = make_rim(), make_inputs(steps=6)
    _, _, whole = activity_of(rim, inputs)
    state, parts = None, []
    for begin, end in pairwise((0, 1, 4, 6)):
        _, state, activity = activity_of(rim, inputs[:, begin:end], state)
        parts.append(activity.active)
    assert torch.equal(torch.cat(parts, dim=1), whole.active)


# Steps


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


def test_a_state_of_another_shape_or_cell_is_refused() -> None:
    rim = RIM(2, 12, num_mechanisms=3, num_active=2)
    other = RIM(2, 12, num_mechanisms=3, num_active=2, cell="gru")
    for state in (rim.initial_state(1), other.initial_state(2)):
        with pytest.raises(ValueError, match=r"state must be LSTMState\(hidden=float32 \(2, 1, 3, 4\), .*; got"):
            rim(torch.ones(2, 3, 2), state)


@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_inputs_of_another_type_than_the_weights_are_refused(checkpoint_every: int | None) -> None:
    rim = RIM(4, 32, num_mechanisms=4, num_active=2, checkpoint_every=checkpoint_every)
    with pytest.raises(ValueError, match=r"inputs must be torch.float32, as the weights are; got torch.float64"):
        rim(torch.ones(2, 6, 4, dtype=torch.float64))


@pytest.mark.parametrize("backend", FAST)
def test_tokens_outside_the_table_are_refused(backend: str) -> None:
    rim = RIM(2, 12, num_mechanisms=3, num_active=2, backend=backend)
    with pytest.raises(IndexError):
        rim.forward_tokens(torch.tensor([[0, 1, 3, 0]]), torch.ones(3, 2))
    with pytest.raises(IndexError):
        rim.forward_tokens(torch.tensor([[0, 1, -1, 0]]), torch.ones(3, 2))


def test_tokens_and_tables_of_a_wrong_kind_are_refused() -> None:
    rim = RIM(2, 12, num_mechanisms=3, num_active=2)
    with pytest.raises(ValueError, match=r"tokens must be integers \(B, T\), with T above 0; got torch.float32"):
        rim.forward_tokens(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"table must be \(V, input_size\); got shape \(3, 5\), input_size=2"):
        rim.forward_tokens(torch.ones(2, 3, dtype=torch.long), torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"checkpoint_every must be at least 1; got checkpoint_every=0"):
        RIM(2, 12, num_mechanisms=3, num_active=2, checkpoint_every=0)
