"""BRIM: against an independent computation, what its layers read, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit.backbones import BRIM, RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import Balance
from tests.conftest import random_tensor

SMALL: dict[str, Any] = {
    "input_heads": 2,
    "input_key_size": 3,
    "input_value_size": 4,
    "communication": {"heads": 2, "key_size": 3, "value_size": 4},
    "input_dropout": 0.0,
    "communication_dropout": 0.0,
    "learn_initial_state": True,
}


def make(**options: Any) -> BRIM:
    torch.manual_seed(0)
    return BRIM(4, 12, **{"num_mechanisms": (4, 3), "num_active": (2, 2), **SMALL, **options}).double().eval()


def heads_of(vector: Tensor, heads: int) -> list[Tensor]:
    return list(vector.view(heads, -1))


def layer_step(
    brim: BRIM, index: int, slots: list[tuple[Tensor, Tensor, Tensor]], hidden: list[Tensor], memory: list[Tensor]
) -> None:
    """Move the LSTM states of a layer one step; a slot is what is read and its weights of keys and values."""
    layer, heads = brim.layers[index], brim.input_heads
    mechanisms, size = range(layer.num_mechanisms), layer.size
    query, cell_input = layer.input_query.expand(), layer.dynamics.input.expand()
    recurrent, bias = layer.dynamics.weights()
    null, reads = [], []
    for m in mechanisms:
        own, nothing = [], []
        queries = heads_of(query[m].T @ hidden[m], heads)
        for head in range(heads):
            keys = [heads_of(key.T @ x, heads)[head] for x, key, _ in slots]
            scores = [queries[head] @ key / math.sqrt(len(key)) for key in keys]
            shares = torch.stack([torch.zeros_like(scores[0]), *scores]).softmax(dim=0)
            values = [heads_of(value.T @ x, heads)[head] for x, _, value in slots]
            own.append(sum(share * value for share, value in zip(shares[1:], values, strict=True)))
            nothing.append(shares[0])
        reads.append(cell_input[m].T @ torch.cat(own))
        null.append(sum(nothing).item() / heads)
    active = sorted(mechanisms, key=lambda m: null[m])[: layer.num_active]
    new_hidden, new_memory = [], []
    for m in mechanisms:
        i, f, o, g = (reads[m] + recurrent[m].T @ hidden[m] + bias[m]).view(4, size)
        new_memory.append(torch.sigmoid(f) * memory[m] + torch.sigmoid(i) * torch.tanh(g))
        new_hidden.append(torch.sigmoid(o) * torch.tanh(new_memory[m]))
    talk = layer.communication
    projection, output = talk.projection.expand(), talk.output.expand()
    visible = [new_hidden[m] if m in active else hidden[m] for m in mechanisms]
    said = [(projection[m].T @ visible[m]).view(talk.heads, -1) for m in mechanisms]
    key = talk.key_size
    for m in active:
        read = []
        for head in range(talk.heads):
            scores = [said[m][head, :key] @ said[n][head, key : 2 * key] / math.sqrt(key) for n in mechanisms]
            shares = torch.stack(scores).softmax(dim=0)
            read.append(sum(shares[n] * said[n][head, 2 * key :] for n in mechanisms))
        new_hidden[m] = new_hidden[m] + output[m].T @ torch.cat(read)
    for m in active:
        hidden[m], memory[m] = new_hidden[m], new_memory[m]


def run(brim: BRIM, inputs: Tensor) -> Tensor:
    """Return the features, with time outside and layers inside, sample by sample."""
    last = brim.num_layers - 1
    samples = []
    for sample in inputs:
        hidden = [list(initial.hidden) for initial in brim.initial]
        memory = [list(initial.memory) for initial in brim.initial]
        steps = []
        for x in sample:
            before = [torch.cat(layer) for layer in hidden]
            for index, layer in enumerate(brim.layers):
                below = x if index == 0 else torch.cat(hidden[index - 1])
                slots = [(below, layer.input_key.weight[0], layer.input_value.weight[0])]
                if index < last:
                    higher = before[index + 1 if brim.top_down == "above" else last]
                    slots.append(
                        (higher, brim.top_down_key[index].weight[0], brim.top_down_value[index].weight[0])
                    )
                layer_step(brim, index, slots, hidden[index], memory[index])
            steps.append(torch.cat(hidden[last]))
        samples.append(torch.stack(steps))
    return torch.stack(samples)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_mechanisms": (4, 2, 3), "num_active": (3, 1, 2), "top_down": "top"}],
    ids=["above", "top"],
)
def test_brim_equals_an_independent_computation(options: dict[str, Any]) -> None:
    brim, inputs = make(**options), 3 * random_tensor(2, 5, 4, dtype=torch.float64)
    features, expected = brim(inputs)[0], run(brim, inputs)
    torch.testing.assert_close(features, expected)
    weight = torch.linspace(-1, 2, features.numel(), dtype=features.dtype).view_as(features)
    names = [name for name, _ in brim.named_parameters()]
    found, wanted = (
        torch.autograd.grad((weight * each).sum(), [*brim.parameters()]) for each in (features, expected)
    )
    for name, one, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_one_layer_is_a_rim() -> None:
    brim = make(num_mechanisms=(4,), num_active=(2,))
    rim = RIM(4, 12, num_mechanisms=4, num_active=2, **SMALL).double().eval()
    rim.layers[0].load_state_dict(brim.layers[0].state_dict())
    with torch.no_grad():
        for name in ("hidden", "memory"):
            getattr(rim.initial, name).copy_(getattr(brim.initial[0], name)[None])
    inputs, resets = random_tensor(3, 6, 4, dtype=torch.float64), torch.rand(3, 6) < 0.3
    torch.testing.assert_close(brim(inputs, resets=resets)[0], rim(inputs, resets=resets)[0])


def test_a_change_above_reaches_the_layer_below_one_step_later() -> None:
    brim = make()
    inputs = random_tensor(1, 3, 4, dtype=torch.float64)
    state = brim.initial_state(1)
    changed = state._replace(hidden=state.hidden + torch.tensor([0.0, 1.0]).view(1, 2, 1))
    with brim.record_activity() as activities:
        brim(inputs, state)
        brim(inputs, changed)
    lower, other = activities[0], activities[2]
    assert lower.slot_attention.shape == (1, 3, 4, 2)
    assert not torch.equal(lower.slot_attention[:, 0, :, 1], other.slot_attention[:, 0, :, 1])
    with torch.no_grad():
        for weight in brim.top_down_key.parameters():
            weight.zero_()
        for weight in brim.top_down_value.parameters():
            weight.zero_()
    first, second = (brim(inputs, given)[1].hidden[:, 0] for given in (state, changed))
    torch.testing.assert_close(first, second)  # without top-down attention the lower layer cannot see it


class Counting(Balance):
    """A penalty on the relevance, and a count of steps."""

    def __init__(self, num_mechanisms: int, num_active: int) -> None:
        super().__init__(num_mechanisms, num_active)
        self.steps = 0

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor:
        assert relevance.shape == active.shape
        return relevance.square().mean()

    def after_step(self, layer: torch.nn.Module, rate: float) -> None:
        self.steps += 1


def test_penalties_of_balance_and_communication_are_those_of_all_layers() -> None:
    quantized = {
        "class_path": "quantized",
        "init_args": {**SMALL["communication"], "num_parts": 2, "codebook_size": 5},
    }
    inputs = random_tensor(2, 4, 4, dtype=torch.float64)
    found = {}
    for name, options in {
        "both": {"balance": Counting, "communication": quantized},
        "communication": {"communication": quantized},
        "none": {},
    }.items():
        brim = make(**options).train()
        brim(inputs)
        found[name] = brim.penalty()
        brim.after_step()
    assert found["none"] is None
    assert 0 < found["communication"] < found["both"]
    both = make(balance=Counting, communication=quantized)
    both(inputs)
    assert both.penalty() is None, "in evaluation"
    both.after_step()
    assert [layer.balance.steps for layer in both.layers] == [1, 1]


def test_what_a_step_needs_is_counted() -> None:
    brim = make()
    lower, upper = (layer.flops_per_step() for layer in brim.layers)
    key, value = brim.top_down_key[0].weight, brim.top_down_value[0].weight
    assert brim.flops_per_step() == lower + upper + 2 * (key.numel() + value.numel() + 4 * 6)
    own = [layer.parameters_of_mechanisms() for layer in brim.layers]
    idle = round(own[0] / 2) + round(own[1] / 3)
    assert brim.active_parameters() == sum(p.numel() for p in brim.parameters()) - idle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_mechanisms": 6}, r"num_mechanisms must have a number for each layer, such as \(6, 3\); got .*=6\."),
        ({"num_mechanisms": ()}, r"got num_mechanisms=\(\)\."),
        (
            {"num_mechanisms": (5, 3)},
            r"hidden_size must be divisible by num_mechanisms; got hidden_size=12, num_m",
        ),
        (
            {"num_active": (2,)},
            r"num_active must have as many numbers as num_mechanisms=\(4, 3\); got num_active=\(2,",
        ),
        ({"num_active": (5, 1)}, r"num_active must be between 1 and num_mechanisms; got num_active=5"),
        ({"top_down": "below"}, r"top_down must be one of above, top; got top_down='below'\."),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1; got dropout=1\.0\."),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_by_default_two_thirds_are_active_or_all_with_the_dynamic_preset() -> None:
    assert [layer.num_active for layer in BRIM(4, 12).layers] == [4, 2]
    assert [layer.num_active for layer in BRIM(4, 12, preset="dynamic").layers] == [6, 3]
