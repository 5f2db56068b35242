"""Backbones as drop-in replacements for ``nn.LSTM``: equal results, two directions, lengths, refused calls."""

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from rimlit import LSTM, RIM, Backbone
from rimlit.backbones import Bidirectional
from rimlit.backbones.base import BidirectionalState
from rimlit.errors import ConfigError
from rimlit.mechanisms import Balance
from rimlit.tasks import RegressionTask
from rimlit.types import LSTMState, map_state
from tests.conftest import random_tensor
from tests.laws.backbone_cases import HIDDEN_SIZE, INPUT_SIZE, SMALL, backbone_classes, make_backbone, nested

D, H = 3, 12
LENGTHS = [3, 5, 0, 4]


def make_rim(**arguments: Any) -> RIM:
    defaults: dict[str, Any] = {"num_mechanisms": 4, "num_active": 2, "learn_initial_state": True, **SMALL}
    return RIM(D, H, **nested({**defaults, **arguments})).double().eval()


def inputs_of(batch_size: int = 4, steps: int = 5) -> Tensor:
    return random_tensor(batch_size, steps, D, dtype=torch.float64)


# The same numbers as torch


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_lstm_gives_what_torch_gives_for_a_packed_sequence(is_sorted: bool, bidirectional: bool) -> None:
    theirs = nn.LSTM(D, H, batch_first=True, bidirectional=bidirectional).double()
    ours = LSTM(D, H, bidirectional=bidirectional).double()
    weights = theirs.state_dict()
    for direction, suffix in (
        ((ours.forwards, ""), (ours.backwards, "_reverse")) if bidirectional else ((ours, ""),)
    ):
        own = {name: weights[f"{name}{suffix}"] for name in weights if not name.endswith("_reverse")}
        direction.recurrent.load_state_dict(own)
    lengths = torch.tensor([5, 4, 2] if is_sorted else [2, 5, 4])
    packed = pack_padded_sequence(inputs_of(3), lengths, batch_first=True, enforce_sorted=is_sorted)
    expected, (h_n, c_n) = theirs(packed)
    features, state = ours(packed)
    for name in ("data", "batch_sizes", "sorted_indices", "unsorted_indices"):
        torch.testing.assert_close(getattr(features, name), getattr(expected, name))
    states = state if bidirectional else (state,)
    torch.testing.assert_close(torch.cat([one.hidden for one in states], dim=1).transpose(0, 1), h_n)
    torch.testing.assert_close(torch.cat([one.memory for one in states], dim=1).transpose(0, 1), c_n)
    last = torch.cat([h_n[-2], h_n[-1]], dim=-1) if bidirectional else h_n[-1]
    torch.testing.assert_close(ours.final_features(features), last)


# Two directions


@pytest.mark.parametrize("cls", backbone_classes())
def test_every_backbone_has_two_directions_by_keyword(cls: type[Backbone]) -> None:
    one, both = make_backbone(cls, {}), make_backbone(cls, {"bidirectional": True})
    assert isinstance(both, Bidirectional) and type(both.forwards) is type(both.backwards) is cls
    assert (both.bidirectional, one.bidirectional) == (True, False)
    assert not make_backbone(cls, {"bidirectional": False}).bidirectional
    assert (both.input_size, both.hidden_size, both.output_size) == (INPUT_SIZE, HIDDEN_SIZE, 2 * HIDDEN_SIZE)
    assert both.num_layers == one.num_layers
    for name in ("active_parameters", "flops_per_step", "state_size"):
        assert getattr(both, name)() == 2 * getattr(one, name)() > 0
    inputs = random_tensor(2, 3, INPUT_SIZE)
    features, state = both.eval()(inputs)
    assert features.shape == (2, 3, 2 * HIDDEN_SIZE) and isinstance(state, BidirectionalState)
    for copied in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        torch.testing.assert_close(copied(inputs)[0], features)


@pytest.mark.parametrize("run", ["step", "stepper"])
def test_two_directions_have_no_single_steps(run: str) -> None:
    both = LSTM(D, H, bidirectional=True)
    call = both.step if run == "step" else both.stepper(2)
    with pytest.raises(
        ConfigError, match=r"single steps need bidirectional=False; got inputs of shape \(2, 3\)\.$"
    ):
        call(torch.ones(2, D), both.initial_state(2))


def test_a_task_refuses_two_directions() -> None:
    backbone = {"class_path": "rimlit.LSTM", "init_args": {"hidden_size": 8, "bidirectional": True}}
    with pytest.raises(
        ConfigError, match=r"bidirectional must be False in a RegressionTask, .*bidirectional=True"
    ):
        RegressionTask(backbone, output_size=1, input_size=2)


# Lengths


def test_activity_of_sequences_with_lengths_is_theirs_alone_and_nothing_is_active_in_the_padding() -> None:
    rim, inputs = make_rim(num_layers=2), inputs_of()
    with rim.record_activity() as activities:
        rim(inputs, lengths=LENGTHS)
    assert len(activities) == 2
    for sample, length in enumerate(LENGTHS):
        with rim.record_activity() as alone:
            rim(inputs[sample, : max(length, 1)])
        for found, expected in zip(activities, alone, strict=True):
            assert found.active.shape == (4, 5, 4)
            assert not found.active[sample, length:].any()
            assert torch.equal(found.active[sample, :length], expected.active[0, :length])
            torch.testing.assert_close(found.slot_attention[sample, :length], expected.slot_attention[0, :length])


def test_activity_of_no_samples_has_none() -> None:
    rim = make_rim()
    with rim.record_activity() as activities:
        rim(inputs_of()[:0])
    assert [activity.active.shape for activity in activities] == [(0, 5, 4)]


class ActiveShare(Balance):
    """Penalises the mean relevance of what is active."""

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor:
        return (relevance * active).mean()


def test_the_penalty_of_sequences_with_lengths_is_the_mean_over_their_steps() -> None:
    rim, inputs = make_rim(balance=ActiveShare, input_dropout=0.0, communication_dropout=0.0).train(), inputs_of(2)
    rim(inputs, lengths=[5, 2])
    found = rim.penalty()
    _, state = rim(inputs[:, :2])
    first = rim.penalty()
    rim(inputs[:1, 2:], map_state(lambda part: part[:1], state))
    second = rim.penalty()
    assert found is not None and first is not None and second is not None
    # two samples of 2 steps, then one of 3 more
    torch.testing.assert_close(found, (4 * first + 3 * second) / 7)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shape": (
        {"lengths": [3, 5]},
        r"lengths must be integers of shape \(B,\) = \(4,\); got torch.int64 of shape \(2,\)",
    ),
    "type": ({"lengths": torch.ones(4)}, r"lengths must be integers .*; got torch.float32 of shape \(4,\)"),
    "too_long": ({"lengths": [3, 6, 0, 4]}, r"lengths must be 0 to T = 5; got lengths=\[3, 6, 0, 4\]"),
    "negative": ({"lengths": [3, -1, 0, 4]}, r"lengths must be 0 to T = 5; got lengths=\[3, -1, 0, 4\]"),
    "resets": (
        {"lengths": LENGTHS, "resets": torch.ones(4, 4)},
        r"resets must be bool of shape \(B, T\) = \(4, 5\)",
    ),
    "resets_of_lists": ({"resets": [[True] * 5] * 4}, r"resets must be a bool tensor \(B, T\); got a list"),
    "packed": (
        {"inputs": pack_sequence([torch.ones(2, D)]), "lengths": [2]},
        r"A PackedSequence has its lengths: leave lengths out; got lengths=\[2\]",
    ),
    "single": (
        {"inputs": torch.ones(5, D), "lengths": [2]},
        r"lengths belong to a batch .* one sequence of shape \(5, 3\)",
    ),
    "batched_state": (
        {"inputs": torch.ones(5, D), "state": LSTMState(torch.ones(1, 1, H), torch.ones(1, 1, H))},
        r"state must be LSTMState\(hidden=float32 \(1, 12\), .*\), without a batch dimension, as the inputs; got",
    ),
    "empty_state": (
        {"inputs": torch.ones(0, 5, D), "state": LSTMState(torch.ones(1, 1, H), torch.ones(1, 1, H))},
        r"state must be LSTMState\(hidden=float32 \(0, 1, 12\), .*\), batch first; got",
    ),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        LSTM(D, H)(**{"inputs": torch.ones(4, 5, D), **given})
    assert "\n" not in str(caught.value)


# Hooks and other processes


def test_a_hook_on_the_network_is_called_by_single_steps_too() -> None:
    lstm, called = LSTM(D, H).eval(), []
    lstm.recurrent.register_forward_hook(lambda *_: called.append(True))
    lstm.stepper(1)(torch.ones(1, D), lstm.initial_state(1))
    assert called == [True]


def test_a_hook_on_a_backbone_sees_one_call_as_it_was_made() -> None:
    rim, seen = make_rim(), []
    rim.register_forward_hook(lambda _, inputs, result: seen.append((type(inputs[0]), result[0])))
    packed = pack_sequence(list(inputs_of()[:, :3]))
    features, _ = rim(packed)
    ((kind, found),) = seen
    assert kind is type(packed) and found is features
    assert pad_packed_sequence(features, batch_first=True)[0].shape == (4, 3, H)


@pytest.mark.slow
def test_a_state_of_another_process_is_read() -> None:
    code = (
        "import io, sys, torch; from rimlit import LSTM; file = io.BytesIO();"
        "state = LSTM(3, 12, bidirectional=True)(torch.ones(2, 4, 3))[1];"
        "torch.save(state, file); sys.stdout.buffer.write(file.getvalue())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=300)
    state = torch.load(io.BytesIO(done.stdout), weights_only=True)
    assert isinstance(state, BidirectionalState) and isinstance(state.forward, LSTMState)
    features, _ = LSTM(D, H, bidirectional=True)(torch.ones(2, 4, D), state)
    assert features.shape == (2, 4, 2 * H)
