"""Quantised messages: against an independent computation, in value, gradient and loss."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.testing import check_part, rim_with
from tests.conftest import random_tensor
from tests.mechanisms.independent import Talk, gru_of, require_same, run

SIZES = {"heads": 2, "key_size": 3, "value_size": 4, "num_parts": 4, "codebook_size": 6}


def make(**options: Any) -> RIM:
    quantized = {"class_path": "quantized", "init_args": {**SIZES, **options}}
    options = {"input_dropout": 0.0, "communication_dropout": 0.0}
    return rim_with(communication=quantized, cell="gru", **options)().double()


def talk_of(rim: RIM, losses: list[Tensor]) -> Talk:
    """Mechanisms, heads and parts one by one; a loss for each step of a sample."""
    talk, mechanisms = rim.layers[0].communication, range(rim.num_mechanisms)
    heads, key, value, number = talk.heads, talk.key_size, talk.value_size, talk.num_parts
    projection, output = talk.projection.expand(), talk.output.expand()

    def speak(
        candidates: list[Tensor], old: list[Tensor], active: list[bool], gates: list[Tensor], carried: Any
    ) -> tuple[list[Tensor], Any]:
        states = [candidates[m] if active[m] else old[m] for m in mechanisms]
        said = [(projection[m].T @ states[m]).view(heads, 2 * key + value) for m in mechanisms]
        added, own_losses = [], []
        for m in mechanisms:
            read = []
            for head in range(heads):
                scores = [said[m][head, :key] @ said[n][head, key : 2 * key] / math.sqrt(key) for n in mechanisms]
                shares = torch.stack(scores).softmax(dim=0)
                read.append(sum(shares[n] * said[n][head, 2 * key :] for n in mechanisms))
            parts, sent, loss = torch.cat(read).chunk(number), [], torch.zeros((), dtype=torch.float64)
            for part in parts:
                distances = [(part - entry).square().sum().item() for entry in talk.codebook]
                entry = talk.codebook[distances.index(min(distances))]
                sent.append(part + (entry - part).detach())
                loss = loss + (part.detach() - entry).square().sum()
                loss = loss + talk.commitment * (part - entry.detach()).square().sum()
            added.append(output[m].T @ torch.cat(sent))
            if active[m]:
                own_losses.append(loss / number)
        losses.append(sum(own_losses) / len(own_losses))
        return added, carried

    return speak


@pytest.mark.parametrize("is_training", [False, True])
def test_quantised_messages_equal_an_independent_computation(is_training: bool) -> None:
    torch.manual_seed(4)
    rim, inputs = (
        make(weight=0.5, commitment=0.3).train(is_training),
        3 * random_tensor(2, 4, 3, dtype=torch.float64),
    )
    losses: list[Tensor] = []
    features, expected = rim(inputs)[0], run(rim, inputs, gru_of(rim), talk_of(rim, losses))
    if not is_training:
        assert rim.penalty() is None
        return require_same(rim, features, expected)
    penalty, wanted = rim.penalty(), 0.5 * torch.stack(losses).mean()
    assert penalty is not None
    torch.testing.assert_close(penalty, wanted)
    require_same(rim, features, expected, more=(penalty, wanted))
    return None


def test_messages_are_entries_of_the_codebook_bit_for_bit() -> None:
    talk = make().eval().layers[0].communication
    read = random_tensor(5, 7, 8, dtype=torch.float64)

    class Inputs:
        weights, active = talk.weights(), torch.ones(5, 7, dtype=torch.bool)

    sent, penalty = talk.message(read, Inputs())
    assert penalty is None
    parts = sent.view(-1, 1, 2)
    assert (parts == talk.codebook).all(dim=-1).any(dim=-1).all()


def test_recorded_activity_holds_no_graph() -> None:
    rim = make().train()
    with rim.record_activity() as activities:
        rim(random_tensor(2, 4, 3, dtype=torch.float64))
    tensors = [part for part in activities[0] if part is not None]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert rim.penalty() is not None


def test_a_rim_with_quantised_messages_keeps_the_laws_of_backbones() -> None:
    quantized = {"class_path": "quantized", "init_args": SIZES}
    # rounding in autocast may change the nearest entry
    check_part("communication", quantized, num_active=5, skip=["check_autocast_stays_near"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_parts": 3}, r"num_parts must divide heads · value_size = 8; got num_parts=3\."),
        ({"codebook_size": 1}, r"codebook_size must be at least 2; got codebook_size=1\."),
        ({"commitment": -1.0}, r"commitment must be at least 0 and finite; got commitment=-1\.0\."),
        ({"weight": 0.0}, r"weight must be above 0 and finite; got weight=0\.0\."),
        ({"keys": 3}, r"QuantizedCommunication takes heads, .*, weight; got keys=3\."),
    ],
)
def test_an_argument_out_of_its_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)
