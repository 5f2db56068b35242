"""The minimal GRU, against its recurrence written out step by step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit.backbones import MinGRU
from rimlit.backbones.mingru import log_positive, positive, scan
from rimlit.types import GRUState
from tests.conftest import random_tensor


def written_out(net: MinGRU, inputs: Tensor, state: GRUState, resets: Tensor) -> tuple[Tensor, Tensor]:
    """Features and the last state, sample by sample, step by step and layer by layer."""
    initial, features, lasts = net.initial_state(1).hidden[0], [], []
    for sample in range(len(inputs)):
        hidden, rows = list(state.hidden[sample]), []
        for step in range(inputs.shape[1]):
            if resets[sample, step]:
                hidden = list(initial)
            read = inputs[sample, step]
            for index, layer in enumerate(net.layers):
                gate, candidate = layer(read).chunk(2)
                update = gate.sigmoid()
                new = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
                read = hidden[index] = (1 - update) * hidden[index] + update * new
            rows.append(read)
        features.append(torch.stack(rows))
        lasts.append(torch.stack(hidden))
    return torch.stack(features), torch.stack(lasts)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 13])
def test_a_sequence_follows_the_recurrence(steps: int, num_layers: int, learn: bool) -> None:
    net = MinGRU(3, 5, num_layers=num_layers, learn_initial_state=learn).double()
    inputs = 4 * random_tensor(4, steps, 3, seed=1, dtype=torch.float64)
    state = GRUState(
        random_tensor(4, num_layers, 5, seed=2, dtype=torch.float64)
    )  # any sign, not only what occurs
    state.hidden[0] = 0
    resets = random_tensor(4, steps, seed=3) > 0.5
    features, last = net(inputs, state, resets)
    expected = written_out(net, inputs, state, resets)
    torch.testing.assert_close((features, last.hidden), expected, rtol=1e-10, atol=1e-12)
    arguments = [inputs.requires_grad_(), state.hidden.requires_grad_(), *net.parameters()]
    gradients = [
        torch.autograd.grad(each.square().sum(), arguments, materialize_grads=True)
        for each in (net(inputs, state, resets)[0], written_out(net, inputs, state, resets)[0])
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-11)


def test_a_long_sequence_in_32_bits_is_as_exact_as_one_step_after_the_other() -> None:
    gates = 6 * random_tensor(1, 2000, 8, seed=1)
    log_keep, log_new = -gates.exp().log1p(), random_tensor(1, 2000, 8, seed=2) - (-gates).exp().log1p()
    total, sums = torch.zeros(1, 8, dtype=torch.float64), []
    for keep, new in zip(log_keep.double().exp().unbind(1), log_new.double().exp().unbind(1), strict=True):
        total = keep * total + new
        sums.append(total)
    torch.testing.assert_close(scan(log_keep, log_new)[1].exp().double(), torch.stack(sums, 1), rtol=1e-5, atol=0)


def test_saturated_gates_and_candidates_have_finite_gradients() -> None:
    net = MinGRU(2, 3, num_layers=2)
    inputs = torch.tensor([[[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]]], requires_grad=True)
    features, _ = net(inputs, None, torch.tensor([[True, False, True]]))
    features.sum().backward()
    assert features.isfinite().all()
    assert inputs.grad is not None and inputs.grad.isfinite().all()


def test_a_candidate_is_positive_and_has_no_jump() -> None:
    values = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    mapped = positive(values)
    assert (mapped > 0).all() and mapped.diff().abs().max() < 0.011
    torch.testing.assert_close(log_positive(values).exp(), mapped)


def test_a_forget_bias_keeps_more_of_the_state_at_the_start() -> None:
    torch.manual_seed(0)
    plain = MinGRU(3, 4, num_layers=2)
    torch.manual_seed(0)
    keeping = MinGRU(3, 4, num_layers=2, forget_bias=2.0)
    for before, after in zip(plain.layers, keeping.layers, strict=True):
        torch.testing.assert_close(after.bias, before.bias - torch.tensor([2.0] * 4 + [0.0] * 4))
        assert torch.equal(before.weight, after.weight)


def test_learned_initial_states_are_positive() -> None:
    assert (MinGRU(3, 40, learn_initial_state=True).initial_state(2).hidden > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1; got num_layers=0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1; got dropout=1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MinGRU(3, 8, **options)
