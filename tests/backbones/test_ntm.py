"""The Neural Turing Machine, against its equations written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rimlit.backbones import NTM
from rimlit.backbones.ntm import write
from tests.conftest import random_tensor


def positive(*shape: int, seed: int) -> Tensor:
    return random_tensor(*shape, seed=seed, dtype=torch.float64).softmax(dim=-1)


@pytest.mark.parametrize("max_shift", [0, 1, 2])
def test_a_head_is_addressed_by_content_interpolation_shift_and_sharpening(max_shift: int) -> None:
    locations, word = 6, 3
    ntm = NTM(2, 4, num_locations=locations, word_size=word, max_shift=max_shift).double()
    memory = random_tensor(1, locations, word, seed=1, dtype=torch.float64)
    previous = positive(1, 2, locations, seed=2)
    emitted = random_tensor(1, 2, ntm.address_size, seed=3, dtype=torch.float64)
    weights = ntm.address(emitted, memory, previous)
    for head in range(2):
        said = emitted[0, head]
        key, strength, gate = said[:word], functional.softplus(said[word]), said[word + 1].sigmoid()
        sharpness, shift = 1 + functional.softplus(said[word + 2]), said[word + 3 :].softmax(dim=0)
        cosine = torch.stack([functional.cosine_similarity(key, row, dim=0) for row in memory[0]])
        gated = gate * (strength * cosine).softmax(dim=0) + (1 - gate) * previous[0, head]
        moved = torch.zeros(locations, dtype=torch.float64)
        for index in range(locations):
            for offset, share in zip(range(max_shift, -max_shift - 1, -1), shift, strict=True):
                moved[index] += share * gated[(index - offset) % locations]
        expected = moved**sharpness / (moved**sharpness).sum()
        torch.testing.assert_close(weights[0, head], expected, rtol=1e-5, atol=1e-6)
        assert weights[0, head].sum() == pytest.approx(1)


def test_all_heads_erase_before_they_add() -> None:
    memory = random_tensor(2, 5, 3, seed=1)
    weights, erase, add = (
        positive(2, 2, 5, seed=2).float(),
        random_tensor(2, 2, 3, seed=3).sigmoid(),
        memory[:, :2],
    )
    expected = memory.clone()
    for sample in range(2):
        for head in range(2):
            expected[sample] *= 1 - torch.outer(weights[sample, head], erase[sample, head])
        for head in range(2):
            expected[sample] += torch.outer(weights[sample, head], add[sample, head])
    torch.testing.assert_close(write(memory, weights, erase, add), expected)


def test_what_is_read_is_the_memory_after_writing() -> None:
    ntm = NTM(3, 4, num_locations=5, word_size=2, num_read_heads=2)
    _, state = ntm(random_tensor(2, 3, 3, seed=1))
    torch.testing.assert_close(state.reads, (state.weights[:, :2] @ state.memory).flatten(1))


def test_weights_stay_distributions_over_a_long_sequence() -> None:
    ntm = NTM(3, 4, num_locations=5, word_size=2)
    with torch.no_grad():
        _, state = ntm(5 * random_tensor(2, 400, 3, seed=1))
    torch.testing.assert_close(state.weights.sum(dim=-1), torch.ones(2, 2))
    assert (state.weights >= 0).all()


@pytest.mark.parametrize("max_shift", [-1, 5])
def test_shifts_that_do_not_fit_the_memory_are_refused(max_shift: int) -> None:
    with pytest.raises(ValueError, match=rf"below num_locations; got max_shift={max_shift}, num_locations=5"):
        NTM(3, 4, num_locations=5, max_shift=max_shift)
