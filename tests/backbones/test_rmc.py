"""The relational memory core, against its equations written out."""

import pytest
import torch
from torch.nn import functional

from rimlit.backbones import RMC
from tests.conftest import random_tensor


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_a_step_follows_the_equations(num_heads: int) -> None:
    rmc = RMC(3, 12, num_slots=2, num_heads=num_heads).double()
    inputs = random_tensor(1, 5, 3, seed=1, dtype=torch.float64)
    _, state = rmc(inputs[:, :4])
    features, after = rmc(inputs[:, 4:], state)
    memory, hidden, read = state.memory[0], state.hidden[0], rmc.input(inputs[0, 4])
    rows = torch.cat([memory, read[None]])
    keys, values = rmc.key_value(rows).chunk(2, dim=-1)
    for slot in range(2):
        heads = []
        for query, key, value in zip(
            rmc.query(memory[slot]).chunk(num_heads),
            keys.chunk(num_heads, dim=-1),
            values.chunk(num_heads, dim=-1),
            strict=True,
        ):
            attention = torch.stack([query @ row for row in key]) / len(query) ** 0.5
            heads.append(attention.softmax(dim=0) @ value)
        attended = rmc.attention_norm(memory[slot] + rmc.attended(torch.cat(heads)))
        new = rmc.perceptron_norm(attended + rmc.perceptron(attended))
        enter, forget, output = (rmc.input_gates(read) + rmc.hidden_gates(hidden[slot])).chunk(3)
        kept = forget.sigmoid() * memory[slot] + enter.sigmoid() * new.tanh()
        torch.testing.assert_close(after.memory[0, slot], kept)
        torch.testing.assert_close(after.hidden[0, slot], output.sigmoid() * kept.tanh())
    torch.testing.assert_close(features[0, 0], after.hidden[0].flatten())


def test_forget_gates_start_at_their_bias_and_slots_differ() -> None:
    torch.manual_seed(1)
    plain = RMC(3, 12, num_slots=2, forget_bias=0.0)
    torch.manual_seed(1)
    biased = RMC(3, 12, num_slots=2, forget_bias=2.0)
    added = biased.input_gates.bias - plain.input_gates.bias
    torch.testing.assert_close(added, functional.pad(torch.full((6,), 2.0), (6, 6)))
    memory = plain.initial_state(1).memory[0]
    assert not torch.equal(memory[0], memory[1])


def test_a_width_that_slots_do_not_divide_is_refused_with_the_widths_near_it() -> None:
    with pytest.raises(ValueError, match=r"got hidden_size=14, num_slots=4 \(near: 12, 16\)"):
        RMC(3, 14)
