"""The shared workspace: against an independent computation, and what it carries."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import WorkspaceCommunication
from rimlit.testing import check_part, rim_with
from tests.conftest import random_tensor
from tests.mechanisms.independent import Talk, gru_of, require_same, run

SIZES = {"heads": 2, "key_size": 3, "value_size": 4, "num_slots": 3, "slot_size": 5}


def make(**options: Any) -> RIM:
    workspace = {"class_path": "workspace", "init_args": {**SIZES, **options}}
    return rim_with(communication=workspace, cell="gru", input_dropout=0.0)().double().eval()


def talk_of(rim: RIM) -> Talk:
    """Slots and mechanisms one by one, head by head."""
    talk = rim.layers[0].communication
    assert isinstance(talk, WorkspaceCommunication)
    heads, key, mechanisms, slots = talk.heads, talk.key_size, range(rim.num_mechanisms), range(talk.num_slots)
    own, output = talk.projection.expand(), talk.output.expand()
    of_slot, written = talk.slot_projection.weight[0], talk.written.weight[0]
    keys, width = heads * key, -(-talk.slot_size // heads)

    def head_of(vector: Tensor, start: int, size: int, head: int) -> Tensor:
        return vector[start + head * size : start + (head + 1) * size]

    def speak(
        candidates: list[Tensor], old: list[Tensor], active: list[bool], gates: list[Tensor], carried: Any
    ) -> tuple[list[Tensor], Any]:
        states = [candidates[m] if active[m] else old[m] for m in mechanisms]
        said = [own[m].T @ states[m] for m in mechanisms]
        mean = sum(states) / len(states)
        new = []
        for s in slots:
            asks, got = of_slot.T @ carried[s], []
            for head in range(heads):
                query = head_of(asks, 0, key, head)
                scores = [query @ head_of(said[m], 0, key, head) / math.sqrt(key) for m in mechanisms]
                shares = torch.stack(scores).softmax(dim=0)
                best = sorted(mechanisms, key=lambda m: -shares[m].item())[: talk.writers]
                got.append(sum(shares[m] * head_of(said[m], 2 * keys, width, head) for m in best))
            content = written.T @ torch.cat(got)
            gate = talk.state_gates.weight[0].T @ mean + talk.slot_gates.weight[0].T @ torch.tanh(carried[s])
            enter, forget = gate[: talk.slot_size], gate[talk.slot_size :] + talk.forget_bias
            new.append(torch.sigmoid(forget) * carried[s] + torch.sigmoid(enter) * torch.tanh(content))
        shown = [of_slot.T @ slot for slot in new]
        added = []
        for m in mechanisms:
            got = []
            for head in range(heads):
                query = head_of(said[m], keys, key, head)
                scores = [query @ head_of(shown[s], keys, key, head) / math.sqrt(key) for s in slots]
                shares = torch.stack(scores).softmax(dim=0)
                got.append(sum(shares[s] * head_of(shown[s], 2 * keys, talk.value_size, head) for s in slots))
            read = output[m].T @ torch.cat(got)
            read = read if talk.output_kind == "linear" else torch.tanh(read)
            added.append(gates[m] * read if talk.output_kind == "cell_gate" else read)
        return added, new

    return speak


@pytest.mark.parametrize(
    "options", [{}, {"writers": None, "output": "tanh"}, {"writers": 1, "output": "cell_gate", "forget_bias": 0.5}]
)
def test_the_workspace_equals_an_independent_computation(options: dict[str, Any]) -> None:
    torch.manual_seed(4)
    rim, inputs = make(**options), 3 * random_tensor(2, 4, 3, dtype=torch.float64)
    start = [torch.eye(3, 5, dtype=torch.float64)[s] for s in range(3)]
    require_same(rim, rim(inputs)[0], run(rim, inputs, gru_of(rim), talk_of(rim), start))


def test_the_slots_are_part_of_the_state_and_outlive_a_sequence() -> None:
    rim, inputs = make(), random_tensor(2, 6, 3, dtype=torch.float64)
    features, state = rim(inputs)
    assert state.carried.shape == (2, 1, 3, 5)
    _, middle = rim(inputs[:, :3])
    forgotten = middle._replace(carried=rim.initial_state(2).carried)
    torch.testing.assert_close(rim(inputs[:, 3:], middle)[0], features[:, 3:])
    assert not torch.allclose(rim(inputs[:, 3:], forgotten)[0], features[:, 3:])


def test_the_activity_says_who_reads_whom_through_the_slots() -> None:
    rim = make(writers=None)
    with rim.record_activity() as activities:
        rim(random_tensor(2, 4, 3, dtype=torch.float64))
    shares = activities[0].communication
    assert shares is not None
    torch.testing.assert_close(shares.sum(dim=-1), activities[0].active.double())


def test_a_rim_with_a_workspace_keeps_the_laws_of_backbones() -> None:
    check_part("communication", {"class_path": "workspace", "init_args": SIZES}, num_active=5)


def test_slots_of_a_rim_with_more_mechanisms_are_the_same() -> None:
    workspace = {"class_path": "workspace", "init_args": SIZES}
    rim = rim_with(communication=workspace, sharing="shared")().eval()
    features, state = rim.with_mechanisms(9)(random_tensor(2, 3, 3))
    assert (features.shape, state.carried.shape) == ((2, 3, 36), (2, 1, 3, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": 0}, r"num_slots must be at least 1; got num_slots=0\."),
        ({"writers": 0}, r"writers must be at least 1; got writers=0\."),
        ({"output": "gated"}, r"output must be one of linear, tanh, cell_gate; got output='gated'\."),
        ({"forget_bias": math.inf}, r"forget_bias must be finite; got forget_bias=inf\."),
    ],
)
def test_an_argument_out_of_its_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)
