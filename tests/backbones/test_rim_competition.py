"""The competition of a RIM: who wins, what the others keep, permutation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.types import map_state
from tests.backbones.small_rim import BATCH, SIZE, STEPS, M, activity_of, every_choice, make_inputs, make_rim
from tests.conftest import counting_tensor, random_tensor


def scores_of(rim: RIM, inputs: Tensor, hidden: Tensor) -> Tensor:
    """Scores (B, M, I, N) of one step's slots (B, N, D) for hidden states (B, M, d), without null."""
    layer = rim.layers[0]
    heads = layer.input_heads
    query = torch.einsum("bmd,mdk->bmk", hidden, layer.input_query.weight).unflatten(-1, (heads, -1))
    weight = layer.input_key.weight.expand(rim.num_mechanisms, -1, -1)
    key = torch.einsum("bnx,mxk->bmnk", inputs, weight).unflatten(-1, (heads, -1))
    return torch.einsum("bmik,bmnik->bmin", query, key) / query.shape[-1] ** 0.5


def winners(relevance: Tensor) -> Tensor:
    return torch.zeros_like(relevance, dtype=torch.bool).scatter(1, relevance.topk(2, dim=1).indices, True)


# Competition


@pytest.mark.parametrize("num_active", [1, 2, 4, 5])
@pytest.mark.parametrize("slots", [None, 3])
@every_choice
def test_exactly_k_mechanisms_are_active_in_every_step(
    choice: dict[str, Any], slots: int | None, num_active: int
) -> None:
    _, _, activity = activity_of(make_rim(**choice, num_active=num_active), make_inputs(slots=slots))
    assert activity.active.dtype == torch.bool
    assert activity.active.shape == (BATCH, STEPS, M)
    assert (activity.active.sum(dim=-1) == num_active).all()


def test_different_samples_and_steps_have_different_winners() -> None:
    _, _, activity = activity_of(make_rim(), make_inputs())
    assert len(activity.active.flatten(0, 1).unique(dim=0)) > 2


@pytest.mark.parametrize("input_sharing", ["shared", "independent"])
def test_with_one_slot_and_one_head_least_null_means_the_largest_score(input_sharing: str) -> None:
    rim, inputs = make_rim(input_sharing=input_sharing), make_inputs(steps=1)
    _, _, activity = activity_of(rim, inputs)
    scores = scores_of(rim, inputs[:, :1].squeeze(1)[:, None], rim.initial_state(BATCH).hidden[:, 0])[:, :, 0, 0]
    torch.testing.assert_close(activity.null_attention[:, 0], torch.sigmoid(-scores))
    assert torch.equal(activity.active[:, 0], winners(scores))
    assert torch.equal(activity.active[:, 0], winners(-activity.null_attention[:, 0]))


@pytest.mark.parametrize("input_sharing", ["shared", "independent"])
def test_with_several_slots_and_one_head_least_null_means_the_largest_logsumexp(
    input_sharing: str,
) -> None:
    rim, inputs = make_rim(input_sharing=input_sharing), make_inputs(slots=3, steps=1)
    _, _, activity = activity_of(rim, inputs)
    scores = scores_of(rim, inputs[:, 0], rim.initial_state(BATCH).hidden[:, 0])[:, :, 0]
    torch.testing.assert_close(activity.null_attention[:, 0], 1 / (1 + scores.exp().sum(dim=-1)))
    assert torch.equal(activity.active[:, 0], winners(scores.logsumexp(dim=-1)))


@pytest.mark.parametrize("slots", [1, 3])
def test_with_several_heads_the_least_mean_null_probability_wins(slots: int) -> None:
    rim, inputs = make_rim(input_heads=3), make_inputs(slots=slots, steps=1).repeat(8, 1, 1, 1)
    start = map_state(lambda tensor: 2 * random_tensor(*tensor.shape, dtype=torch.float64), rim.initial_state(32))
    _, _, activity = activity_of(rim, inputs, start)
    scores = scores_of(rim, inputs[:, 0], start.hidden[:, 0])
    null = 1 / (1 + scores.exp().sum(dim=-1))  # (B, M, I)
    torch.testing.assert_close(activity.null_attention[:, 0], null.mean(dim=-1))
    assert torch.equal(activity.active[:, 0], winners(-null.mean(dim=-1)))
    # the test would prove nothing if the mean score ranked the same
    assert not torch.equal(activity.active[:, 0], winners(scores.logsumexp(dim=-1).mean(dim=-1)))


@pytest.mark.parametrize("slots", [1, 3])
def test_across_mechanisms_the_largest_share_wins(slots: int) -> None:
    rim, inputs = make_rim(selection="across_mechanisms", input_heads=2), make_inputs(slots=slots, steps=1)
    _, _, activity = activity_of(rim, inputs)
    scores = scores_of(rim, inputs[:, 0], rim.initial_state(BATCH).hidden[:, 0])
    share = scores.softmax(dim=1).mean(dim=2)  # (B, M, N)
    torch.testing.assert_close(activity.slot_attention[:, 0], share)
    assert torch.equal(activity.active[:, 0], winners(share.sum(dim=-1)))


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_ties_go_to_the_lowest_index(backend: str) -> None:
    rim = make_rim(learn_initial_state=False, num_active=3, backend=backend)  # zero states: every score is 0
    _, _, activity = activity_of(rim, make_inputs(steps=1))
    assert activity.active[:, 0].tolist() == [[True, True, True, False, False]] * BATCH


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("slots", [None, 2])
@every_choice
def test_inputs_that_are_no_numbers_still_leave_exactly_k_active(
    choice: dict[str, Any], slots: int | None, bad: float, backend: str
) -> None:
    inputs = make_inputs(slots=slots, steps=3)
    inputs[0, 1] = bad
    features, _, activity = activity_of(make_rim(**choice, backend=backend), inputs)
    assert (activity.active.sum(dim=-1) == 2).all()
    assert features[1:].isfinite().all()  # the other samples do not notice


@pytest.mark.parametrize("slots", [None, 3])
@every_choice
def test_dropout_never_changes_the_selection(choice: dict[str, Any], slots: int | None) -> None:
    rim, inputs = (
        make_rim(**choice, input_dropout=0.6, communication_dropout=0.6),
        make_inputs(slots=slots, steps=1),
    )
    plain_features, _, plain = activity_of(rim, inputs)
    rim.train()
    dropped_features, _, dropped = activity_of(rim, inputs)
    assert not torch.allclose(plain_features, dropped_features)
    assert torch.equal(plain.active, dropped.active)
    assert torch.equal(plain.null_attention, dropped.null_attention)  # recorded before dropout


# Preservation


@pytest.mark.parametrize("slots", [None, 3])
@pytest.mark.parametrize("backend", ["eager", "reference"])
@every_choice
def test_inactive_mechanisms_keep_their_state_bit_for_bit(
    choice: dict[str, Any], backend: str, slots: int | None
) -> None:
    rim, inputs = make_rim(**choice, backend=backend), make_inputs(slots=slots)
    state = rim.initial_state(BATCH)
    for step in range(STEPS):
        _, later, activity = activity_of(rim, inputs[:, step : step + 1], state)
        active = activity.active[:, 0]
        for before, after in zip(state, later, strict=True):
            same = (before == after)[:, 0].all(dim=-1)
            assert torch.equal(same, ~active)
        state = later


def test_the_memory_of_an_active_mechanism_does_not_hear_communication() -> None:
    silent, talking = make_rim(communication="none"), make_rim()
    talking.load_state_dict(silent.state_dict(), strict=False)
    inputs = make_inputs(steps=1)
    _, alone, _ = activity_of(silent, inputs)
    _, together, _ = activity_of(talking, inputs)
    assert torch.equal(alone.memory, together.memory)
    assert not torch.allclose(alone.hidden, together.hidden)


@every_choice
def test_the_gradient_flows_through_an_inactive_mechanism_along_the_identity(choice: dict[str, Any]) -> None:
    rim = make_rim(**choice, num_active=1)
    start = map_state(lambda tensor: tensor.detach().clone().requires_grad_(), rim.initial_state(BATCH))
    features, _, activity = activity_of(rim, make_inputs(), start)
    never = ~activity.active.any(dim=1)  # (B, M)
    assert never.any()
    # only the features of a mechanism that was never active: nothing but the identity leads to its state
    weights = counting_tensor(BATCH, M, SIZE, dtype=torch.float64) * never[..., None]
    (features[:, -1].unflatten(-1, (M, SIZE)) * weights).sum().backward()
    assert torch.equal(start.hidden.grad[:, 0], weights)


def test_under_paper_an_inactive_mechanism_that_is_read_gets_a_gradient() -> None:
    def gradient_of(**arguments: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        rim = make_rim(num_active=2, **arguments)
        start = map_state(lambda tensor: tensor.detach().clone().requires_grad_(), rim.initial_state(BATCH))
        features, _, activity = activity_of(rim, make_inputs(steps=1), start)
        active = activity.active[:, 0]
        (features[:, 0].unflatten(-1, (M, SIZE)) * active[..., None]).sum().backward()
        return start.hidden.grad[:, 0].abs().sum(dim=-1), active

    read, active = gradient_of(preset="paper")
    assert (read[~active] > 0).all()
    detached, active = gradient_of(preset="official")
    assert (detached[~active] == 0).all()
    silent, active = gradient_of(communication="none")
    assert (silent[~active] == 0).all()
    assert (silent[active] > 0).all()


# Permutation


@pytest.mark.parametrize("slots", [None, 3])
@every_choice
def test_permuting_the_mechanisms_permutes_the_features(choice: dict[str, Any], slots: int | None) -> None:
    rim, permuted = make_rim(**choice), make_rim(**choice)
    order = torch.tensor([3, 1, 4, 0, 2])
    weights = {
        # initial states are (layers, M, d); shared weights have a leading 1
        name: value[:, order] if name.startswith("initial.") else value[order] if len(value) == M else value
        for name, value in rim.state_dict().items()
    }
    permuted.load_state_dict(weights)
    inputs = make_inputs(slots=slots)
    features, state, activity = activity_of(rim, inputs)
    others, other_state, other_activity = activity_of(permuted, inputs)
    torch.testing.assert_close(
        others.unflatten(-1, (M, SIZE)), features.unflatten(-1, (M, SIZE))[:, :, order], rtol=1e-9, atol=1e-11
    )
    assert torch.equal(other_activity.active, activity.active[..., order])
    torch.testing.assert_close(other_state.hidden, state.hidden[:, :, order], rtol=1e-9, atol=1e-11)
