"""Weights that mechanisms share, with an embedding or a low-rank difference, and other numbers of mechanisms."""

from typing import Any

import pytest
import torch

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import EmbeddedSharing, IndependentSharing, LowRankSharing, SharedSharing
from rimlit.nn.resizing import resize_rows
from rimlit.testing import rim_with
from tests.conftest import random_tensor
from tests.mechanisms.independent import gru_of, require_same, run


def test_an_embedding_enters_the_bias_and_nothing_else() -> None:
    bias = EmbeddedSharing(3, 1, 6, embedding_size=2)
    assert bias.embedding is not None and bias.map is not None
    for m in range(3):
        expected = bias.weight[0, 0] + sum(bias.embedding[m, e] * bias.map[0, e] for e in range(2))
        torch.testing.assert_close(bias.expand()[m, 0], expected)
    weight = EmbeddedSharing(3, 4, 6)
    assert [name for name, _ in weight.named_parameters()] == ["weight"]
    assert torch.equal(weight.expand()[0], weight.expand()[2])


def test_a_low_rank_difference_is_a_product_of_two_thin_matrices() -> None:
    shared = LowRankSharing(3, 5, 6, rank=2)
    for m in range(3):
        torch.testing.assert_close(shared.expand()[m], shared.weight[0] + shared.left[m] @ shared.right[m])
        assert torch.linalg.matrix_rank(shared.expand()[m] - shared.weight[0]) == 2
    assert LowRankSharing(3, 1, 6, rank=4).left.shape == (3, 1, 1)


@pytest.mark.parametrize(
    ("cls", "inner"), [(EmbeddedSharing, 1), (EmbeddedSharing, 40), (LowRankSharing, 1), (LowRankSharing, 40)]
)
def test_weights_start_as_varied_as_those_of_independent_mechanisms(cls: Any, inner: int) -> None:
    torch.manual_seed(0)
    spread, usual = (sharing(200, inner, 50, 0.3).expand().std().item() for sharing in (cls, IndependentSharing))
    ratio = 2**0.5 if cls is EmbeddedSharing and inner == 1 else 1  # b and e W each vary as much as a bias
    assert spread / usual == pytest.approx(ratio, rel=0.12)


def test_values_are_added_to_every_mechanism_alike() -> None:
    for cls in (IndependentSharing, SharedSharing, EmbeddedSharing, LowRankSharing):
        bias, values = cls(3, 1, 4), torch.arange(4.0)
        before = bias.expand().detach().clone()
        bias.add(values)
        torch.testing.assert_close(bias.expand(), before + values)


@pytest.mark.parametrize("sharing", ["embedded", {"class_path": "low_rank", "init_args": {"rank": 2}}])
def test_a_rim_with_shared_weights_equals_an_independent_computation(sharing: Any) -> None:
    rim = rim_with(sharing=sharing, cell="gru", communication="none")().double().eval()
    inputs = 3 * random_tensor(2, 5, 3, dtype=torch.float64)
    require_same(rim, rim(inputs)[0], run(rim, inputs, gru_of(rim)))


@pytest.mark.parametrize("sharing", ["shared", "embedded", "low_rank"])
def test_a_single_step_follows_weights_that_change_in_place(sharing: str) -> None:
    rim, inputs = rim_with(sharing=sharing)().eval(), random_tensor(2, 3)
    with torch.no_grad():
        rim.step(inputs, rim.initial_state(2))
        for parameter in rim.parameters():
            parameter.mul_(1.5)
        stepped, _ = rim.step(inputs, rim.initial_state(2))
        expected, _ = rim(inputs[:, None], rim.initial_state(2))
    torch.testing.assert_close(stepped, expected[:, 0])


def test_active_parameters_count_what_belongs_to_one_mechanism() -> None:
    everything, own = {}, {}
    low_rank = {"class_path": "low_rank", "init_args": {"rank": 1}}
    for name, sharing in {**{s: s for s in ("independent", "shared", "embedded")}, "low_rank": low_rank}.items():
        rim = rim_with(sharing=sharing)()
        everything[name] = sum(parameter.numel() for parameter in rim.parameters())
        own[name] = everything[name] - rim.active_parameters()
    assert own["shared"] == 0
    assert own["embedded"] == round(0.6 * 5 * 8)  # three of five embeddings of 8 rest
    assert 0 < own["low_rank"] < own["independent"] < everything["independent"]


def test_more_mechanisms_get_embeddings_like_the_learned_ones() -> None:
    rim = rim_with(sharing="embedded")().eval()
    for number in (3, 5, 8):
        other = rim.with_mechanisms(number, num_active=2)
        assert other.layers[0].dynamics.bias.embedding.shape == (number, 8)
        kept = min(number, 5)
        before, after = (each.layers[0].dynamics.bias.embedding[:kept] for each in (rim, other))
        assert torch.equal(before, after)
        assert other(random_tensor(2, 4, 3))[0].shape == (2, 4, number * 4)


def test_rows_that_are_drawn_have_the_mean_and_the_spread_of_the_others() -> None:
    torch.manual_seed(0)
    values = torch.tensor([[1.0, -5.0], [3.0, -5.0]])
    drawn = resize_rows(values, 4000, 0)[2:]
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([2.0, -5.0]), rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.std(dim=0), torch.tensor([1.0, 0.0]), rtol=0, atol=0.04)


def test_where_all_are_active_all_of_another_number_are() -> None:
    rim = RIM(3, 12, num_mechanisms=3, num_active=3, sharing="shared", learn_initial_state=True)
    assert (rim.with_mechanisms(5).num_active, rim.with_mechanisms(5, 2).num_active) == (5, 2)
    assert rim_with(sharing="shared")().with_mechanisms(7).num_active == 2


def test_low_rank_differences_are_no_rule_for_new_mechanisms() -> None:
    with pytest.raises(
        ConfigError, match=r"needs weights .*'shared' or 'embedded'; input_query is LowRankSharing"
    ):
        rim_with(sharing="low_rank")().with_mechanisms(7)


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        (
            {"class_path": "embedded", "init_args": {"embedding_size": 0}},
            "embedding_size must be at least 1; got emb",
        ),
        ({"class_path": "low_rank", "init_args": {"rank": 0}}, r"rank must be at least 1; got rank=0\."),
    ],
)
def test_a_size_out_of_range_is_named(sharing: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rim_with(sharing=sharing)()
