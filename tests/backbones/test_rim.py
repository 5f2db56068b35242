"""A RIM: sizes, presets, layers, records, backends, refusals."""

import logging
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import ExpectedSparsity, LeastNull
from rimlit.types import GRUState, LSTMState
from tests.backbones.small_rim import BATCH, FAST, SIZE, STEPS, M, activity_of, every_choice, make_inputs, make_rim
from tests.laws.backbone_cases import nested

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


def test_the_sparse_preset_differs_from_the_dynamic_one_in_its_penalty_alone() -> None:
    sparse, dynamic = RIM(3, 60, preset="sparse"), RIM(3, 60, preset="dynamic")
    assert sparse.layers[0].balance.spec == ExpectedSparsity(6, 6, coefficient=0.02, target=0.5).spec
    assert sparse.state_dict().keys() == dynamic.state_dict().keys()
    for part in ("selection", "dynamics", "communication"):
        assert getattr(sparse.layers[0], part).spec == getattr(dynamic.layers[0], part).spec
    sparse(torch.randn(2, 4, 3))  # all are active at first, with P near σ(2)
    penalty = sparse.penalty()
    assert penalty is not None
    assert 0 < penalty.item() < 0.02 * 0.5


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
            r"preset must be one of paper, official, dynamic, sparse; got preset='papers'\.",
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
