"""Grouped linear maps, slot attention, communication, selection."""

import math

import pytest
import torch

from rimlit.nn import GroupedLinear, attend_slots, communicate, select_active
from tests.conftest import counting_tensor, random_tensor


@pytest.mark.parametrize("bias", [False, True])
def test_each_group_is_a_linear_map_of_its_own(bias: bool) -> None:
    grouped = GroupedLinear(3, 4, 5, bias=bias)
    inputs = counting_tensor(3, 2, 4)
    for group, rows in enumerate(grouped(inputs)):
        offset = grouped.bias[group] if bias else 0
        torch.testing.assert_close(rows, inputs[group] @ grouped.weight[group] + offset)


def test_grouped_weights_start_within_their_bound() -> None:
    grouped = GroupedLinear(4, 100, 50, bias=True)
    assert 0.099 < grouped.weight.abs().max() <= 0.1
    assert 0.3 < GroupedLinear(4, 100, 50, init_scale=0.5).weight.std() * math.sqrt(3) <= 0.51


def test_slots_and_null_share_one_softmax_in_which_null_scores_zero() -> None:
    scores = torch.tensor([[0.0, math.log(2), math.log(5)]])
    slots, null = attend_slots(scores)
    torch.testing.assert_close(null, torch.tensor([1 / 9]))
    torch.testing.assert_close(slots, torch.tensor([[1 / 9, 2 / 9, 5 / 9]]))


def test_reading_is_scaled_dot_product_attention() -> None:
    query, key, value = (random_tensor(2, 3, 4, size, seed=seed) for seed, size in enumerate((5, 5, 6)))
    read, attention = communicate(query, key, value)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(read, expected)
    keep = 2 * (random_tensor(2, 3, 4, 4) > 0)
    dropped, same = communicate(query, key, value, keep)
    assert torch.equal(same, attention)
    torch.testing.assert_close(dropped, (attention * keep) @ value)


def test_the_most_relevant_are_marked_and_ties_go_to_the_lowest_index() -> None:
    relevance = torch.tensor([[2.0, 0.0, 5.0], [1.0, 0.0, 5.0], [3.0, 0.0, 4.0], [3.0, 0.0, 5.0]])
    assert select_active(relevance, 2).T.tolist() == [
        [False, False, True, True],
        [True, True, False, False],
        [True, True, False, False],
    ]


@pytest.mark.parametrize("num_active", [1, 2, 3, 4])
def test_what_is_no_number_is_least_relevant_and_the_count_holds(num_active: int) -> None:
    nan, inf = math.nan, math.inf
    relevance = torch.tensor([[nan, nan, -inf], [inf, nan, nan], [0.5, nan, 0.1], [-inf, nan, inf]])
    active = select_active(relevance, num_active)
    assert active.sum(dim=0).tolist() == [num_active] * 3
    assert active[1, 0]
    assert active[3, 2]


def test_selection_passes_no_gradient() -> None:
    assert not select_active(counting_tensor(4, 2).requires_grad_(), 2).requires_grad
