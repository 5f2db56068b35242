"""The recurrent entity network, against its equations written out."""

import torch

from rimlit.backbones import EntNet
from rimlit.backbones.base import count_flops
from tests.conftest import random_tensor


def test_a_step_follows_the_equations() -> None:
    net = EntNet(3, 6, num_slots=4).double()
    with torch.no_grad():
        net.activation.weight.fill_(0.3)
        net.answer_activation.weight.fill_(0.2)
    inputs = random_tensor(1, 5, 3, seed=1, dtype=torch.float64)
    _, state = net(inputs[:, :4])
    features, after = net(inputs[:, 4:], state)
    encoded = net.encode(inputs[0, 4])
    slots = []
    for slot, key in zip(state.memory[0], net.keys, strict=True):
        gate = (encoded @ slot + encoded @ key).sigmoid()
        candidate = net.activation(net.from_slot(slot) + net.from_key(key) + net.from_input(encoded))
        slots.append((slot + gate * candidate) / (slot + gate * candidate).norm())
        torch.testing.assert_close(after.memory[0, len(slots) - 1], slots[-1])
    attention = torch.stack([encoded @ slot for slot in slots]).softmax(dim=0)
    read = sum(share * slot for share, slot in zip(attention, slots, strict=True))
    torch.testing.assert_close(features[0, 0], net.answer_activation(encoded + net.from_read(read)))


def test_a_step_of_a_sequence_is_counted_without_what_all_steps_share() -> None:
    net = EntNet(3, 6, num_slots=4)
    one, two = (count_flops(net, torch.ones(1, steps, 3)) for steps in (1, 2))
    assert net.flops_per_step() == two - one


def test_slots_start_at_their_keys_as_unit_vectors() -> None:
    net = EntNet(3, 6, num_slots=4)
    memory = net.initial_state(2).memory
    torch.testing.assert_close(memory.norm(dim=-1), torch.ones(2, 4))
    torch.testing.assert_close(memory[1], net.keys / net.keys.norm(dim=-1, keepdim=True))
