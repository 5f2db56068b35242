"""The causal Transformer: rotation, context, cache."""

import pytest
import torch
from torch import Tensor, nn

from rimlit.backbones import Transformer
from rimlit.backbones.base import count_flops
from rimlit.backbones.transformer import rotate, rotations
from tests.conftest import random_tensor


def small(**options: int) -> Transformer:
    return Transformer(3, 12, **{"num_layers": 1, "num_heads": 2, **options}).double().eval()


def test_rotation_is_a_product_with_complex_numbers_of_length_one() -> None:
    vectors = random_tensor(1, 1, 5, 6, dtype=torch.float64)
    turned = rotate(vectors, rotations(5, 6, vectors))
    for step in range(5):
        for pair in range(3):
            angle = torch.tensor(step * 10000 ** (-2 * pair / 6), dtype=torch.float64)
            number = torch.complex(vectors[0, 0, step, pair], vectors[0, 0, step, pair + 3])
            expected = number * torch.complex(angle.cos(), angle.sin())
            torch.testing.assert_close(
                torch.complex(turned[0, 0, step, pair], turned[0, 0, step, pair + 3]), expected
            )


@pytest.mark.parametrize("num_heads", [1, 3, 5])
def test_a_layer_follows_the_equations(num_heads: int) -> None:
    transformer = small(num_heads=num_heads)
    inputs = random_tensor(1, 4, 3, seed=1, dtype=torch.float64)
    features, _ = transformer(inputs)
    layer = transformer.layers[0]
    hidden = transformer.input(inputs[0])
    query, key, value = layer.query_key_value(layer.attention_norm(hidden)).chunk(3, dim=-1)
    turn = rotations(4, layer.head_size, hidden)
    for step in range(4):
        read = torch.zeros(12, dtype=torch.float64)
        for head in range(num_heads):
            mine = [
                torch.nn.functional.pad(
                    part[:, head::num_heads], (0, layer.head_size - len(part[0, head::num_heads]))
                )
                for part in (query, key)
            ]
            queries, keys = (rotate(part[None, None], turn)[0, 0] for part in mine)
            scores = torch.stack([queries[step] @ keys[past] for past in range(step + 1)])
            attention = (scores / layer.head_size**0.5).softmax(dim=0)
            read[head::num_heads] = attention @ value[: step + 1, head::num_heads]
        after = hidden[step] + layer.attended(read)
        after = after + layer.feedforward(layer.feedforward_norm(after))
        torch.testing.assert_close(features[0, step], transformer.norm(after))


@pytest.mark.parametrize("piece", [1, 3, 20])
def test_pieces_far_beyond_the_context_give_what_the_whole_sequence_gives(piece: int) -> None:
    transformer = small(num_layers=2, context=5)
    inputs = random_tensor(2, 60, 3, seed=1, dtype=torch.float64)
    resets = random_tensor(2, 60, seed=2) > 1.5
    whole, last = transformer(inputs, None, resets)
    state, pieces = None, []
    for start in range(0, 60, piece):
        stop = start + piece
        features, state = transformer(inputs[:, start:stop], state, resets[:, start:stop])
        pieces.append(features)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-12)
    assert torch.equal(state.filled, last.filled)
    torch.testing.assert_close(state.keys, last.keys)


def test_a_layer_sees_its_context_and_nothing_before() -> None:
    transformer = small(context=4)
    inputs = random_tensor(1, 10, 3, seed=1, dtype=torch.float64)
    features, _ = transformer(inputs)
    for distance in range(7):
        changed = inputs.clone()
        changed[:, 9 - distance] += 1
        others, _ = transformer(changed)
        assert torch.equal(others[:, 9], features[:, 9]) == (distance >= 4), distance


def test_a_step_is_counted_with_a_full_context() -> None:
    transformer = small(num_layers=2, num_heads=5, context=6).float()
    _, state = transformer(random_tensor(1, 6, 3, seed=1))

    class Step(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return transformer.step(inputs, state)[0]

    counted = count_flops(Step(), torch.ones(1, 3))
    assert transformer.flops_per_step() == counted


def test_the_default_context_covers_the_longest_test_of_copying() -> None:
    assert Transformer(3, 8).context >= 400 + 2 * 10


def test_a_cache_holds_nothing_from_before_a_reset() -> None:
    transformer = small(context=6)
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[0, 3] = True
    _, state = transformer(random_tensor(2, 5, 3, seed=1, dtype=torch.float64), None, resets)
    assert state.filled.tolist() == [[False] * 3 + [True] * 2, [True] * 5]
    assert not state.keys[0, :, :3].any() and not state.values[0, :, :3].any()
    assert state.keys[0, :, 3:].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 1}, "context must be at least 2; got context=1"),
        ({"num_heads": 13}, "num_heads=13, hidden_size=12"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
